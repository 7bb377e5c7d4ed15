"""Packed corpora: the same clips as before, from other files."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile as sf
import soxr
from corpus import config, corpus, cut_of, emilia, encoded, noise, save, write_tar
from lhotse import CutSet
from lhotse.qa import validate
from typer.testing import CliRunner

from xycodec.cli.app import app
from xycodec.data.clip import load_clip
from xycodec.data.config import SourceConfig
from xycodec.data.pack import MANIFEST, pack
from xycodec.data.sources import open_source
from xycodec.errors import ConfigError

HALF_A_STEP = 0.5 / 32768 + 1e-7
KINDS = (".wav", ".flac", ".mp3", ".ogg", ".opus")


def packed(folder):
    return list(open_source(SourceConfig(path=str(folder / MANIFEST))))


def load(cut, **settings):
    return load_clip(cut, config(**settings), output_sample_rate=16_000, seed=0, epoch=0)


def mixed(folder):
    """Clips of every format, one of them stereo, with texts and custom fields; odd numbers of samples."""
    cuts = []
    for number, suffix in enumerate(KINDS):
        # Opus knows but a few numbers of samples.
        samples = noise(1.1 + 0.31 * number, seed=number) if suffix == ".opus" else noise(3, seed=number)[:21_001]
        cuts.append(cut_of(save(folder / f"{number}{suffix}", samples), f"text {number}"))
    both = np.stack([noise(2, seed=8), noise(2, seed=9)], axis=1)
    cuts.append(cut_of(save(folder / "stereo.wav", both), "two"))
    cuts.append(cut_of(save(folder / "long.flac", noise(9, seed=10)), "long").truncate(offset=3.3, duration=4.05))
    cuts[-1].supervisions[0].start, cuts[-1].supervisions[0].duration = 0.5, 3.0
    for number, cut in enumerate(cuts):
        cut.id = f"clip-{9 - number}"  # no order of names
        cut.custom = {"snr": number, "tags": ["a", "b"]}
        cut.supervisions[0].speaker, cut.supervisions[0].custom = f"speaker {number}", {"licence": "none"}
    return CutSet.from_cuts(cuts)


def test_clips_are_the_same_as_before(tmp_path):
    cuts = list(mixed(tmp_path))
    heard = []
    report = pack(CutSet.from_cuts(cuts), tmp_path / "pack", part_seconds=4, advance=heard.append)
    made = packed(tmp_path / "pack")
    assert heard == [cut.duration for cut in cuts]
    assert [cut.id for cut in made] == [cut.id for cut in cuts]
    for old, new in zip(cuts, made, strict=True):
        before, after = load(old, clip_seconds=30), load(new, clip_seconds=30)
        assert before.text == after.text == old.supervisions[0].text
        assert len(before.audio) == len(after.audio)
        np.testing.assert_allclose(after.audio.numpy(), before.audio.numpy(), rtol=0, atol=HALF_A_STEP)
        assert new.custom == old.custom
        (theirs,), (ours,) = old.supervisions, new.supervisions
        for field in ("id", "start", "text", "speaker", "custom"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.duration == pytest.approx(theirs.duration, abs=0.1)
        validate(new, read_data=True)
    files = sorted((tmp_path / "pack").glob("*.wav"))
    assert (report.clips, report.files, report.left_out) == (7, len(files), ())
    assert len(files) >= 3
    infos = [sf.info(path) for path in files]
    assert {(info.samplerate, info.channels, info.subtype) for info in infos} == {(16_000, 1, "PCM_16")}
    assert report.seconds == pytest.approx(sum(info.frames for info in infos) / 16_000)
    assert report.seconds == pytest.approx(sum(cut.duration for cut in made))
    # Every file but the last was closed at the first clip that reached the limit.
    assert all(4 <= info.duration < 4 + 9 for info in infos[:-1])
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == sorted(
        [MANIFEST, *(path.name for path in files)]
    )


def test_sixteen_bits_stay_as_they_are_and_crops_too(tmp_path):
    cuts = corpus(tmp_path, 4, seconds=lambda i: 3 + 0.7 * i)
    pack(cuts, tmp_path / "pack")
    settings = {"crop": "random", "clip_seconds": 1.5, "augment": {"speed": 0.5, "gain": 1, "eq": 1}}
    for old, new in zip(cuts, packed(tmp_path / "pack"), strict=True):
        for epoch in range(4):
            before, after = (
                load_clip(cut, config(**settings), output_sample_rate=16_000, seed=1, epoch=epoch) for cut in (old, new)
            )
            assert np.array_equal(before.audio.numpy(), after.audio.numpy())


def test_neighbours_do_not_touch(tmp_path):
    """Each clip holds a level of its own, to its first and last sample."""
    paths = [save(tmp_path / f"{i}.wav", np.full(1000 + 7 * i, 0.1 * (i + 1), np.float32)) for i in range(8)]
    pack(CutSet.from_cuts(map(cut_of, paths)), tmp_path / "pack", part_seconds=0.2)
    made = packed(tmp_path / "pack")
    for number, cut in enumerate(made):
        audio = load(cut, min_seconds=0).audio.numpy()
        assert len(audio) == 1000 + 7 * number
        np.testing.assert_allclose(audio, 0.1 * (number + 1), atol=1e-4)
    for one, other in pairwise(made):
        assert other.start in (0, one.end)


def test_a_higher_rate_and_another_one(tmp_path):
    cut = cut_of(save(tmp_path / "a.wav", noise(1.3, 44_100), 44_100))
    pack(CutSet.from_cuts([cut]), tmp_path / "pack", rate=24_000)
    (made,) = packed(tmp_path / "pack")
    samples, rate = sf.read(made.recording.sources[0].source, dtype="float32")
    assert rate == made.sampling_rate == 24_000
    whole, _ = sf.read(tmp_path / "a.wav", dtype="float32")
    np.testing.assert_allclose(samples, soxr.resample(whole, 44_100, 24_000), rtol=0, atol=HALF_A_STEP)


def test_what_cannot_be_used_is_told_and_left_out(tmp_path):
    cuts = list(corpus(tmp_path, 6))
    (tmp_path / "001.wav").unlink()
    (tmp_path / "002.wav").write_bytes(b"RIFF of no kind")
    sf.write(tmp_path / "004.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    save(tmp_path / "005.wav", noise(1, 8000), 8000)
    report = pack(CutSet.from_cuts(cuts), tmp_path / "pack")
    assert [cut.id for cut in packed(tmp_path / "pack")] == [cuts[0].id, cuts[3].id]
    assert report.clips == 2
    reasons = ("cannot be read", "is not audio", "a NaN or an infinity", "recorded at 8000 Hz, needs 16000 Hz")
    for line, reason, index in zip(report.left_out, reasons, (1, 2, 4, 5), strict=True):
        assert cuts[index].id in line
        assert reason in line
        assert "\n" not in line


@pytest.mark.long
def test_tars_and_two_processes(tmp_path):
    members = []
    for number in range(11):
        sound = encoded(noise(0.7 + 0.05 * number, seed=number), 16_000, ".flac")
        members += [(f"{number:02}.flac", sound), (f"{number:02}.json", emilia(f"{number:02}", 0.7 + 0.05 * number))]
    members[6] = ("03.flac", b"damaged")
    tar = write_tar(tmp_path / "shard.tar", members)
    source = open_source(SourceConfig(path=str(tar)))
    one = pack(source, tmp_path / "one")
    two = pack(source, tmp_path / "two", processes=2)
    assert (one.clips, len(one.left_out)) == (10, 1)
    assert one == two
    assert (tmp_path / "one" / "audio-00000.wav").read_bytes() == (tmp_path / "two" / "audio-00000.wav").read_bytes()
    tar.unlink()
    made = packed(tmp_path / "two")
    assert [load(cut).text for cut in made] == [f"words of {number:02}" for number in range(11) if number != 3]
    assert all(cut.custom is None for cut in made)


def test_a_lossy_file_that_ends_early_keeps_its_text(tmp_path):
    path = save(tmp_path / "a.mp3", noise(2))
    promised = cut_of(path, "all of it")
    actual = promised.duration
    promised.recording.duration = promised.duration = promised.supervisions[0].duration = actual + 0.2
    pack(CutSet.from_cuts([promised]), tmp_path / "pack")
    (made,) = packed(tmp_path / "pack")
    assert made.duration == pytest.approx(actual, abs=1e-3)
    assert load(made, clip_seconds=30).text == load(promised, clip_seconds=30).text == "all of it"
    # But not a text that its cut does not hold whole.
    promised.supervisions[0].duration += 1
    pack(CutSet.from_cuts([promised]), tmp_path / "other")
    assert load(packed(tmp_path / "other")[0], clip_seconds=30).text is None
    assert load(promised, clip_seconds=30).text is None


class Interrupted:
    """A corpus in whose middle someone presses Ctrl-C."""

    def __init__(self, cuts):
        self.cuts = cuts

    def __iter__(self):
        yield from self.cuts
        raise KeyboardInterrupt


def test_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    cuts = corpus(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        pack(Interrupted(cuts), folder / "pack")
    with pytest.raises(ConfigError, match="below the 16000 Hz that codecs read"):
        pack(cuts, folder / "pack", rate=8000)
    with pytest.raises(ConfigError, match=r"none of 2 clips can be packed, first: .*needs 48000 Hz"):
        pack(cuts, folder / "pack", rate=48_000)
    with pytest.raises(ConfigError, match="does not exist"):
        pack(cuts, folder / "nowhere" / "pack")
    assert not list(folder.iterdir())
    (folder / "pack").mkdir()
    with pytest.raises(ConfigError, match="exists already, choose another folder or remove it"):
        pack(cuts, folder / "pack")
    assert not list((folder / "pack").iterdir())


def test_the_command(tmp_path):
    cuts = corpus(tmp_path, 3)
    (tmp_path / "001.wav").unlink()
    (tmp_path / "cuts.jsonl").write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))
    ran = CliRunner().invoke(app, ["data", "pack", f"{tmp_path}/cuts.jsonl", f"{tmp_path}/pack", "-j", "1"])
    assert ran.exit_code == 0
    assert ran.stdout == f"{tmp_path}/pack/cuts.jsonl.gz: 2 clips, 0.00 h in 1 files, 1 left out\n"
    assert ran.stderr.startswith(f"left out: 001.wav: '{tmp_path}/001.wav' cannot be read (No such file")
    assert ran.stderr.count("\n") == 1
    assert len(packed(tmp_path / "pack")) == 2


@pytest.mark.parametrize(("rate", "kbps"), [(16_000, 300), (16_000, 5), (22_050, 16)])
def test_what_opus_does_not_take_is_refused_before_anything_is_made(tmp_path, rate, kbps):
    with pytest.raises(ConfigError, match="Opus takes 6 to 256 kbit/s at 16, 24 or 48 kHz"):
        pack([], tmp_path / "packed", rate=rate, opus_kbps=kbps)
    assert not list(tmp_path.iterdir())
