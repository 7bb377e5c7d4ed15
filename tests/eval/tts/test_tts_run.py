import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from tests.reference import tiny_config
from tests.talking import Babbler, Ear, Lengths, make_utterances, write_speech

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError, ConfigError, XycodecError
from xycodec.eval.judges.recognition import Recognition
from xycodec.eval.results import Evaluation, pooled
from xycodec.eval.tts.run import audio_file, evaluate_tts
from xycodec.eval.tts.speech import Setting
from xycodec.io.audio import read_audio
from xycodec.io.journal import Journal
from xycodec.models.longform import decode_long, encode_long

PROMPT = 48_000  # samples
FRAMES = 37  # whole ones in 3 s, at 12.5 a second
HOP = 1280


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    codec = random_codec(tiny_config(model_id="tiny"))
    return codec, str(save_codec(codec, tmp_path_factory.mktemp("codec") / "tiny"))


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    return make_utterances(tmp_path_factory.mktemp("speech"))


def with_model(place):
    (place / "model").mkdir(parents=True)
    (place / "model/weights").write_text("1")
    return place


@pytest.fixture
def home(tmp_path):
    return with_model(tmp_path / "home")


@pytest.fixture(scope="module")
def finished(codec, utterances, tmp_path_factory):
    """A run of two seeds, what it gave, and what its model was asked."""
    place, model = with_model(tmp_path_factory.mktemp("finished") / "home"), Babbler(codec[0])
    return place, run(codec, utterances, place, model, seeds=(0, 5)), model.told


@pytest.fixture
def copied(finished, tmp_path):
    """The same run, to go on with."""
    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


def run(codec, utterances, home, model=None, **changes):
    model = model or Babbler(codec[0])
    settings = {"judges": [Recognition(Ear()), Lengths()], "codecs": [codec[1]], "device": "cpu", "seeds": (0,)}
    settings |= {"models": {"babbler": home / "model"}, "load": lambda path: model, **changes}
    return evaluate_tts(utterances, home / "run", **settings)


def section(result, title):
    (found,) = (one for one in result.sections if one.title == title)
    return [dict(zip(found.heads, row, strict=True)) for row in found.rows]


def by_name(result):
    return {row.name: row for row in result.codecs}


# ---- what is said, and what is heard -------------------------------------------------------------


def test_every_row_says_what_it_should(codec, utterances, finished):
    home, result, told = finished
    names = ["original", "babbler", "babbler-ar", "babbler-roundtrip", "babbler-roundtrip-1"]
    assert [row.name for row in result.codecs] == names
    assert told == [
        (one.text, None, (4, FRAMES), seed, False) for seed in (0, 5) for one in utterances
    ]  # one draw for both stages
    file_of = audio_file(home / "run")
    one = utterances[1]
    true = read_audio(one.audio)
    prompt = encode_long(codec[0], true[: FRAMES * HOP])
    spoken = Babbler(codec[0]).speak(one.text, prompt_codes=prompt, seed=0).codes
    whole = encode_long(codec[0], true)
    expected = {
        "babbler": decode_long(codec[0], torch.cat([prompt, spoken], dim=1)),
        "babbler-ar": decode_long(codec[0], torch.cat([prompt[:1], spoken[:1]], dim=1)),
        "babbler-roundtrip": decode_long(codec[0], whole, num_samples=len(true)),
        "babbler-roundtrip-1": decode_long(codec[0], whole[:1], num_samples=len(true)),
    }
    written = {name: read_audio(file_of(name, "u1")) for name in names}
    np.testing.assert_array_equal(written["original"], true)
    for name, audio in expected.items():
        # Files have 16 bits.
        np.testing.assert_allclose(written[name], audio.numpy().clip(-1, 1), atol=1e-4)
    assert len({audio.tobytes() for audio in written.values()}) == len(names)
    assert file_of("babbler", "u1").parts[-3:] == ("seed-0", "audio", "u1.flac")
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_words_are_of_the_whole_and_voices_of_what_follows_the_prompt(finished):
    rows = by_name(finished[1])
    own = 30 * HOP  # ten frames for each of three words
    for name, length, part in (
        ("original", 57_600, 57_600 - PROMPT),
        ("babbler-roundtrip", 57_600, 57_600 - PROMPT),
        ("babbler", FRAMES * HOP + own, own),
        ("babbler-ar", FRAMES * HOP + own, own),
    ):
        for clip in rows[name].clips:
            assert clip.scores.transcript.startswith(f"a word {length // 1600}")
            assert clip.scores.values["similarity"] == pytest.approx(part // 16 + PROMPT // 16 / 1e6)
    clip = rows["original"].clips[0]
    assert (clip.clip, clip.speaker, clip.text, clip.seconds) == ("u0", "s0", "A WORD 0", 3.6)


def test_another_utterance_as_prompt(codec, utterances, home):
    model = Babbler(codec[0])
    result = run(codec, utterances, home, model, setting=Setting.cross, seeds=(1,))
    assert model.told == [(one.text, "HELLO", (4, 13), 1, False) for one in utterances]
    rows = by_name(result)
    for name, length in (("babbler", 30 * HOP), ("original", 57_600)):
        assert rows[name].clips[0].scores.transcript.startswith(f"a word {length // 1600}")
        assert rows[name].clips[0].scores.values["similarity"] == pytest.approx(length // 16 + 1000 / 1e6)
    assert [one.title for one in result.sections] == ["Speech", "Seeds"]  # no paper's values compare
    assert result.warnings == ()
    assert "cross" in result.protocol["setting (our choice where the paper is silent)"]


def test_the_first_codebook_alone_and_a_model_of_fewer(codec, utterances, home):
    model = Babbler(codec[0])
    result = run(codec, utterances[:1], home, model, first_codebook_only=True, seeds=(0,))
    assert [row.name for row in result.codecs][1:] == ["babbler-ar", "babbler-roundtrip", "babbler-roundtrip-1"]
    assert model.told == [(utterances[0].text, None, (4, FRAMES), 0, True)]
    fewer = Babbler(codec[0], n_q=2)
    fewer.codec = type("Identity", (), {"n_q": 2})
    (home / "two").mkdir()
    run(codec, utterances[:1], home / "two", fewer, models={"babbler": home / "model"}, seeds=(0,))
    assert fewer.told[0][2] == (2, FRAMES)


# ---- seeds, and what goes wrong in speech ----------------------------------------------------------


def test_values_are_means_over_seeds_whose_spread_is_told(codec, utterances, finished):
    _, result, _ = finished
    row = by_name(result)["babbler"]
    alone = [Journal(finished[0] / f"run/babbler/seed-{seed}/scores.jsonl").rows() for seed in (0, 5)]
    rates = [[one["scores"]["values"]["wer"] for one in rows if "wer" in one["scores"]["values"]] for rows in alone]
    values = [fmean(of_seed) for of_seed in rates]  # both texts have three words
    assert values[0] != values[1]
    for number, clip in enumerate(row.clips):
        assert clip.scores.values["wer"] == pytest.approx(fmean(of_seed[number] for of_seed in rates))
    assert pooled(row.clips, "wer") == pytest.approx(fmean(values))
    (told,) = (one for one in section(result, "Seeds") if (one["speech"], one["metric"]) == ("babbler: AR+NAR", "WER"))
    assert told["seeds' values"] == ", ".join(f"{value:.3f}" for value in values)
    assert (told["mean"], told["spread"]) == (f"{fmean(values):.3f}", f"{stdev(values):.3f}")


def test_empty_speech_misses_every_word_and_stays(codec, utterances, home):
    one, two = utterances
    said = [replace(one, text="NOTHING AT ALL"), replace(two, text="ENDLESS TALK")]
    model = Babbler(codec[0])
    result = run(codec, said, home, model, seeds=(0, 5))
    empty = by_name(result)["babbler-ar"].clips[0]
    assert empty.error is None
    assert {name: empty.scores.values[name] for name in ("wer", "wer_capped", "cer")} == dict.fromkeys(
        ("wer", "wer_capped", "cer"), 1.0
    )
    assert empty.scores.weights["wer"] == 3
    assert empty.scores.missing == {"similarity": "empty speech: 'NOTHING AT ALL': nothing was spoken with 5 seeds"}
    (row,) = (line for line in section(result, "Speech") if line["speech"] == "babbler: AR+NAR")
    assert list(row.values())[1:] == ["0, 5", "4", "2", "5", "2", "0"]
    told = len(model.told)
    assert run(codec, said, home, model, seeds=(0, 5)) == result
    assert len(model.told) == told
    assert {one["spread"] for one in section(run(codec, said, home, model), "Seeds")} == {"-"}


def test_what_a_model_cannot_speak_is_told_and_tried_again(codec, utterances, home):
    said = [replace(utterances[0], text="# IS NO LETTER"), utterances[1]]
    model = Babbler(codec[0])
    result = run(codec, said, home, model, seeds=(0,))
    for name in ("babbler", "babbler-ar"):
        assert "the symbol '#' is not in the model's table" in by_name(result)[name].clips[0].error
    assert by_name(result)["original"].clips[0].error is None
    told = len(model.told)
    run(codec, said, home, model, seeds=(0,))
    assert model.told[told:] == [(said[0].text, None, (4, FRAMES), 0, False)]


def test_no_frames_are_empty_speech(codec, utterances, home):
    result = run(codec, utterances[:1], home, Babbler(codec[0], frames=0))
    assert by_name(result)["babbler"].clips[0].scores.missing["similarity"].startswith("empty speech")


# ---- going on ------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_killed(codec, utterances, finished, copied):
    for journal in (copied / "run").rglob("*.jsonl"):
        if journal.name != "test.jsonl":
            journal.write_bytes(journal.read_bytes()[:-9])
    model = Babbler(codec[0])
    again = run(codec, utterances, copied, model, seeds=(0, 5))
    at_home = [replace(row, model=row.model.replace(str(copied), str(finished[0]))) for row in again.codecs]
    assert replace(again, codecs=tuple(at_home)) == finished[1]
    assert len(model.told) == 2  # the last utterance of both seeds
    # Later calls may add seeds and judges.
    model.told.clear()
    more = run(codec, utterances, copied, model, seeds=(0, 5, 7), judges=[Lengths()])
    assert {seed for *_, seed, _ in model.told} == {7}
    assert more.metrics == ("similarity",)


def test_a_new_text_is_spoken_anew(codec, utterances, copied):
    model = Babbler(codec[0])
    changed = [replace(utterances[0], text="ANOTHER"), *utterances[1:]]
    result = run(codec, changed, copied, model)
    assert [text for text, *_ in model.told] == ["ANOTHER"]
    assert by_name(result)["babbler"].clips[0].scores.weights["wer"] == 1


# ---- files that were made elsewhere ----------------------------------------------------------------


def test_files_made_elsewhere_need_no_model(utterances, home, tmp_path):
    write_speech(home / "made/u0.wav", 3.5, 40)
    judges = [Recognition(Ear()), Lengths()]
    result = evaluate_tts(utterances, home / "run", generated={"elsewhere": home / "made"}, judges=judges)
    assert [row.name for row in result.codecs] == ["original", "elsewhere"]
    made = by_name(result)["elsewhere"].clips
    assert made[0].scores.values["similarity"] == pytest.approx(500 + 3000 / 1e6)
    assert made[0].scores.transcript.startswith("a word 35")
    assert "u1.*: there is no generated file of this name" in made[1].error
    assert [one.title for one in result.sections] == ["Speech", "Calibration"]
    write_speech(home / "made/u1.wav", 2.0, 3)
    with pytest.raises(XycodecError, match="elsewhere holds speech of other weights"):
        evaluate_tts(utterances, home / "run", generated={"elsewhere": home / "made"}, judges=judges)
    again = evaluate_tts(utterances, tmp_path / "run", generated={"elsewhere": home / "made"}, judges=judges)
    assert "no longer than the prompt" in by_name(again)["elsewhere"].clips[1].error


# ---- true speech as a paper has it -------------------------------------------------------------------


def test_calibration_that_is_off_is_a_warning(utterances, home):
    write_speech(home / "made/u0.wav", 4, 0)

    def calibrated(name, value):
        length = (57_600 - PROMPT) // 16 + PROMPT // 16 / 1e6
        judges = [Lengths(value / length)]
        return evaluate_tts(utterances[:1], home / name, generated={"made": home / "made"}, judges=judges)

    near, far = calibrated("near", 0.68), calibrated("far", 0.70)
    assert near.warnings == ()
    (warning,) = far.warnings
    assert warning.startswith("true speech has SIM 0.700, published is 0.67")
    verdicts = [[row["verdict"] for row in section(one, "Calibration")] for one in (near, far)]
    assert verdicts == [["-", "holds", "-"], ["-", "off", "-"]]


# ---- one line each -----------------------------------------------------------------------------------


def test_one_line_each(codec, utterances, home):
    with pytest.raises(XycodecError, match="nothing to judge by"):
        run(codec, utterances, home, judges=[])
    with pytest.raises(XycodecError, match="no utterance to speak"):
        run(codec, [], home)
    with pytest.raises(XycodecError, match="nothing to evaluate: give --model or --generated"):
        run(codec, utterances, home, models={})
    with pytest.raises(XycodecError, match="seeds must be given, each once"):
        run(codec, utterances, home, seeds=(1, 1))
    with pytest.raises(XycodecError, match="original: name each model once"):
        run(codec, utterances, home, models={"original": home / "model"})
    with pytest.raises(XycodecError, match="a b: name each model once, in letters"):
        run(codec, utterances, home, models={"a b": home / "model"})
    bare = [replace(one, prompt_audio=None, prompt_text=None) for one in utterances]
    with pytest.raises(ConfigError, match="u0: has no prompt_audio and prompt_text, which the setting cross needs"):
        run(codec, bare, home, setting=Setting.cross)
    other = Babbler(codec[0])
    other.codec_hash = "0" * 16
    with pytest.raises(CheckpointError, match=r"its codec cannot be had .*give it by --codec"):
        run(codec, utterances, home, other)
    other.codec_name = codec[1]
    with pytest.raises(CheckpointError, match=r"speaks codes of another .* and not 0000000000000000"):
        run(codec, utterances, home, other)
    assert not (home / "run").exists()
    lost = [replace(one, audio="no/such.wav") for one in utterances]
    with pytest.raises(XycodecError, match="none of the 2 recordings can be read"):
        run(codec, lost, home)


def test_a_folder_holds_one_evaluation(codec, utterances, copied):
    home = copied
    with pytest.raises(XycodecError, match="with other utterances"):
        run(codec, utterances[:1], home)
    with pytest.raises(XycodecError, match="with other setting"):
        run(codec, utterances, home, setting=Setting.cross)
    with pytest.raises(XycodecError, match="similarity was scored by"):
        run(codec, utterances, home, judges=[Lengths(2.0)])
    (home / "model/weights").write_text("2")
    with pytest.raises(XycodecError, match=r"babbler: .* holds speech of other weights"):
        run(codec, utterances, home)
