import json
from dataclasses import replace

import numpy as np
import pytest
import soxr
import torch
from lhotse import SupervisionSegment
from tests.data.corpus import cut_of, noise, save
from tests.judging import save_whisper
from typer.testing import CliRunner

from xycodec.cli.app import app
from xycodec.data.manifest import open_text, read_cuts
from xycodec.errors import ConfigError
from xycodec.eval.judges.recognition import Transcript, load_transcriber
from xycodec.eval.transcribe import JOURNAL, TRANSCRIBED_BY, transcribe_cuts


class Ears:
    """A recogniser that hears how many samples a clip has, and notes what it is given."""

    about, shortest, batch_size, normaliser, spellings = "ears, one pair", 400, 2, "plain", {}
    languages = frozenset({"en", "de"})

    def __init__(self, answer=lambda clip: Transcript(f"{len(clip)} samples"), fail_at=None):
        self.answer, self.fail_at, self.heard = answer, fail_at, []

    def __call__(self, clips, languages):
        assert len(clips) <= self.batch_size
        if self.fail_at is not None and len(self.heard) >= self.fail_at:
            raise KeyboardInterrupt
        self.heard += zip(map(len, clips), languages, strict=True)
        return [self.answer(clip) for clip in clips]


def spoken(cut, **words):
    """The cut with one supervision over all of it."""
    return replace(cut, supervisions=[SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, **words)])


@pytest.fixture
def cuts(tmp_path):
    """Clips of 0.5 to 0.9 s: English, German, English with a text, without a language, English at 8 kHz."""
    made = []
    for number, (rate, words) in enumerate(
        [
            (16_000, {"language": "en", "speaker": "ann", "custom": {"licence": "CC0-1.0"}}),
            (16_000, {"language": "de"}),
            (16_000, {"language": "en", "text": "said already"}),
            (16_000, {}),
            (8000, {"language": "English", "text": " "}),
        ]
    ):
        path = tmp_path / f"{number}.wav"
        save(path, noise(0.5 + 0.1 * number, rate, seed=number), rate)
        made.append(spoken(cut_of(path), **words))
    return made


def resampled(cut):
    audio = cut.load_audio()[0]
    return audio if cut.sampling_rate == 16_000 else soxr.resample(audio, cut.sampling_rate, 16_000)


def run(cuts, target, ears=None, **settings):
    return transcribe_cuts(cuts, ears or Ears(), target, name="acme/ears", **settings)


def texts(path):
    return [cut.supervisions[0].text for cut in read_cuts(path)]


def test_clips_of_the_language_without_text_get_one(tmp_path, cuts):
    ears, told = Ears(), []
    report = run(cuts, tmp_path / "out.jsonl.gz", ears, advance=told.append)
    assert texts(tmp_path / "out.jsonl.gz") == ["8000 samples", None, "said already", None, "14400 samples"]
    assert ears.heard == [(8000, "en"), (14_400, "en")]  # the second one was at 8 kHz
    assert (report.clips, report.transcribed, report.made, report.left_out) == (5, 2, 2, ())
    assert report.seconds == pytest.approx(0.5 + 0.9)
    assert told == [cut.duration for cut in cuts]


def test_a_machine_s_text_is_marked_and_all_else_kept(tmp_path, cuts):
    run(cuts, tmp_path / "out.jsonl")
    for before, after in zip(cuts, read_cuts(tmp_path / "out.jsonl"), strict=True):
        changed = after.id in (cuts[0].id, cuts[4].id)
        assert (after.custom or {}) == ({TRANSCRIBED_BY: "acme/ears"} if changed else {})
        words = replace(after.supervisions[0], text=before.supervisions[0].text)
        assert replace(after, custom=None, supervisions=[words]).to_dict() == before.to_dict()


def test_another_language(tmp_path, cuts):
    run(cuts, tmp_path / "out.jsonl", language="German")
    assert texts(tmp_path / "out.jsonl") == [None, "9600 samples", "said already", None, " "]
    with pytest.raises(ConfigError, match="acme/ears: knows no language 'fr'"):
        run(cuts, tmp_path / "fr.jsonl", language="fr")


@pytest.mark.parametrize(
    ("transcript", "why"),
    [
        (Transcript("a a a a", looped=True), "the recogniser looped"),
        (Transcript(""), "too little is heard for its 0.5 s: ''"),
        (Transcript("hm"), "too little is heard for its 0.5 s: 'hm'"),
    ],
)
def test_what_is_in_doubt_is_no_text(tmp_path, cuts, transcript, why):
    ears = Ears(lambda clip: transcript if len(clip) == 8000 else Transcript("fine here"))
    report = run(cuts, tmp_path / "out.jsonl", ears)
    assert texts(tmp_path / "out.jsonl") == [None, None, "said already", None, "fine here"]
    assert report.left_out == (f"{cuts[0].id}: {why}",)
    assert report.transcribed == 1


def test_what_cannot_be_heard_is_left_without_text(tmp_path, cuts):
    (tmp_path / "0.wav").unlink()
    save(tmp_path / "4.wav", np.zeros(100), 8000)
    cuts[4] = spoken(cut_of(tmp_path / "4.wav"), language="en")
    report = run(cuts, tmp_path / "out.jsonl")
    assert texts(tmp_path / "out.jsonl") == [None, None, "said already", None, None]
    assert len(report.left_out) == 2
    assert "cannot be read" in report.left_out[0]
    assert "shorter than the 400 samples" in report.left_out[1]


def test_a_call_goes_on_where_another_was_interrupted(tmp_path, cuts):
    many = [spoken(cut_of(tmp_path / f"{n % 4}.wav", name=f"clip {n}"), language="en") for n in range(7)]
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(many, whole)
    with pytest.raises(KeyboardInterrupt):
        run(many, target, Ears(fail_at=4))
    assert not target.exists()
    ears = Ears()
    report = run(many, target, ears)
    assert len(ears.heard) == report.made == 3
    assert report.transcribed == 7
    assert target.read_text() == whole.read_text()
    again = Ears()
    assert run(many, target, again).made == len(again.heard) == 0
    assert target.read_text() == whole.read_text()


def test_other_settings_or_cuts_are_told(tmp_path, cuts):
    target = tmp_path / "out.jsonl"
    run(cuts, target)
    with pytest.raises(ConfigError, match="begun with another recogniser or language"):
        run(cuts, target, language="de")
    with pytest.raises(ConfigError, match=f"begun with other cuts, with {cuts[0].id}"):
        run(cuts[1:], target)
    with pytest.raises(ConfigError, match=r"written to \.jsonl"):
        run(cuts, tmp_path / "out.txt")
    more = [*cuts, spoken(cut_of(tmp_path / "0.wav", name="late"), language="en")]
    assert run(more, target).made == 1


def test_the_command(tmp_path, cuts):
    """The command with a random Whisper of English alone."""
    torch.manual_seed(0)
    folder, source, target = tmp_path / "whisper", tmp_path / "cuts.jsonl.gz", tmp_path / "out.jsonl.gz"
    folder.mkdir()
    save_whisper(folder, multilingual=False)
    with open_text(source, "wt") as file:
        file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
    command = ["data", "transcribe", str(source), str(target), "--recogniser", str(folder), "--device", "cpu"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    ears = load_transcriber(str(folder), "cpu")
    heard = {n: ears([resampled(cuts[n])], ["en"])[0] for n in (0, 4)}
    kept = {
        n: one.text for n, one in heard.items() if len(one.text.encode()) >= 6 * cuts[n].duration and not one.looped
    }
    assert texts(target) == [kept.get(0), None, "said already", None, kept.get(4, " ")]
    assert len(kept) > 0
    assert f"5 clips, {len(kept)} of them with a text of {folder} (2 heard now)" in ended.stdout.replace("\n", "")
    assert ended.stderr.count("without text: ") == 2 - len(kept)
    assert target.with_name(target.name + JOURNAL).is_file()
