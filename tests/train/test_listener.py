"""The recipe with a real language model, run with small random ones; and what a run's listener makes of codes."""

import json
import sys
from pathlib import Path

import pytest
import soundfile as sf
import torch
from tests.judging import save_whisper
from tests.training import TEXTS, save_llama
from tests.training_runs import SIZE, lines_of, smallest_config, write_corpus

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.checkpoints.training import read_checkpoint
from xycodec.cli import app as cli
from xycodec.data.batch import Position, collate
from xycodec.data.clip import Clip
from xycodec.errors import CheckpointError
from xycodec.eval.corpus import open_corpora
from xycodec.eval.metrics.wer import word_error_rate
from xycodec.train.engine import Engine
from xycodec.train.export import export_weights
from xycodec.train.init.weights import load_weights
from xycodec.train.listener import load_listener
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train
from xycodec.train.stages.pretrain import PretrainStage
from xycodec.train.transcribe import load_ear, transcribe


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A function that gives one of the recipes with small random models, and a folder for its run."""
    folder = tmp_path_factory.mktemp("smollm")
    torch.manual_seed(0)
    save_whisper(folder / "whisper", multilingual=False)
    codec = random_codec(smallest_config())
    save_codec(codec, folder / "codec")
    sizes = {key: value for key, value in codec.config.model_dump(mode="json").items() if isinstance(value, dict)}
    settings = {f"model.{key}": value for key, value in sizes.items()} | {
        "model.window_frames": codec.window_frames,
        "data.train": [str(cuts := write_corpus(folder / "corpus"))],
        "data.valid": [str(cuts)],
        "data.clip_seconds": 1,
        "lm.source": str(save_llama(folder / "lm")),
        "lm.adapter": SIZE.model_dump(mode="json"),
        "validation": {"every": 3, "transcribe": 2},
        "steps": 3,
        "engine.device": "cpu",
    }

    def read(name, **changes):
        own = settings | {"output": str(folder / name)} | {key: str(folder / value) for key, value in changes.items()}
        return load_recipe(f"xy_tokenizer/{name}.yaml", tuple(f"{key}={json.dumps(own[key])}" for key in own))

    return read


@pytest.fixture(scope="module")
def run(small):
    """A run from a random Whisper's towers: its recipe and folder."""
    recipe = small("smollm_towers", towers="whisper")
    assert train(recipe, quiet=True).finished
    return recipe, Path(recipe.output)


def clips():
    made = torch.Generator().manual_seed(0)
    return [Clip(str(n), *2 * (0.2 * torch.randn(1_280 * (12 - n), generator=made),), TEXTS[n]) for n in range(3)]


def test_a_run_from_towers(run):
    recipe, folder = run
    assert recipe.weights is None
    assert all({"asr", "mel", "commitment"} <= line.keys() for line in lines_of(folder))
    assert "asr_wer" in lines_of(folder, "valid")[-1]
    kept = read_checkpoint(folder / "checkpoints" / "step_00000003.pt")["networks"]["model"]
    assert not any(key.startswith("semantic_lm.lm.") for key in kept)
    # Both towers begin as one encoder; one of them stays so.
    towers = [
        load_listener(folder, device="cpu").codec.get_submodule(f"{name}_encoder") for name in ("semantic", "acoustic")
    ]
    fixed, learned = (dict(tower.named_parameters()) for tower in towers)
    apart = {name: (fixed[name] - learned[name]).abs().max().item() for name in fixed}
    assert 0 < max(apart.values()) < 1e-3


def test_a_run_from_a_codec(small):
    recipe = small("smollm", weights="codec")
    assert recipe.towers is None
    assert train(recipe, quiet=True).finished
    assert {"asr", "mel"} <= lines_of(recipe.output, "valid")[-1].keys()


def test_codes_alone_are_heard_as_in_training(run):
    recipe, folder = run
    listener = load_listener(folder, device="cpu")
    stage = PretrainStage(recipe, Engine(recipe.engine))
    load_weights(stage.model, folder)
    codec = load_codec(folder, device="cpu")
    for one in clips():
        codes = codec.encode(one.audio[None]).codes[0]
        measured = stage.measure(collate([one], (), Position(0, 1), output_sample_rate=16_000), transcribe=True)
        assert listener.transcribe(codes) == measured.texts[0] != ""
        scored = listener.score(codes, one.text)
        # Weight norm is folded in one of the two.
        torch.testing.assert_close(scored.loss.value(), measured.means["asr"].value(), atol=1e-4, rtol=0)
        assert scored.loss.count == measured.means["asr"].count > 0


def test_long_codes_are_heard_window_by_window(run):
    listener = load_listener(run[1], device="cpu")
    codes = torch.randint(listener.codec.codebook_size, (listener.codec.n_q, 30))
    heard = [listener.transcribe(part) for part in (codes[:, :13], codes[:, 13:26], codes[:, 26:])]
    assert all(heard)
    assert listener.transcribe(codes) == " ".join(heard)
    assert listener.transcribe(codes[:, :0]) == ""


def test_what_cannot_listen_says_so(run, tmp_path):
    with pytest.raises(CheckpointError, match="no run"):
        load_listener(tmp_path)
    export_weights(run[1], tmp_path / "weights")
    with pytest.raises(CheckpointError, match="exported weights tell no language model"):
        load_listener(tmp_path / "weights")
    other = save_llama(tmp_path / "wider", hidden=48)
    with pytest.raises(CheckpointError, match=r"adapter\.out_proj\.weight does not fit .*wider"):
        load_listener(run[1], lm=str(other))


# ---- from audio --------------------------------------------------------------------------------


def test_audio_is_heard_as_its_codes_are(run):
    listener, ear = load_listener(run[1], device="cpu"), load_ear(run[1], device="cpu")
    for one in clips():
        codes = listener.codec.encode(one.audio[None]).codes[0]
        assert ear(one.audio.numpy()) == listener.transcribe(codes) != ""
        first = load_ear(run[1], device="cpu", n_q=1)
        assert first(one.audio.numpy()) == listener.transcribe(codes[:1])


def test_words_are_counted_and_a_bad_file_costs_itself_alone(run, tmp_path, capsys, monkeypatch):
    for one in clips()[:2]:
        sf.write(tmp_path / f"{one.id}.wav", one.audio.numpy(), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows = [
        {"audio": name, "duration": 1.0, "speaker": "a", "text": text}
        for name, text in (("0.wav", "one two"), ("broken.wav", "three"), ("1.wav", None))
    ]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = list(transcribe(open_corpora([str(tmp_path / "said.jsonl")]), load_ear(run[1], device="cpu")))
    assert [row.clip for row in heard] == ["0", "broken", "1"]
    assert "broken.wav" in heard[1].problem
    assert heard[0].errors == word_error_rate(["one two"], [heard[0].heard])
    assert (heard[2].errors, heard[2].problem) == (None, None)

    monkeypatch.setattr(sys, "argv", ["xycodec", "transcribe", str(tmp_path / "said.jsonl"), "--model", str(run[1])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert out.splitlines() == [f"0: {heard[0].heard}", f"1: {heard[2].heard}"]
    assert "broken.wav" in err
    assert f"{heard[0].errors.errors} in 2 words of 1 clips" in err
