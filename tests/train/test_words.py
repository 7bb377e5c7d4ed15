"""Word errors of decoded validation clips: which clips are heard, against what, and that nothing else changes them."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soxr
import torch
from tests.judging import noisy, save_whisper, speech
from tests.training import RATE, batch, pretraining, recipe, two_processes
from tests.training_runs import (
    assert_same_lines,
    lines_of,
    post_settings,
    settings,
    write_corpus,
    write_recipe,
    xycodec,
)

from xycodec.data.clip import Clip
from xycodec.errors import CheckpointError, ConfigError
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.judges.recognition import Whisper
from xycodec.nn.mean import Mean
from xycodec.train.config import EngineConfig, ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.stage import Measured, Stage
from xycodec.train.validate import validate
from xycodec.train.words import WordJudge

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    torch.manual_seed(5)  # one that repeats itself now and then, and writes too much
    return save_whisper(tmp_path_factory.mktemp("whisper"))


def clip(number, text=None, language="en", rate=RATE):
    """Parts of one recording, each of its own length; the target is the same sound at `rate`."""
    audio = noisy(speech()[: 9000 + 2000 * number], 0.01 * 2**number, seed=number)
    time = np.arange(len(audio) * rate // RATE) / rate
    target = np.interp(time, np.arange(len(audio)) / RATE, audio).astype(np.float32)
    return Clip(f"clip {number}", torch.from_numpy(audio), torch.from_numpy(target), text, None, language)


CLIPS = tuple(clip(n, None if n % 2 else "an ant", "de" if n > 3 else "en") for n in range(7))


class Echo:
    """A stage that decodes a clip to less of it."""

    words_name = "asr_wer"
    recipe = None
    silence = Stage.silence

    def __init__(self, rate=RATE):
        self.output_sample_rate = rate

    def measure(self, heard, *, transcribe):
        return Measured({"mel": Mean(heard.target.abs().sum()[None], torch.ones(1))}, audio=heard.target * 0.5)

    def loss(self, values):
        return values["mel"]


def pairs(clips):
    return [
        (one.id, Pair(0.5 * one.audio.numpy(), one.audio.numpy(), one.text, one.language))
        for one in clips
    ]  # fmt: skip


# ---- the judge -------------------------------------------------------------------------------------


def test_clips_count_as_in_an_evaluation_and_originals_are_heard_once(whisper, tmp_path, monkeypatch):
    judge = make_judges(recogniser=str(whisper), device="cpu")[0]
    expected = []
    for _, pair in pairs(CLIPS):
        heard = judge([replace(pair, decoded=pair.original)])[0].transcript
        expected += judge([replace(pair, heard=None if pair.text else heard)])
    assert len({one.transcript for one in expected}) > 2
    first = WordJudge(str(whisper), tmp_path, CPU)
    assert first(pairs(CLIPS)) == expected
    rows = [json.loads(line) for line in (tmp_path / "references.jsonl").read_text().splitlines()]
    assert [row["clip"] for row in rows] == ["clip 1", "clip 3", "clip 5"]
    # Killed while it wrote, and begun again: the last original is heard again, and no other.
    file = tmp_path / "references.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again, heard, call = WordJudge(str(whisper), tmp_path, CPU), [], Whisper.__call__
    monkeypatch.setattr(Whisper, "__call__", lambda self, clips, told: heard.extend(clips) or call(self, clips, told))
    assert again(pairs(CLIPS)) == expected
    assert len(heard) == len(CLIPS) + 1
    assert file.read_text().count("\n") == 3


def test_references_of_other_audio_languages_and_recognisers_are_others(whisper, tmp_path):
    judge = WordJudge(str(whisper), tmp_path, CPU)
    (one,) = pairs(CLIPS[1:2])
    judge([one])
    judge([(one[0], replace(one[1], original=one[1].original[:-10]))])
    judge([(one[0], replace(one[1], language="de"))])
    other = save_whisper(tmp_path / "other", multilingual=False)
    WordJudge(str(other), tmp_path, CPU)([one])
    assert (tmp_path / "references.jsonl").read_text().count("\n") == 4


# ---- a validation ----------------------------------------------------------------------------------


def validated(folder, whisper, batches, transcribe, rate=RATE, processes=None):
    kind = "single" if processes is None else "ddp"
    engine = Engine(EngineConfig(device="cpu", precision="float32", kind=kind))
    mine = batches if processes is None else batches[processes::2]
    judge = WordJudge(str(whisper), folder, CPU)
    config = ValidationConfig(transcribe=transcribe)
    made = [batch(*clips, rate=rate) for clips in mine]
    result = validate(Echo(rate), engine, iter(made), config, judge)
    return result.values, result.decoded_transcripts


def expected_of(folder, whisper, clips):
    scores = WordJudge(str(whisper), folder, CPU)(pairs(clips))
    compared = [one for one in scores if one.values]
    words = sum(one.weights["wer"] for one in compared)
    names = ("wer", "wer_capped")
    rates = {name: sum(one.values[name] * one.weights[name] for one in compared) / words for name in names}
    without_text = sum(one.reference is not None for one in compared)
    loops = sum(one.looped for one in scores)  # untrained ones repeat themselves
    return rates | {"wer_clips": len(compared), "wer_clips_without_text": without_text, "wer_loops": loops}


@pytest.mark.parametrize("transcribe", [3, 32])
def test_a_validation_hears_the_first_clips(whisper, tmp_path, transcribe):
    batches = [CLIPS[:2], (), CLIPS[2:5], CLIPS[5:]]
    values, told = validated(tmp_path, whisper, batches, transcribe)
    expected = expected_of(tmp_path, whisper, CLIPS[:transcribe])
    assert expected["wer_clips"] > expected["wer_clips_without_text"] > 0
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert len(told) == min(transcribe, 7)
    assert told[0][0] == "an ant"
    assert told[1][0].startswith("(heard in the original) ")


def test_audio_of_another_rate_is_heard_at_16_khz(whisper, tmp_path):
    high = tuple(clip(number, "an ant", rate=24_000) for number in range(3))
    values, told = validated(tmp_path, whisper, [high], 3, rate=24_000)
    assert values["wer_clips"] == 3
    # Not the same samples, but nearly the same sound: of the same length.
    lengths = [len(pair.original) for _, pair in pairs(high)]
    judge = make_judges(recogniser=str(whisper), device="cpu")[0]
    resampled = [soxr.resample(0.5 * one.target.numpy(), 24_000, RATE) for one in high]
    assert [len(audio) for audio in resampled] == lengths
    expected = [judge([Pair(audio, audio, "an ant", "en")])[0].transcript for audio in resampled]
    assert [heard for _, heard in told] == expected


def in_a_process(rank, folder, whisper):
    return validated(folder, whisper, [CLIPS[:2], CLIPS[2:5], CLIPS[5:]], 6, processes=rank)


@pytest.mark.long
def test_two_processes_hear_the_same_clips_as_one(whisper, tmp_path):
    (first, told), (second, others) = two_processes(partial(in_a_process, folder=tmp_path, whisper=whisper), tmp_path)
    (tmp_path / "alone").mkdir()
    values, _ = validated(tmp_path / "alone", whisper, [CLIPS[:2], CLIPS[2:5], CLIPS[5:]], 6)
    words = {name: value for name, value in values.items() if name.startswith("wer")}
    assert len(words) == 5
    assert {name: first[name] for name in words} == {name: second[name] for name in words} == words
    assert (len(told), len(others)) == (3, 3)
    # One process alone finds the references of both.
    before = {path: path.read_text() for path in tmp_path.glob("references*.jsonl")}
    assert len(before) == 2
    validated(tmp_path, whisper, [CLIPS[:6]], 6)
    assert {path: path.read_text() for path in before} == before


# ---- runs ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_that_goes_on_finds_the_same_errors(whisper, tmp_path):
    cuts = write_corpus(tmp_path / "corpus", text=None)
    heard = {"validation": {"every": 2, "clips": 3, "listen": 0, "transcribe": 2, "recogniser": str(whisper)}}
    runs = {}
    for name, limits in {"whole": [4], "halves": [2, 4]}.items():
        for steps in limits:
            whole = settings(cuts, tmp_path / name, **heard, steps=4, optimizer={"lr": 1e-3, "final_lr": 1.0})
            file = write_recipe(tmp_path / f"{name}.yaml", whole | {"steps": steps})
            ended = xycodec(tmp_path, "train", file, "--resume")
            assert ended.code == 0, ended
        runs[name] = lines_of(tmp_path / name, "valid")
        assert (tmp_path / name / "references.jsonl").read_text().count("\n") == 2
    assert [line["step"] for line in runs["whole"]] == [2, 4]
    assert all(line["wer_clips_without_text"] == line["wer_clips"] for line in runs["whole"])
    assert all("wer" in line and line["wer_capped"] <= 1 for line in runs["whole"])
    assert_same_lines(runs["halves"], runs["whole"])


@pytest.mark.long
def test_every_stage_that_decodes_is_heard(whisper, tmp_path):
    cuts = write_corpus(tmp_path / "corpus", clips=4, text="a")
    heard = {"every": 1, "clips": 4, "listen": 0, "transcribe": 4, "recogniser": str(whisper)}
    short = {"validation": heard, "steps": 1}
    vocoder = settings(cuts, tmp_path / "vocoder", **short) | {"stage": "vocoder"}
    for name in ("towers", "freeze_semantic", "lm", "loss"):
        del vocoder[name]
    stages = {
        "pretrain": settings(cuts, tmp_path / "pretrain", **short),
        "vocoder": vocoder,
        "posttrain": post_settings(cuts, tmp_path / "pretrain", tmp_path / "posttrain", **short),
    }
    for name, whole in stages.items():
        ended = xycodec(tmp_path, "train", write_recipe(tmp_path / f"{name}.yaml", whole))
        assert ended.code == 0, ended
        (valid,) = lines_of(tmp_path / name, "valid")
        assert valid["wer_clips"] == 4, name
        # Post-training reads 0.64 s of each, which is less than the text of all but the shortest one.
        assert valid["wer_clips_without_text"] == (3 if name == "posttrain" else 0)
        assert valid["wer"] >= valid["wer_capped"] > 0


# ---- mistakes --------------------------------------------------------------------------------------


def test_recipes_that_hear_nothing_are_refused(whisper, tmp_path):
    heard = {"validation": {"recogniser": str(whisper)}}
    with pytest.raises(ConfigError, match=r"there is nothing to hear: name clips in data\.valid"):
        pretraining(**heard)
    data = {"train": ["unused"], "valid": ["unused"]}
    tower = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 24}
    for stage, more in (("recognise", {"tower": tower}), ("hubert", {})):
        with pytest.raises(ConfigError, match=r"validation\.recogniser: this stage decodes no audio: leave it out"):
            recipe(stage, data=data, **heard, **more)
    with pytest.raises(CheckpointError, match="no such folder"):
        WordJudge(str(tmp_path / "absent"), tmp_path, CPU)
