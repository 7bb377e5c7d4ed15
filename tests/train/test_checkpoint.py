"""Checkpoints: whole or not there, the last ones and the best kept, and codecs for everyone else."""

import json
import os
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest
import soundfile as sf
import torch
from tests.training_runs import (
    assert_same_lines,
    lines_of,
    names,
    post_settings,
    settings,
    smallest_config,
    write_corpus,
    write_recipe,
    xycodec,
)
from torch import nn

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.training import checkpoints, read_checkpoint
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import open_corpus
from xycodec.errors import CheckpointError
from xycodec.io.xyc import CodecFile
from xycodec.train.checkpoint import BEST, RunState, load_network, load_state, save_state
from xycodec.train.engine import Engine
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import open_stage, train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A finished run of 8 steps."""
    folder = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    begin(folder, corpus, folder / "run", steps=8, validation={"every": 4, "clips": 2, "listen": 0})
    return folder / "run"


def begin(folder, corpus, output, resume=False, **changes):
    recipe = load_recipe(write_recipe(folder / "recipe.yaml", settings(corpus, output, **changes)))
    return train(recipe, resume=resume, quiet=True)


def state_of(step, best=None, size=3):
    weights = {"model": {"weight": torch.full((size,), float(step))}}
    return RunState("pretrain", step, 0, step, best, {}, {}, weights, {})


def stored(path):
    return load_state(path).networks["model"]["weight"][0].item()


# files


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    for step in range(1, 7):
        save_state(tmp_path, state_of(step), keep=2, best=step == 3)
    assert names(tmp_path) == ["best.pt", "step_00000005.pt", "step_00000006.pt"]
    assert [stored(path) for path in checkpoints(tmp_path)] == [5, 6]
    assert stored(tmp_path / "checkpoints" / BEST) == 3
    read, written = (vars(state) | {"networks": None} for state in (load_state(checkpoints(tmp_path)[-1]), state_of(6)))
    assert read == written


def test_the_best_takes_no_room_of_its_own_and_stays_when_the_other_goes(tmp_path):
    path = save_state(tmp_path, state_of(1), keep=1, best=True)
    best = path.with_name(BEST)
    assert path.samefile(best)
    save_state(tmp_path, state_of(2), keep=1, best=False)
    assert not path.exists()
    assert stored(best) == 1


def test_what_a_killed_run_left_is_removed(tmp_path):
    save_state(tmp_path, state_of(1), keep=1, best=False)
    stray = tmp_path / "checkpoints" / ".0123456789abcdef.tmp.pt"
    stray.write_bytes(b"half")
    save_state(tmp_path, state_of(2), keep=1, best=False)
    assert names(tmp_path) == ["step_00000002.pt"]


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("not here")

    monkeypatch.setattr(os, "link", refuse)
    path = save_state(tmp_path, state_of(1), keep=1, best=True)
    assert path.with_name(BEST).read_bytes() == path.read_bytes()
    assert not path.samefile(path.with_name(BEST))


def room_for(size):
    """The disk is full for any file larger than this."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.long
def test_a_full_disk(tmp_path, corpus, run):
    shutil.copytree(run, tmp_path / "run")
    before = names(run)
    ended = xycodec(
        tmp_path, "train", tmp_path / "run" / "recipe.yaml", f"output={tmp_path}/run", "steps=9", "-q", "--resume",
        prepare=partial(room_for, 40_000),
    )  # fmt: skip
    last = tmp_path / "run" / "checkpoints" / "step_00000008.pt"
    assert "step_00000009.pt cannot be written (" in ended.error
    assert ended.error.endswith(f"the run can resume from {last}")
    assert names(tmp_path / "run") == before
    assert load_state(last).step == 8
    load_codec(tmp_path / "run")


@pytest.mark.parametrize(
    ("room", "words"),
    [(600, "check the path"), pytest.param(9000, "see to the disk, --resume goes on", marks=pytest.mark.long)],
)
def test_a_disk_that_is_full_before_the_first_checkpoint(tmp_path, corpus, room, words):
    """For the recipe, or the metrics of some sixty steps."""
    changes = {"checkpoint": {"every": 1000}, "validation": {"every": 1000}, "steps": 200}
    recipe = write_recipe(tmp_path / "recipe.yaml", settings(corpus, tmp_path / "run", **changes))
    open_corpus([SourceConfig(path=str(corpus))])  # or its catalogue would be the first that has no room
    ended = xycodec(tmp_path, "train", recipe, "-q", prepare=partial(room_for, room))
    assert words in ended.error
    assert str(tmp_path / "run") in ended.error


# what is not a checkpoint


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "damaged or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "damaged or not a checkpoint"),
        (lambda path: torch.save({"weight": torch.zeros(2)}, path), "not a checkpoint of a training run"),
        (lambda path: torch.save([1], path), "not a checkpoint of a training run"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "code in it was not run"),
        (lambda path: torch.save({"format": 99, "codec": {}, "networks": {"model": {}}}, path), "format 99"),
        (lambda path: torch.save({"format": 1, "codec": {}, "networks": {}}, path), "not a checkpoint"),
        (
            lambda path: torch.save({"format": 1, "codec": {}, "networks": {"model": {}}}, path),
            "not a whole checkpoint",
        ),
    ],
)
def test_what_is_no_checkpoint(tmp_path, corpus, run, spoil, words):
    shutil.copytree(run, tmp_path / "run")
    last = checkpoints(tmp_path / "run")[-1]
    spoil(last)
    with pytest.raises(CheckpointError) as refused:
        begin(tmp_path, corpus, tmp_path / "run", resume=True, steps=9)
    assert words in str(refused.value)
    assert str(last) in str(refused.value)
    with pytest.raises(CheckpointError):
        load_codec(tmp_path / "run")


def test_another_architecture():
    network = nn.Linear(2, 3)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    for changed, words in (
        ({"weight": state["weight"]}, "lacks 'bias'"),
        (state | {"more": torch.zeros(1)}, "has the unknown 'more'"),
        (state | {"bias": torch.zeros(4)}, "bias is (4,), the recipe asks for (3,)"),
    ):
        with pytest.raises(CheckpointError, match="of another architecture") as refused:
            load_network(network, changed, lambda key: True)
        assert words in str(refused.value)
    load_network(network, {"bias": torch.ones(3)}, lambda key: key == "bias")
    assert network.bias.tolist() == [1, 1, 1]
    assert torch.equal(network.weight, state["weight"])


# the best


def test_the_best_is_the_lowest_also_after_going_on(tmp_path, corpus, run):
    """Training on with a rate that ruins the codec leaves the best where it was."""
    shutil.copytree(run, tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / BEST
    losses = {line["step"]: line["loss"] for line in lines_of(run, "valid")}
    assert read_checkpoint(best)["step"] == min(losses, key=losses.get) == 8
    every = {"validation": {"every": 4, "clips": 2, "listen": 0}}
    ended = begin(tmp_path, corpus, tmp_path / "run", True, steps=12, optimizer={"lr": 3.0, "warmup_steps": 0}, **every)
    assert lines_of(tmp_path / "run", "valid")[-1]["loss"] > losses[8]
    assert ended.best == pytest.approx(losses[8])
    assert read_checkpoint(best)["step"] == 8
    assert names(tmp_path / "run") == ["best.pt", "step_00000009.pt", "step_00000012.pt"]


# from one engine to another


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"), [("single", "ddp"), ("ddp", "single"), ("single", "fsdp2"), ("fsdp2", "single")]
)
def test_engines_read_each_other_s(tmp_path, corpus, run, first, second):
    def engine(kind):
        return {"kind": kind, "device": "cpu", "precision": "float32"}

    shared = {"validation": {"every": 4, "clips": 2, "listen": 0}}
    output = tmp_path / "run"
    begin(tmp_path, corpus, output, steps=8, minutes=1e-9, engine=engine(first), **shared)
    stopped = lines_of(output)[-1]["step"]
    assert stopped == 3
    begin(tmp_path, corpus, output, True, steps=8, engine=engine(second), **shared)
    assert_same_lines(lines_of(output), lines_of(run), 1e-5)


# a run as a codec


@pytest.mark.parametrize("stage", ["pretrain", "posttrain"])
def test_a_run_is_a_model(tmp_path, corpus, run, stage):
    """For load_codec, encode and convert; the codes are those of the codec in the trainer."""
    if stage == "posttrain":
        mapping = post_settings(corpus, run, tmp_path / "post", steps=3, validation={"every": 9, "clips": 1})
        train(load_recipe(write_recipe(tmp_path / "post.yaml", mapping)), quiet=True)
        run = tmp_path / "post"
    recipe = load_recipe(run / "recipe.yaml")
    inside = open_stage(recipe, Engine(recipe.engine)).networks["model"]
    newest = checkpoints(run)[-1]
    inside.load_state_dict(read_checkpoint(newest)["networks"]["model"])
    inside.codec.eval()
    audio = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(1)) * 0.2
    expected = inside.codec.encode(audio)

    moved = tmp_path / "anywhere.pt"
    shutil.copy(newest, moved)
    for place in (run, newest, moved):
        codec = load_codec(place)
        assert torch.equal(codec.encode(audio).codes, expected.codes)
        assert codec.model_id == "tiny"
        assert not any(p.requires_grad for p in codec.parameters())
        wave = codec.decode(expected.codes).audio
        torch.testing.assert_close(wave, inside.codec.decode(expected.codes).audio, atol=1e-5, rtol=1e-4)

    sf.write(tmp_path / "clip.wav", audio[0].numpy(), 16_000, subtype="FLOAT")
    assert xycodec(tmp_path, "encode", "clip.wav", "-m", run, "-q").code == 0
    codes = CodecFile.read(tmp_path / "clip.xyc").codes
    assert (codes == expected.codes[0].numpy()).all()
    assert xycodec(tmp_path, "convert", run, tmp_path / "ours").code == 0
    assert sorted(os.listdir(tmp_path / "ours")) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_id"] == "tiny"
    assert torch.equal(load_codec(tmp_path / "ours").encode(audio).codes, expected.codes)


def test_a_new_voice_of_a_run(tmp_path, run):
    """A 24 kHz head on the same codes, from the command line to the codec."""
    cuts = write_corpus(tmp_path / "high", clips=4, rate=24_000)
    mapping = post_settings(cuts, run, tmp_path / "post", steps=2, output_sample_rate=24_000, model_id="higher")
    recipe = write_recipe(tmp_path / "post.yaml", mapping)
    assert not train(load_recipe(recipe, ("minutes=1e-9", "steps=4")), quiet=True).finished
    assert train(load_recipe(recipe, ("steps=4",)), resume=True, quiet=True).finished
    codec, before = load_codec(tmp_path / "post"), load_codec(run)
    audio = torch.randn(1, 16_000) * 0.2
    assert (codec.model_id, codec.output_sample_rate) == ("higher", 24_000)
    assert torch.equal(codec.encode(audio).codes, before.encode(audio).codes)


def test_a_config_that_does_not_fit_its_weights(tmp_path, run):
    shutil.copytree(run, tmp_path / "run")
    last = checkpoints(tmp_path / "run")[-1]
    data = torch.load(last)
    data["codec"] = smallest_config(vocos={"dim": 16, "intermediate_dim": 32, "layers": 1}).model_dump(mode="json")
    torch.save(data, last)
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_codec(last)
    assert Path(last).is_file()
