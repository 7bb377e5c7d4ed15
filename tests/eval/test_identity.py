"""A clip is known by its content, wherever it lies and however old it is."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from lhotse import CutSet, Recording

from xycodec.errors import AudioError
from xycodec.eval.corpus import Item, open_corpora
from xycodec.eval.identity import audio_digest, identify
from xycodec.io.digests import file_digest


def write(path, seed=0, samples=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, samples), 16_000)
    return path


def only(spec):
    (item,) = open_corpora([str(spec)])
    return item


def of(cut):
    return Item("clip", "here", None, None, cut.duration, cut)


def test_the_same_content_elsewhere_is_the_same_clip(tmp_path):
    here = only(write(tmp_path / "a/clip.wav"))
    shutil.copy(tmp_path / "a/clip.wav", tmp_path / "moved.wav")
    assert identify(only(tmp_path / "moved.wav")) == identify(here)
    assert identify(only(write(tmp_path / "b/clip.wav", seed=1))).audio != identify(here).audio


def test_a_file_that_was_replaced_is_another_though_size_and_time_are_the_same(tmp_path):
    path = write(tmp_path / "clip.wav")
    before, stat = file_digest(path), path.stat()
    assert file_digest(path) == before
    write(tmp_path / "other.wav", seed=1).replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert file_digest(path) != before


def test_words_and_language_are_part_of_the_whole_only(tmp_path):
    item = only(write(tmp_path / "clip.wav"))
    first = identify(item)
    for change in ({"text": "hello"}, {"language": "de"}):
        other = identify(replace(item, **change))
        assert (other.audio, other.whole == first.whole) == (first.audio, False)
    assert identify(replace(item, speaker="anna", clip="name", source="there")) == first


def test_parts_of_one_recording_differ(tmp_path):
    cut = Recording.from_file(write(tmp_path / "long.wav", samples=48_000)).to_cut()
    parts = [of(cut.truncate(offset=start, duration=1)) for start in (0, 1, 1)]
    assert audio_digest(parts[0]) != audio_digest(parts[1]) == audio_digest(parts[2])


def test_tars_memory_and_mixed_cuts_are_known_by_their_content_too(tmp_path):
    for seed in (0, 1):
        cut = Recording.from_file(write(tmp_path / f"{seed}.wav", seed=seed)).to_cut()
        (tmp_path / f"shar{seed}").mkdir()
        CutSet.from_cuts([cut.with_id("clip")]).to_shar(tmp_path / f"shar{seed}", {"recording": "wav"})
    shars = [audio_digest(only(tmp_path / f"shar{seed}")) for seed in (0, 1)]
    kept = [of(Recording.from_bytes((tmp_path / f"{seed}.wav").read_bytes(), "x").to_cut()) for seed in (0, 1)]
    mixed = [of(one.cut.mix(kept[0].cut, offset_other_by=0.5)) for one in kept]
    for one, other in (shars, map(audio_digest, kept), map(audio_digest, mixed)):
        assert one != other
    assert audio_digest(mixed[0]) == audio_digest(of(kept[0].cut.mix(kept[0].cut, offset_other_by=0.5)))


def test_what_cannot_be_read_has_no_identity(tmp_path):
    rows = [{"audio": "clip.wav", "duration": 1.0}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "clip.wav")
    item = only(tmp_path / "all.jsonl")
    (tmp_path / "clip.wav").unlink()
    for lost in (item, only(tmp_path / "all.jsonl")):
        with pytest.raises(AudioError, match=r"clip\.wav"):
            identify(lost)
