from pathlib import Path

import numpy as np
import pytest
from corpus import config, corpus, cut_of, emilia, encoded, noise, save, write_tar
from lhotse.shar import SharWriter

from xycodec.data.clip import load_clip
from xycodec.data.config import SourceConfig
from xycodec.data.manifest import row_cut
from xycodec.data.pack import pack
from xycodec.data.sources import open_once, open_source
from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import audio_info, read_audio


def opened(path, **more):
    return open_source(SourceConfig(path=str(path), **more))


def load(cut):
    return load_clip(cut, config(clip_seconds=30), output_sample_rate=16000, seed=0, epoch=0)


def test_a_manifest_of_lhotse(tmp_path):
    cuts = corpus(tmp_path, 4)
    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        cuts.to_file(tmp_path / name)
        again = opened(tmp_path / name)
        assert [cut.to_dict() for cut in again] == [cut.to_dict() for cut in cuts]
        assert len(list(again)) == 4


def test_a_shar_folder_gives_what_lhotse_wrote_into_it(tmp_path):
    cuts = list(corpus(tmp_path / "wav", 7))
    stereo = save(tmp_path / "wav/stereo.wav", np.stack([noise(1, seed=8), noise(1, seed=9)], axis=1))
    cuts.append(cut_of(stereo, "two"))
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), fields={"recording": "flac"}, shard_size=3) as writer:
        for cut in cuts:
            writer.write(cut)
    ours = list(opened(tmp_path / "shar"))
    assert [cut.id for cut in ours] == [cut.id for cut in cuts]
    for cut, original in zip(ours, cuts, strict=True):
        clip, expected = load(cut), load(original)
        np.testing.assert_array_equal(clip.audio, expected.audio)
        assert clip.text == expected.text is not None
        # No audio is carried along.
        assert cut.recording.is_placeholder


def test_a_shar_folder_that_does_not_fit_together(tmp_path):
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), fields={"recording": "wav"}, shard_size=2) as writer:
        for cut in corpus(tmp_path / "wav", 4):
            writer.write(cut)
    first, second = (tmp_path / "shar" / f"recording.00000{i}.tar" for i in (0, 1))
    saved = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ConfigError, match=r"found 002\.wav\.wav where cuts\.000000\.jsonl\.gz has 000\.wav"):
        opened(tmp_path / "shar")
    first.write_bytes(saved)
    second.unlink()
    with pytest.raises(ConfigError, match=r"2 cuts\.\*\.jsonl\.gz and 1 recording"):
        opened(tmp_path / "shar")


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".wav", ".ogg", ".opus"])
def test_webdataset_pairs_in_either_order(tmp_path, suffix):
    audio = [encoded(noise(1 + i, 24000, i), 24000, suffix) for i in range(3)]
    members = [
        ("a/EN_0.json", emilia("EN_0", 1.0)),
        (f"a/EN_0{suffix}", audio[0]),
        (f"a/EN_1{suffix}", audio[1]),
        ("README.txt", b"not a clip"),
        ("a/EN_1.json", emilia("EN_1", 2.0, text=None)),
        (f"a/EN_2{suffix}", audio[2]),  # without its json
        ("a/EN_3.json", emilia("EN_3", 2.0)),  # without its audio
    ]
    write_tar(tmp_path / "EN-B0.tar", members)
    cuts = list(opened(tmp_path / "EN-B0.tar"))
    assert [cut.id for cut in cuts] == ["EN-B0/a/EN_0", "EN-B0/a/EN_1", "EN-B0/a/EN_2"]
    assert [cut.sampling_rate for cut in cuts] == [48000 if suffix == ".opus" else 24000] * 3
    assert [cut.duration for cut in cuts] == pytest.approx([1, 2, 3], abs=0.1)
    words = cuts[0].supervisions[0]
    assert (words.text, words.speaker, words.language) == ("words of EN_0", "s1", "en")
    for cut, data in zip(cuts, audio, strict=True):
        path = tmp_path / f"alone{suffix}"
        path.write_bytes(data)
        expected = load(cut_of(path).truncate(duration=min(cut.duration, cut_of(path).duration))).audio
        np.testing.assert_allclose(load(cut).audio[: len(expected)], expected, atol=1e-6)
    assert [load(cut).text for cut in cuts] == ["words of EN_0", None, None]


def test_a_glob_reads_tar_after_tar_and_ids_stay_apart(tmp_path):
    for shard in (1, 0):
        data = encoded(noise(1, seed=shard), 16000, ".wav")
        write_tar(tmp_path / f"d{shard}/s{shard}.tar", [("k.wav", data), ("k.json", emilia("k", 1.0))])
    cuts = opened(tmp_path / "*" / "s*.tar")
    assert [cut.id for cut in cuts] == ["s0/k", "s1/k"]
    assert [cut.id for cut in cuts] == ["s0/k", "s1/k"]
    np.testing.assert_allclose(load(list(cuts)[1]).audio, noise(1, seed=1), atol=1e-4)


def bytes_read():
    """Bytes this process has asked the system for (Linux)."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def test_passing_over_a_tar_reads_headers_only(tmp_path):
    members = [(f"{i}.wav", encoded(noise(20, seed=i), 16000, ".wav")) for i in range(5)]
    rows = [(f"{i}.json", emilia(str(i), 20.0)) for i in range(5)]
    path = write_tar(tmp_path / "a.tar", [member for pair in zip(members, rows, strict=True) for member in pair])
    cuts = opened(path)
    before = bytes_read()
    places = [cut.custom["tar_member"] for cut in cuts]
    assert bytes_read() - before < 0.2 * path.stat().st_size
    assert all(path.read_bytes()[place : place + 4] == b"RIFF" for _, place, _ in places)


def test_an_unreadable_member_is_a_cut_that_is_refused_when_it_is_loaded(tmp_path):
    good = encoded(noise(1), 16000, ".wav")
    members = [("a.mp3", b"no audio" * 100), ("a.json", emilia("a", 1.0)), ("b.wav", good)]
    bad, fine = opened(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(AudioError, match="a/a: its audio is not audio that can be read"):
        load(bad)
    assert len(load(fine).audio) == 16000


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.tar", b"this is no tar at all" * 100, "not a plain tar"),
        ("a.tar", b"", "not a plain tar"),
        ("a.jsonl", b"", "holds no clips"),
        ("a.jsonl", b'{"audio": "a.wav", "duration": 1}\n', "xycodec data import"),
        ("a.csv", b"a,b", "not a source of data"),
    ],
)
def test_files_that_are_no_source(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert problem in str(caught.value)


@pytest.mark.parametrize("name", ["none.tar", "none*.tar", "none.jsonl", "none.jsonl.gz"])
def test_files_that_are_missing(tmp_path, name):
    with pytest.raises(ConfigError, match=r"no such file|No such file"):
        opened(tmp_path / name)


def test_a_folder_that_is_no_shar_and_a_tar_without_audio(tmp_path):
    with pytest.raises(ConfigError, match="as many of either"):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="holds no clips"):
        opened(write_tar(tmp_path / "a.tar", [("a.txt", b"text")]))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("a.json", b"{"), ("a.wav", b"")], "a.json is not JSON"),
        ([("a.json", b"[]"), ("a.wav", b"")], "a.json holds no JSON object"),
        ([("a.wav", b""), ("a.flac", b"")], "two members are 'a.flac'"),
    ],
)
def test_tars_whose_members_do_not_pair(tmp_path, members, problem):
    with pytest.raises(ConfigError, match=problem):
        list(opened(write_tar(tmp_path / "a.tar", members)))


def test_a_tar_that_breaks_off_is_named(tmp_path):
    data = encoded(noise(1), 16000, ".wav")
    path = write_tar(tmp_path / "a.tar", [("a.wav", data), ("a.json", emilia("a", 1.0)), ("b.wav", data)])
    path.write_bytes(path.read_bytes()[:40_000])
    cuts = iter(opened(path))
    assert next(cuts).id == "a/a"
    with pytest.raises(ConfigError, match=r"a\.tar: not a plain tar, or damaged"):
        list(cuts)


def manifests(tmp_path, *counts):
    for number, count in enumerate(counts):
        corpus(tmp_path / f"c{number}", count).to_file(tmp_path / f"c{number}.jsonl")
    return [str(tmp_path / f"c{number}.jsonl") for number in range(len(counts))]


def test_sources_follow_each_other_whatever_their_weights(tmp_path):
    for weight in (None, 2.0):
        sources = [SourceConfig(path=path, weight=weight) for path in manifests(tmp_path, 2, 3)]
        cuts = open_once(sources)
        assert [cut.id for cut in cuts] == ["000.wav", "001.wav", "000.wav", "001.wav", "002.wav"]


def test_a_duration_comes_from_the_json_and_else_from_the_audio(tmp_path):
    data = encoded(noise(1), 16000, ".wav")
    given = {"a": 0.9, "b": None, "c": "1 s", "d": -1, "e": float("inf")}
    members = [(f"{k}.json", emilia(k, seconds)) for k, seconds in given.items()] + [(f"{k}.wav", data) for k in given]
    assert [cut.duration for cut in opened(write_tar(tmp_path / "a.tar", members))] == [0.9, 1.0, 1.0, 1.0, 1.0]


def test_flac_of_unknown_length_in_a_tar_has_its_own(tmp_path):
    known = encoded(noise(2), 16000, ".flac")
    unknown = bytearray(known)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    members = [("k.flac", known), ("u.flac", bytes(unknown)), ("._u.flac", b"\0\5\x16\7" + bytes(99))]
    source = opened(write_tar(tmp_path / "a.tar", members))
    assert [(cut.id, cut.duration) for cut in source] == [("a/k", 2.0), ("a/u", 2.0)]
    report = pack(source, tmp_path / "pack")
    assert (report.clips, report.seconds, report.left_out) == (2, 4.0, ())


@pytest.mark.parametrize("suffix", [".mp3", ".opus", ".flac", ".ogg", ".wav"])
def test_a_file_has_one_duration_everywhere(tmp_path, suffix):
    """Two joined files: info, import, tar, whole reading and decoding for training agree."""
    data = encoded(noise(2, 24000), 24000, suffix) + encoded(noise(1, 24000, 1), 24000, suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    seconds = audio_info(path).duration
    assert seconds == 3.0
    assert len(read_audio(path)) == 48_000
    cut = row_cut(tmp_path, {"audio": path.name})
    (member,) = opened(write_tar(tmp_path / "a.tar", [(path.name, data)]))
    assert cut.duration == member.duration == seconds
    assert len(load(cut).audio) == len(load(member).audio) == 48_000
