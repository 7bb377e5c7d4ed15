"""ScaledAdam and Eden: their formulas, the limits on sizes, clipping by the median, and state that goes on."""

import copy

import pytest
import torch
from torch import nn

from xycodec.errors import ConfigError
from xycodec.train.checkpoint import load_optimizer, optimizer_state
from xycodec.train.config import OptimizerConfig
from xycodec.train.optimize import Updater, learning_rate
from xycodec.train.recipe_file import parse_recipe
from xycodec.train.scaled_adam import ScaledAdam, eden

OURS = OptimizerConfig(kind="scaled_adam", lr=0.05, schedule="eden", warmup_steps=0, clip=None, weight_decay=0)


def grad(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def reference(p, grads, lr, period=4, beta1=0.9, beta2=0.95, eps=1e-8, scale_lr=0.1):
    """The published update of one tensor, written down plainly, without clipping."""
    p, delta, square, scale_square = p.clone(), torch.zeros_like(p), torch.zeros_like(p), 0.0
    size, scale_grads = p.pow(2).mean().sqrt(), []
    for step, g in enumerate(grads):
        delta = delta * beta1
        scale_grads.append((p * g).sum())
        if step % period == period - 1:
            size = p.pow(2).mean().sqrt()
            last = torch.stack(scale_grads[-period:])
            decay = beta2**period
            scale_square = decay * scale_square + (1 - decay) * last.pow(2).mean()
            corrected = scale_square / (1 - decay ** ((step + 1) // period))
            delta = delta - (1 - beta1) * p * lr * scale_lr * last.sum() / (corrected.sqrt() + eps)
        square = beta2 * square + (1 - beta2) * g**2
        corrected = square / (1 - beta2 ** (step + 1))
        delta = delta - (1 - beta1) * lr * size * g / (corrected.sqrt() + eps)
        p = p + delta
    return p


def test_an_update_is_the_published_one():
    start = grad(99, (5, 4))
    p = nn.Parameter(start.clone())
    optimizer = ScaledAdam([p], lr=0.03)
    grads = [grad(step, (5, 4)) for step in range(11)]
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    # In float64; the state of scales is float32.
    torch.testing.assert_close(p.detach(), reference(start, grads, 0.03), rtol=1e-6, atol=1e-7)


def test_steps_are_relative_to_the_parameters_size():
    moves = []
    for size in (0.01, 1.0):
        p = nn.Parameter(size * torch.ones(4, 4))
        optimizer = ScaledAdam([p], lr=0.01)
        p.grad = torch.full_like(p, 3.0)
        before = p.detach().clone()
        optimizer.step()
        moves.append(float((p.detach() - before).abs().mean()) / size)
    assert moves == pytest.approx([0.1 * 0.01] * 2, rel=1e-4)


def test_a_size_at_its_limit_goes_back():
    def after(**limits):
        p = nn.Parameter(10 * torch.ones(4, 4))
        optimizer = ScaledAdam([p], lr=0.01, **limits)
        for _ in range(8):
            p.grad = -p.detach()  # it wants to grow
            optimizer.step()
        return float(p.detach().mean())

    assert after(param_max_rms=3.0) < after(param_max_rms=100.0)
    number = nn.Parameter(torch.tensor([9.999]))
    optimizer = ScaledAdam([number], lr=1.0)
    for _ in range(50):
        number.grad = torch.tensor([-1.0])
        optimizer.step()
    assert float(number.detach()) <= 10.1


def test_a_gradient_far_over_the_median_is_clipped():
    def after(last):
        p = nn.Parameter(torch.ones(4, 4))
        optimizer = ScaledAdam([p], lr=0.01, clipping_update_period=5)
        for step in range(6):
            p.grad = torch.full_like(p, 1.0 if step < 5 else last)
            optimizer.step()
        return optimizer.state[p]

    far, further, near = (after(size) for size in (50.0, 100.0, 1.5))
    # Norms of the five steps: gradients of 1 times the parameter's size, in a norm over 16.
    assert float(far["threshold"]) == pytest.approx(2 * 4, rel=0.05)
    torch.testing.assert_close(far["exp_avg_sq"], further["exp_avg_sq"])
    assert float(near["exp_avg_sq"].mean()) < 0.9 * float(far["exp_avg_sq"].mean())


def test_edens_rate():
    assert eden(1.0, 0, 0) == 0.5
    assert eden(1.0, 100, 0) == pytest.approx(0.75, rel=1e-3)
    assert eden(2.0, 5000, 0) == pytest.approx(2 * 2**-0.25)
    assert eden(1.0, 200, 100) == pytest.approx(0.20, abs=0.002)
    assert eden(1.0, 200, 200) == pytest.approx(0.14, abs=0.002)
    assert learning_rate(OURS, 5000, 1, epoch=3) == pytest.approx(0.05 * 2**-0.25 * (25 / 16) ** -0.25)


def test_a_line_to_the_end():
    config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="linear", final_lr=0)
    assert [learning_rate(config, step, 6) for step in range(7)] == pytest.approx([0.5, 1, 0.75, 0.5, 0.25, 0, 0])


def test_a_closure_computes_the_gradients():
    def trained(by_closure):
        torch.manual_seed(0)
        network = nn.Linear(3, 4)
        optimizer = ScaledAdam(network.parameters(), lr=0.1)

        def loss():
            value = network(torch.ones(5, 3)).square().mean()
            torch.autograd.backward(value)
            return value

        found = loss() if not by_closure else None
        made = optimizer.step(loss if by_closure else None)
        return network.weight, made if by_closure else found

    (one, its_loss), (other, other_loss) = trained(True), trained(False)
    assert torch.equal(one, other)
    assert torch.equal(its_loss, other_loss)


def test_it_goes_on_from_its_state():
    def network():
        torch.manual_seed(0)
        return nn.Linear(3, 4)

    def update(updater, steps):
        for step in steps:
            torch.manual_seed(step)
            updater.network(torch.randn(5, 3)).square().mean().backward()
            updater.update(step, 0)

    whole = Updater(network(), OURS, 10)
    update(whole, range(7))
    first = Updater(network(), OURS, 10)
    update(first, range(4))
    second = Updater(copy.deepcopy(first.network), OURS, 10)
    load_optimizer(second.network, second.optimizer, optimizer_state(first.network, first.optimizer))
    update(second, range(4, 7))
    for one, other in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_a_recipe_must_be():
    about = {"stage": "gpt", "output": "x", "steps": 1, "data": {"train": ["x"]}}
    ours = {"kind": "scaled_adam", "clip": None, "weight_decay": 0}
    with pytest.raises(ConfigError, match="clips by itself"):
        parse_recipe(about | {"optimizer": {"kind": "scaled_adam"}}, "it")
    with pytest.raises(ConfigError, match="not for sharded parameters"):
        parse_recipe(about | {"optimizer": ours, "engine": {"kind": "fsdp2"}}, "it")
