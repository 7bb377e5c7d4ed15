"""The average of the weights: what it is, who takes it, and that training does not notice it."""

import shutil
from functools import partial

import pytest
import torch
from tests.reference import randomise
from tests.training import NoLooking, batch, clip, posttraining, pretraining, save_lm, seeded, tiny_model
from tests.training_runs import names, post_settings, settings, write_corpus, write_recipe

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.checkpoints.training import AVERAGE, checkpoints, read_checkpoint
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.average import WeightAverage, decay_of
from xycodec.train.checkpoint import load_network, network_state
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.init.weights import load_weights
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import open_stage, train
from xycodec.train.stages.pretrain import build

CLIPS = (clip(0, 0.4), clip(1, 0.3))
AUDIO = clip(3, 1.2).audio[None]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """A function from a stage's name to its recipe."""
    folder = tmp_path_factory.mktemp("models")
    lm, codec = save_lm(folder / "lm"), save_codec(random_codec(tiny_model()), folder / "codec")
    narrow = {"channels": 4, "spectrogram": False}
    made = {"pretrain": partial(pretraining, lm), "posttrain": partial(posttraining, codec, discriminators=narrow)}
    return lambda stage, **changes: made[stage](**changes)


def stage_of(recipe):
    return open_stage(recipe, Engine(EngineConfig(device="cpu", precision="float32")))


def learn(stage, step):
    seeded(step)
    return {name: value.item() for name, value in stage.step([batch(*CLIPS)], step).values.items()}


def copied(module):
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


# ---- what it is ------------------------------------------------------------------------------------


def test_the_decay_begins_low_and_stays_where_it_was_set():
    assert [decay_of(step, 0.5) for step in (0, 1, 8, 9, 10_000)] == [1 / 10, 2 / 11, 1 / 2, 1 / 2, 1 / 2]
    assert decay_of(8989, 0.999) < 0.999 == decay_of(8990, 0.999)
    assert decay_of(5, 0.0) == 0


@pytest.mark.parametrize("name", ["pretrain", "posttrain"])
def test_parameters_are_averaged_in_float64_and_codebooks_are_the_newest(recipes, name):
    stage = stage_of(recipes(name, ema=0.4))
    expected = {key: value.double() for key, value in copied(stage.codec).items()}
    parameters = dict(stage.codec.named_parameters())
    for step in range(6):
        learn(stage, step)
        keep = min(0.4, (1 + step) / (10 + step))
        for key, value in copied(stage.codec).items():
            expected[key] = keep * expected[key] + (1 - keep) * value if key in parameters else value
    got = stage.networks[AVERAGE].codec.state_dict()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value.to(got[key].dtype), rtol=1e-5, atol=1e-7, msg=key)
    newest = copied(stage.codec)
    for key in ("quantizer.codebook", "quantizer.embed_avg", "quantizer.cluster_size", "quantizer.inited"):
        assert torch.equal(got[key], newest[key])
    trained = {key for key, value in parameters.items() if value.requires_grad}
    assert {key for key in parameters if not torch.equal(got[key], newest[key])} >= {"vocos.head.out.weight"}
    assert all(torch.equal(got[key], newest[key]) for key in parameters.keys() - trained)
    assert not any(value.requires_grad for value in stage.networks[AVERAGE].parameters())


@pytest.mark.parametrize("name", ["pretrain", "posttrain"])
def test_training_does_not_notice_it(recipes, name):
    plain, averaged = (stage_of(recipes(name, **more)) for more in ({}, {"ema": 0.9}))
    for step in range(3):
        assert learn(plain, step) == learn(averaged, step)
        # A measurement in between neither.
        averaged.measure(batch(*CLIPS), transcribe=True)
    assert set(averaged.networks) - set(plain.networks) == {AVERAGE}
    for key, value in plain.networks["model"].state_dict().items():
        assert torch.equal(averaged.networks["model"].state_dict()[key], value), key


@pytest.mark.parametrize("name", ["pretrain", "posttrain"])
def test_validation_measures_the_average(recipes, name):
    stage, other = stage_of(recipes(name, ema=0.9)), stage_of(recipes(name))
    for step in range(2):
        learn(stage, step)
    # The other one gets what the average belongs to, and the average in place of the codec.
    load_network(other.networks["model"], network_state(stage.networks["model"], lambda _: True), lambda _: True)
    before = other.measure(batch(*CLIPS), transcribe=False).audio
    other.codec.load_state_dict(stage.networks[AVERAGE].codec.state_dict())
    got, expected = (one.measure(batch(*CLIPS), transcribe=True) for one in (stage, other))
    assert torch.equal(got.audio, expected.audio)
    assert not torch.equal(got.audio, before)
    assert got.texts == expected.texts
    assert {key: mean.value() for key, mean in got.means.items()} == {
        key: mean.value() for key, mean in expected.means.items()
    }


def test_the_host_never_waits():
    codec = XYTokenizer(tiny_model())
    average = WeightAverage(codec, 0.99)
    randomise(codec)
    with NoLooking(of_masks=0):
        average.update(codec, 3)


def test_shards_have_no_average():
    with pytest.raises(ConfigError, match="ema: fsdp2 shards the weights that it averages: use ddp or single"):
        pretraining(ema=0.999, engine={"kind": "fsdp2"})
    with pytest.raises(ConfigError, match="ema"):
        pretraining(ema=1.0)


# ---- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run of 6 steps that keeps what it was at step 3."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    begin(folder, settings(corpus, folder / "run", **BRIEF))
    return folder / "run"


BRIEF = {"steps": 6, "ema": 0.9, "validation": {"every": 6, "clips": 2, "listen": 0}}


def begin(folder, mapping, *overrides, resume=False):
    return train(load_recipe(write_recipe(folder / "recipe.yaml", mapping), overrides), resume=resume, quiet=True)


def networks_of(run):
    return read_checkpoint(checkpoints(run)[-1])["networks"]


def assert_same_networks(got, expected):
    assert got.keys() == expected.keys()
    for name, tensors in expected.items():
        assert got[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(got[name][key], value), (name, key)


def half_done(run, folder):
    """The run as it was at step 3."""
    shutil.copytree(run, folder)
    (folder / "checkpoints" / "step_00000006.pt").unlink()
    assert names(folder) == ["best.pt", "step_00000003.pt"]


def test_a_resumed_run_has_the_same_average(tmp_path, corpus, run):
    half_done(run, tmp_path / "run")
    assert begin(tmp_path, settings(corpus, tmp_path / "run", **BRIEF), resume=True).finished
    assert_same_networks(networks_of(tmp_path / "run"), networks_of(run))
    assert networks_of(run).keys() == {"model", AVERAGE}


@pytest.mark.parametrize(("ema", "words"), [(None, "has the network 'ema'"), (0.9, "lacks the network 'ema'")])
def test_a_run_keeps_to_its_recipe(tmp_path, corpus, run, ema, words):
    half_done(run, tmp_path / "run")
    if ema:  # a run without one
        last = checkpoints(tmp_path / "run")[-1]
        data = torch.load(last)
        del data["networks"][AVERAGE]
        torch.save(data, last)
    with pytest.raises(CheckpointError, match=words) as raised:
        begin(tmp_path, settings(corpus, tmp_path / "run", **BRIEF | {"ema": ema}), resume=True)
    assert "step_00000003.pt: of a run that" in str(raised.value)
    assert str(raised.value).endswith("resume with the recipe of its run, or choose another output")


def test_a_run_gives_its_average(tmp_path, run):
    average = {key.removeprefix("codec."): value for key, value in networks_of(run)[AVERAGE].items()}
    recipe = load_recipe(run / "recipe.yaml")
    expected = XYTokenizer(recipe.model)
    expected.load_state_dict(average)
    expected.fold_weight_norm()
    got = load_codec(run, device="cpu")
    assert got.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in got.state_dict().items())
    model = build(recipe)
    load_weights(model, run)
    assert all(torch.equal(value, average[key]) for key, value in model.codec.state_dict().items())
    assert not torch.equal(
        networks_of(run)["model"]["codec.vocos.head.out.weight"], model.codec.vocos.head.out.weight.detach()
    )


def test_post_training_begins_with_the_average_and_goes_on_with_both(tmp_path, corpus, run):
    half = {"every": 2, "keep": 2}
    mapping = post_settings(corpus, run, tmp_path / "post", **BRIEF | {"steps": 4, "checkpoint": half})
    begin(tmp_path, mapping)
    before, after = networks_of(run)[AVERAGE], networks_of(tmp_path / "post")
    assert after.keys() == {"model", "discriminators", AVERAGE}
    # The frozen half is that of the average.
    key = "codec.acoustic_encoder.conv1.weight"
    assert torch.equal(after["model"][key], before[key])
    assert torch.equal(after[AVERAGE][key], before[key])
    key = "codec.vocos.head.out.weight"
    assert not torch.equal(after["model"][key], after[AVERAGE][key])
    shutil.copytree(tmp_path / "post", tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step_00000004.pt").unlink()
    begin(tmp_path, mapping, f"output={tmp_path}/again", resume=True)
    assert_same_networks(networks_of(tmp_path / "again"), after)
    assert torch.equal(load_codec(tmp_path / "post").vocos.head.out.weight, after[AVERAGE][key])
