"""A run that goes on with other settings: the recipe's hold everywhere, and each difference is told."""

import shutil

import pytest
import torch
from tests.training_runs import lines_of, post_settings, write_corpus, write_recipe
from tests.training_runs import settings as run_settings
from torch import nn

from xycodec.checkpoints.training import checkpoints, read_checkpoint
from xycodec.errors import CheckpointError
from xycodec.train.checkpoint import load_optimizer, optimizer_state
from xycodec.train.config import OptimizerConfig
from xycodec.train.optimize import Updater
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train

VALIDATION = {"every": 4, "clips": 3, "listen": 0}


def settings(corpus, output, /, **changes):
    ours = {"validation": VALIDATION, "optimizer": {"lr": 1e-3, "warmup_steps": 2, "final_lr": 1}}
    return run_settings(corpus, output, **ours | changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, corpus):
    """A run of 4 steps, of whose first epoch one batch is left."""
    folder = tmp_path_factory.mktemp("stopped")
    begin(folder, settings(corpus, folder / "run", steps=4))
    return folder / "run"


@pytest.fixture
def run(tmp_path, stopped):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def begin(folder, mapping, resume=False, quiet=True):
    return train(load_recipe(write_recipe(folder / "recipe.yaml", mapping)), resume=resume, quiet=quiet)


def told(capfd, folder, mapping):
    """The lines that a resumed run says about differences."""
    capfd.readouterr()
    begin(folder, mapping, resume=True, quiet=False)
    return [line.removeprefix("resumed: ") for line in capfd.readouterr().err.splitlines() if "resumed: " in line]


def spoil(run, **changes):
    """Change fields of the newest checkpoint; None takes one out."""
    path = checkpoints(run)[-1]
    data = torch.load(path) | changes
    torch.save({key: value for key, value in data.items() if value is not None}, path)


# ---- optimizers ------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def stepped(config, steps=3):
    net = network()
    updater = Updater(net, config, steps=10)
    for step in range(steps):
        net(torch.ones(2, 3)).square().sum().backward()
        updater.update(step)
    return net, updater


BEFORE = OptimizerConfig(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, warmup_steps=0)
NOW = OptimizerConfig(lr=0.2, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.7, warmup_steps=0)


def test_averages_come_from_the_checkpoint_and_settings_from_the_recipe():
    net, updater = stepped(BEFORE)
    state = optimizer_state(net, updater.optimizer)
    fresh = network()
    other = Updater(fresh, NOW, steps=10)
    load_optimizer(fresh, other.optimizer, state)
    for group, decay in zip(other.optimizer.param_groups, (0.7, 0.0), strict=True):
        assert (tuple(group["betas"]), group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, decay)
    for ours, theirs in zip(fresh.parameters(), net.parameters(), strict=True):
        assert torch.equal(other.optimizer.state[ours]["exp_avg"], updater.optimizer.state[theirs]["exp_avg"])
        assert other.optimizer.state[ours]["step"] == 3


def test_a_parameter_that_decays_no_more():
    """The recipe and the code decide which parameters decay: groups need not be the checkpoint's."""
    net, updater = stepped(BEFORE)
    state = optimizer_state(net, updater.optimizer)
    fresh = network()
    groups = [{"params": [part], "weight_decay": place} for place, part in enumerate(fresh.parameters())]
    optimizer = torch.optim.AdamW(groups, lr=0.3, betas=(0.1, 0.2), fused=True)
    load_optimizer(fresh, optimizer, state)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 1, 2, 3]
    assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.1, 0.2)}
    fresh(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    assert optimizer.state[fresh[0].weight]["step"] == 4


# ---- runs ------------------------------------------------------------------------------------------


def test_of_an_unchanged_recipe_nothing_is_told(run, tmp_path, corpus, capfd):
    lines = told(capfd, tmp_path, settings(corpus, run, steps=4))
    assert lines == [f"output is {str(run)!r}, was {was(run)!r}"]  # it was copied


def was(run):
    """The place where the run of the checkpoint once was."""
    return read_checkpoint(checkpoints(run)[0])["recipe"]["output"]


def test_every_difference_is_told_in_a_line(run, tmp_path, corpus, capfd):
    optimizer = {"lr": 2e-3, "warmup_steps": 2, "final_lr": 1, "betas": [0.8, 0.99]}
    changes = {"loss": {"asr": 0, "mel": 7}, "optimizer": optimizer, "data": {"batch_clips": 1}, "steps": 6}
    lines = told(capfd, tmp_path, settings(corpus, run, **changes))
    assert sorted(lines) == sorted(
        [
            f"output is {str(run)!r}, was {was(run)!r}",
            "steps is 6, was 4",
            "data.batch_clips is 1, was 2",
            "loss.mel is 7.0, was 15.0",
            "optimizer.lr is 0.002, was 0.001",
            "optimizer.betas is [0.8, 0.99], was [0.9, 0.95]",
            "the best validation loss is measured anew, on other clips or by other settings",
        ]
    )
    groups = read_checkpoint(checkpoints(run)[-1])["optimizers"]["model"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.99)}
    # The epoch went on: eight of its ten clips had been taken in pairs, the others came alone.
    assert read_checkpoint(checkpoints(run)[-1])["epoch"] == 0


def test_a_checkpoint_of_an_earlier_version_begins_the_next_epoch(run, tmp_path, corpus, capfd):
    spoil(run, taken=None, order=None, processes=None)
    lines = told(capfd, tmp_path, settings(corpus, run, steps=5))
    (line,) = (line for line in lines if line.startswith("epoch"))
    assert line.startswith("epoch 1 begins, as the clips of epoch 0 are no longer in the order")
    # Three of ten clips were measured then, the first ones.
    assert "the best validation loss is measured anew, on other clips or by other settings" in lines
    after = read_checkpoint(checkpoints(run)[-1])
    assert (after["epoch"], after["batch"], sum(after["taken"])) == (1, 1, 2)


def test_the_best_of_an_earlier_version_that_measured_all_clips_holds(tmp_path, corpus, capfd):
    mapping = settings(corpus, tmp_path / "run", steps=4, validation=VALIDATION | {"clips": 10})
    begin(tmp_path, mapping)
    spoil(tmp_path / "run", order=None, best=-1.0)
    lines = told(capfd, tmp_path, mapping | {"steps": 8})
    assert not any("best" in line for line in lines)
    assert read_checkpoint(checkpoints(tmp_path / "run")[-1])["best"] == -1.0


def test_the_settings_of_a_checkpoint_with_an_unknown_one_are_compared_as_they_are(run, tmp_path, corpus, capfd):
    old = read_checkpoint(checkpoints(run)[-1])["recipe"]
    spoil(run, recipe=old | {"gone": 3, "data": old["data"] | {"shuffle_buffer": 5}})
    lines = told(capfd, tmp_path, settings(corpus, run, steps=4))
    assert "gone is None, was 3" in lines


def test_a_recipe_of_an_earlier_version_is_read(run, tmp_path, corpus, capfd):
    old = read_checkpoint(checkpoints(run)[-1])["recipe"]
    spoil(run, recipe=old | {"data": old["data"] | {"shuffle_buffer": 5}})
    data = {"shuffle_buffer": 20_000}
    assert len(told(capfd, tmp_path, settings(corpus, run, steps=4, data=data))) == 1


def test_validation_is_of_the_same_clips_after_going_on(run, tmp_path, corpus):
    mapping = settings(corpus, tmp_path / "whole", steps=8)
    begin(tmp_path, mapping)
    begin(tmp_path, mapping | {"output": str(run)}, resume=True)
    ours, theirs = (lines_of(folder, "valid") for folder in (run, tmp_path / "whole"))
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs])


def test_another_stage_is_refused_in_one_line(run, tmp_path, corpus):
    with pytest.raises(
        CheckpointError, match="a pretrain run cannot go on as posttrain: choose another output"
    ) as error:
        begin(tmp_path, post_settings(corpus, run, run, steps=5), resume=True)
    assert "\n" not in str(error.value)
