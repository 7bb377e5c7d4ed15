import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from published_layout import tiny_config
from xycodec.audio import read_audio
from xycodec.bitstream import CodecFile
from xycodec.errors import CheckpointError, ConfigError, XycodecError
from xycodec.eval.measure import measure as measure_all
from xycodec.pretrained import load_codec, random_codec, save_codec
from xycodec.transcode import roundtrip_file

SCRIPT = Path(__file__).parents[2] / "runs" / "measure.py"
measure = partial(measure_all, threads=1)  # pytest -n has the other cores
METRICS = ("stoi", "pesq_wb", "pesq_nb", "mel_distance")
CLIPS = {"one/test/a.flac": (16_000, 20_001), "one/train/b.flac": (22_050, 30_000), "two/c.flac": (16_000, 3000)}


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """The folder of a codec that computes in milliseconds."""
    return str(save_codec(random_codec(tiny_config(window_frames=375)), tmp_path_factory.mktemp("codec") / "tiny"))


@pytest.fixture
def manifest(tmp_path):
    """Noise of 1.25 s and of 1.36 s, and 0.19 s that neither STOI nor PESQ takes."""
    return write_clips(tmp_path)


def write_clips(folder):
    rows = []
    for seed, (name, (rate, samples)) in enumerate(CLIPS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.random.default_rng(seed).uniform(-0.3, 0.3, samples), rate)
        rows.append({"audio": name, "duration": samples / rate, "speaker": f"speaker {seed}", "text": "Noise."})
    return write(folder / "dev.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_clips_are_measured_as_a_round_trip_measures_them(manifest, tmp_path):
    heard = []
    measured = measure("xy-random", manifest, advance=heard.append)
    codec, files = load_codec("xy-random"), {}
    assert (measured.model, measured.manifest, measured.failed) == ("xy-random", str(manifest), ())
    assert {clip.audio for clip in measured.clips} == set(CLIPS)
    assert sum(heard) == pytest.approx(sum(samples / rate for rate, samples in CLIPS.values()))
    for number, clip in enumerate(measured.clips):
        codes, decoded = str(tmp_path / f"{number}.xyc"), str(tmp_path / f"{number}.wav")
        expected = roundtrip_file(codec, str(tmp_path / clip.audio), codes, decoded)
        files[clip.audio] = CodecFile.read(codes)
        assert clip.quality == expected.quality
        assert clip.seconds == len(read_audio(tmp_path / clip.audio)) / 16_000
        assert clip.bytes == expected.encoded.bytes
        assert clip.group == clip.audio.rpartition("/")[0]
        assert (clip.speaker, clip.text) == (f"speaker {list(CLIPS).index(clip.audio)}", "Noise.")
    for layer, use in enumerate(measured.codebooks):
        codes, counts = np.unique(np.concatenate([file.codes[layer] for file in files.values()]), return_counts=True)
        share = counts / counts.sum()
        assert use.used == pytest.approx(len(codes) / 1024)
        assert use.entropy_bits == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-5)
    assert len(measured.codebooks) == 8


def test_groups_are_folders_and_all(codec, manifest):
    measured = measure(codec, manifest)
    assert list(measured.groups) == ["one/test", "one/train", "two", "all"]
    best, worst, short = measured.clips
    assert best.quality.stoi >= worst.quality.stoi
    assert (short.audio, short.quality.stoi) == ("two/c.flac", None)
    assert measured.groups["two"].means == {
        "stoi": None, "pesq_wb": None, "pesq_nb": None, "mel_distance": short.quality.mel_distance,
    }  # fmt: skip
    whole = measured.groups["all"]
    assert whole.clips == 3
    assert whole.means["stoi"] == pytest.approx((best.quality.stoi + worst.quality.stoi) / 2)
    distances = [clip.quality.mel_distance for clip in measured.clips]
    assert whole.means["mel_distance"] == pytest.approx(sum(distances) / 3)
    assert whole.encode_speed == pytest.approx(whole.seconds / sum(clip.encode_s for clip in measured.clips))
    assert whole.decode_speed == pytest.approx(whole.seconds / sum(clip.decode_s for clip in measured.clips))
    assert measured.unmeasured == {
        ("stoi", "under 0.41 s of speech"): 1, ("pesq_wb", "under 0.25 s"): 1, ("pesq_nb", "under 0.25 s"): 1,
    }  # fmt: skip


def test_clips_that_cannot_be_read_are_named(codec, manifest, tmp_path):
    (tmp_path / "two/c.flac").write_text("no audio")
    measured = measure(codec, manifest)
    ((audio, reason),) = measured.failed
    assert audio == "two/c.flac"
    assert "not audio" in reason
    assert measured.groups["all"].clips == 2


def test_the_script_in_two_processes_prints_and_writes_what_one_finds(codec, manifest, tmp_path):
    rows = [*map(json.loads, manifest.read_text().splitlines()), {"audio": "two/missing.flac", "duration": 1.0}]
    write(manifest, rows)
    command = [sys.executable, str(SCRIPT), codec, str(manifest), "--json", str(tmp_path / "out.json"), "--jobs", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: two/missing.flac: ")
    assert ran.returncode == 1
    report, alone = json.loads((tmp_path / "out.json").read_text()), measure(codec, manifest)
    assert (report["model"], report["processes"]) == ("tiny", 2)
    for row, clip in zip(report["clips"], alone.clips, strict=True):
        assert row["audio"] == clip.audio
        assert "quality" not in row
        assert {name: row[name] for name in METRICS} == {name: getattr(clip.quality, name) for name in METRICS}
    for name, summary in alone.groups.items():
        assert report["groups"][name]["means"] == summary.means
        row = next(line for line in ran.stdout.splitlines() if line.startswith(f"│ {name} "))
        assert f"{summary.means['mel_distance']:.3f}" in row
    assert [book["used"] for book in report["codebooks"]] == [book.used for book in alone.codebooks]
    assert "STOI lacks 1 of 3 clips: under 0.41 s of speech" in ran.stdout


@pytest.mark.parametrize(("limit", "kept"), [(1, [0]), (3, [0, 2, 4]), (6, range(6)), (9, range(6))])
def test_a_limit_takes_clips_from_all_over_the_manifest(codec, tmp_path, limit, kept):
    names = [f"{index}.flac" for index in range(6)]
    for name in names:
        sf.write(tmp_path / name, np.full(500, 0.1), 16_000)
    manifest = write(tmp_path / "six.jsonl", [{"audio": name, "duration": 0.03} for name in names])
    measured = measure(codec, manifest, limit=limit)
    assert sorted(clip.audio for clip in measured.clips) == [names[index] for index in kept]


def test_a_manifest_without_a_clip_that_can_be_measured(codec, manifest, tmp_path):
    for name in CLIPS:
        (tmp_path / name).unlink()
    with pytest.raises(XycodecError, match="no clip could be measured, first: "):
        measure(codec, manifest)
    with pytest.raises(ConfigError):
        measure(codec, tmp_path / "missing.jsonl")
    with pytest.raises(XycodecError, match="empty"):
        measure(codec, write(tmp_path / "empty.jsonl", []), processes=2)
    with pytest.raises(CheckpointError):
        measure("nothing", manifest)
