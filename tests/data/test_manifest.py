import errno
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from corpus import config, noise, save
from lhotse import CutSet

from xycodec.data.clip import load_clip
from xycodec.data.manifest import import_manifest, read_cuts
from xycodec.errors import ConfigError
from xycodec.io.audio import read_audio

SPEECH = Path(__file__).resolve().parents[3] / "shared" / "data" / "speech"


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(audio, **more):
    return {"audio": audio, "duration": 1.0, "speaker": None, "text": None, "language": "de"} | more


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_rows_become_cuts_that_lhotse_itself_reads(tmp_path, name):
    stereo = np.stack([noise(1.5, 44100, 1), noise(1.5, 44100, 2)], axis=1)
    save(tmp_path / "corpus/a b/ü.flac", stereo, 44100)
    save(tmp_path / "corpus/c.opus", noise(0.7, 48000), 48000)
    manifest = write(
        tmp_path / "corpus/train.jsonl",
        [
            row("a b/ü.flac", text="Grüße", speaker="kerstin", source="somewhere", licence="CC0-1.0"),
            row("c.opus", duration=0.7),
        ],
    )
    counted = []
    report = import_manifest(manifest, tmp_path / name, advance=counted.append)
    assert (report.clips, report.with_text, report.left_out, sum(counted)) == (2, 1, (), 2)
    assert report.seconds == pytest.approx(2.2)
    first, second = CutSet.from_file(tmp_path / name)
    assert (first.id, second.id) == ("a b/ü.flac", "c.opus")
    assert (first.sampling_rate, first.num_samples, first.num_channels) == (44100, 66150, 2)
    (words,) = first.supervisions
    assert (words.text, words.speaker, words.language) == ("Grüße", "kerstin", "de")
    assert words.custom == {"source": "somewhere", "licence": "CC0-1.0"}
    assert Path(first.recording.sources[0].source).is_absolute()
    assert first.load_audio().shape == (2, 66150)
    assert (second.sampling_rate, second.num_samples, second.supervisions[0].text) == (48000, 33600, None)
    assert [cut.to_dict() for cut in read_cuts(tmp_path / name)] == [first.to_dict(), second.to_dict()]


def test_audio_that_cannot_be_read_is_left_out_and_listed(tmp_path):
    save(tmp_path / "a.wav", noise(1))
    (tmp_path / "bad.wav").write_bytes(b"no audio at all, " * 50)
    (tmp_path / "empty.wav").touch()
    save(tmp_path / "none.wav", noise(0))
    names = ["gone.wav", "a.wav", "bad.wav", "empty.wav", "none.wav"]
    report = import_manifest(write(tmp_path / "m.jsonl", map(row, names)), tmp_path / "out.jsonl")
    assert report.clips == 1
    assert [name for name, _ in report.left_out] == ["gone.wav", "bad.wav", "empty.wav", "none.wav"]
    assert [
        next(part for part in ("cannot be read", "not audio", "is empty", "no samples") if part in reason)
        for _, reason in report.left_out
    ] == ["cannot be read", "not audio", "is empty", "no samples"]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ("not json\n", "not a JSON object"),
        ("[1, 2]\n", "not a JSON object"),
        ("\n", "not a JSON object"),
        ({"duration": 1.0}, "no audio"),
        ({"audio": "b.wav"}, "no duration"),
        (row(7), "audio is 7"),
        (row("b.wav", duration="1"), "duration is '1'"),
        (row("b.wav", duration=True), "duration is True"),
        (row("b.wav", duration=-1), "duration is -1"),
        ('{"audio": "b.wav", "duration": NaN}\n', "duration is nan"),
        (row("b.wav", text=["a"]), "text is ['a']"),
        (row("b.wav", speaker=3), "speaker is 3"),
        (row("a.wav"), "'a.wav' is also on line 1"),
    ],
)
def test_a_row_that_is_not_valid_is_named_by_file_and_line(tmp_path, second, problem):
    save(tmp_path / "a.wav", noise(1))
    manifest = write(tmp_path / "m.jsonl", [row("a.wav"), second])
    with pytest.raises(ConfigError) as caught:
        import_manifest(manifest, tmp_path / "out.jsonl")
    assert str(caught.value).startswith(f"{manifest}:2: {problem}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "m.jsonl"]


@pytest.mark.parametrize(("rows", "problem"), [([], "it is empty"), ([row("gone.wav")], "none of its 1 clips")])
def test_nothing_left_is_an_error(tmp_path, rows, problem):
    with pytest.raises(ConfigError, match=problem):
        import_manifest(write(tmp_path / "m.jsonl", rows), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_manifest_a_wrong_suffix_and_a_missing_folder(tmp_path):
    manifest = write(tmp_path / "m.jsonl", [row("a.wav")])
    with pytest.raises(ConfigError, match=r"none\.jsonl:1: cannot be read \(No such file"):
        import_manifest(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match=r"out\.csv: cuts are written to \.jsonl or \.jsonl\.gz"):
        import_manifest(manifest, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="is not a folder"):
        import_manifest(manifest, tmp_path / "none" / "out.jsonl")


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    save(tmp_path / "a.wav", noise(1))
    target = write(tmp_path / "out.jsonl", ["old"])

    def full(clips):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device"):
        import_manifest(write(tmp_path / "m.jsonl", [row("a.wav")]), target, advance=full)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not a line of JSON"),
        (json.dumps(row("a.wav")), "not yet a manifest of cuts: convert it with xycodec data import"),
        ('{"id": "a", "sources": [], "sampling_rate": 1, "num_samples": 1, "duration": 1}', "recordings, not cuts"),
        ('{"id": "a", "recording_id": "a", "start": 0, "duration": 1}', "not a cut but a SupervisionSegment"),
        ('{"type": "MonoCut", "id": "a"}', "not a Lhotse cut"),
        ("7", "not a Lhotse cut"),
    ],
)
def test_a_line_that_is_no_cut_is_named(tmp_path, line, problem):
    save(tmp_path / "a.wav", noise(1))
    path = tmp_path / "cuts.jsonl"
    import_manifest(write(tmp_path / "m.jsonl", [row("a.wav")]), path)
    path.write_text(path.read_text() + line + "\n")
    cuts = read_cuts(path)
    assert next(cuts).id == "a.wav"
    with pytest.raises(ConfigError) as caught:
        next(cuts)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)


def test_a_compressed_manifest_that_breaks_off_or_is_none(tmp_path):
    save(tmp_path / "a.wav", noise(1))
    path = tmp_path / "cuts.jsonl.gz"
    import_manifest(write(tmp_path / "m.jsonl", [row("a.wav")]), path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match=r"cuts\.jsonl\.gz:\d+: cannot be read"):
        list(read_cuts(path))
    path.write_bytes(b"plain text")
    with pytest.raises(ConfigError, match=r"cuts\.jsonl\.gz:1: cannot be read"):
        list(read_cuts(path))


@pytest.mark.speech
@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not at ../shared/data/speech")
def test_the_shared_corpus(tmp_path):
    report = import_manifest(SPEECH / "dev.jsonl", tmp_path / "dev.jsonl.gz")
    rows = [json.loads(line) for line in (SPEECH / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (report.clips, report.left_out) == (len(rows), ())
    assert report.with_text == sum(bool(row["text"]) for row in rows)
    assert report.seconds == pytest.approx(sum(row["duration"] for row in rows), abs=0.01 * len(rows))
    with gzip.open(tmp_path / "dev.jsonl.gz", "rt", encoding="utf-8") as file:
        assert sum(1 for _ in file) == len(rows)
    for cut, row in zip(list(read_cuts(tmp_path / "dev.jsonl.gz"))[::25], rows[::25], strict=True):
        clip = load_clip(cut, config(clip_seconds=60), output_sample_rate=16000, seed=0, epoch=0)
        np.testing.assert_allclose(clip.audio, read_audio(SPEECH / row["audio"]), atol=1e-6)
        assert clip.text == (row["text"] or None)
