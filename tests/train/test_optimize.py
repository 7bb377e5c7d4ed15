import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.training import pretraining
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from xycodec.errors import ConfigError
from xycodec.train.config import OptimizerConfig
from xycodec.train.optimize import Updater, learning_rate
from xycodec.train.trainer import Trainer


def test_warm_up_then_half_a_cosine():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, final_lr=0.1)
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    cosine = [0.2 + 1.8 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(1, 9)]
    assert rates[4:] == pytest.approx(cosine)
    assert rates[-1] == pytest.approx(0.2)  # the last step, not the one after it
    assert learning_rate(config, 50, 12) == pytest.approx(0.2)


def test_no_warm_up_and_nothing_but_warm_up():
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=0), 0, 1000) == pytest.approx(1.0, rel=1e-5)
    longer = [learning_rate(OptimizerConfig(lr=1.0, warmup_steps=10), step, 4) for step in range(4)]
    assert longer == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_warm_up_then_the_inverse_square_root():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, schedule="inverse_sqrt", final_lr=1.0)
    rates = [learning_rate(config, step, 12) for step in range(400)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([2 * (4 / number) ** 0.5 for number in range(5, 401)])
    assert rates[399] == pytest.approx(0.2)  # a hundred times the warm-up leaves a tenth
    without = OptimizerConfig(lr=2.0, warmup_steps=0, schedule="inverse_sqrt")
    assert [learning_rate(without, step, 12) for step in (0, 3, 99)] == pytest.approx([2.0, 1.0, 0.2])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(6, 1)
        self.normed = weight_norm(nn.Conv1d(3, 5, 2))
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_is_for_matrices_alone():
    net = Net()
    updater = Updater(net, OptimizerConfig(lr=0.1, weight_decay=0.5, warmup_steps=0, final_lr=1.0), steps=10)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for value in net.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    updater.update(0)
    decayed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    # Of weight norm the direction, not the length.
    assert decayed == {"plain.weight", "normed.parametrizations.weight.original1"}
    torch.testing.assert_close(net.plain.weight, before["plain.weight"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_gradients_are_clipped_to_their_norm(clip):
    net = Net()
    config = OptimizerConfig(lr=0.1, betas=(0.9, 0.9), clip=clip, warmup_steps=0, final_lr=1.0)
    updater = Updater(net, config, steps=10)
    for value in net.parameters():
        value.grad = torch.full_like(value, 0.3) if value.requires_grad else None
    count = sum(value.numel() for value in net.parameters() if value.requires_grad)
    norm = updater.update(0)
    assert float(norm) == pytest.approx(0.3 * count**0.5)
    assert all(value.grad is None for value in net.parameters())
    # AdamW's first average holds a tenth of the gradient that it was given.
    given = updater.optimizer.state[net.plain.bias]["exp_avg"].item() / 0.1
    assert given == pytest.approx(0.3 * min(1, (clip or math.inf) / float(norm)), rel=1e-4)


def test_rates_can_fall_with_the_time():
    config = OptimizerConfig(lr=1.0, warmup_steps=0, final_lr=0.0)
    updater = SimpleNamespace(steps=1_000_000)
    recipe = pretraining(steps=1_000_000, minutes=1, anneal="minutes")
    stage = SimpleNamespace(updaters={"model": updater})
    trainer = Trainer(recipe, stage, None, iter, iter, Path("unused"))
    # At any speed the rate is that of the share of the time: after 30 or 3000 steps in half of it, half the peak.
    for step in (30, 3000):
        trainer.step = step
        trainer._expect(0.5)
        assert learning_rate(config, step - 1, updater.steps) == pytest.approx(0.5)
        trainer._expect(1.01)
        assert learning_rate(config, step - 1, updater.steps) == pytest.approx(0.0)
    trainer._expect(0.0)
    assert updater.steps == recipe.steps


def test_falling_with_the_time_needs_a_limit():
    with pytest.raises(ConfigError, match="anneal: minutes needs a limit: set minutes"):
        pretraining(anneal="minutes")
