from copy import deepcopy

import pytest
import torch
from torch.nn.utils import parametrize

import reference
from xycodec.nn.dac import ResidualUnit, ResidualUnits, Snake
from xycodec.nn.deterministic import residual_filter

CHANNELS, FRAMES = (3, 64, 512, 768), (1, 2, 25, 200, 333)


def make(channels, kind=ResidualUnits, **settings):
    """Frozen units with weights of one tensor, as a codec that was loaded has them."""
    part = reference.randomise(kind(channels, **settings), scale=1.0)
    for module in list(part.modules()):
        if isinstance(module, Snake):
            torch.nn.init.uniform_(module.alpha, 0.3, 3.0)
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return part.requires_grad_(False)


def plain(units, x, snake):
    """(T, C), as torch's convolutions compute it where weights learn."""
    y = x.t()[None]
    for unit in units:
        y = unit(y)
    return snake(y)[0].t()


def units_of(channels, frames):
    torch.manual_seed(0)
    return make(channels), Snake(channels).requires_grad_(False), torch.randn(frames, channels)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("frames", FRAMES)
def test_units_are_their_convolutions(channels, frames):
    units, snake, x = units_of(channels, frames)
    torch.testing.assert_close(units.rows(x, snake), plain(units, x, snake), atol=2e-4, rtol=1e-5)


@pytest.mark.exact
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("frames", FRAMES)
def test_threads_do_not_matter(threads, channels, frames):
    units, snake, x = units_of(channels, frames)
    threads(1)
    got = units.rows(x, snake)
    for count in (2, 4):
        threads(count)
        assert torch.equal(units.rows(x, snake), got), count


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_errors_of_rounding_are_less_than_twice_those_of_plain_sums(dilation):
    torch.manual_seed(0)
    unit, x = make(64, ResidualUnit, dilation=dilation), torch.randn(2000, 64)
    exact = deepcopy(unit).double()(x.double().t()[None])[0].t()
    fast, slow = residual_filter.filtered([unit.filter()], x, lambda y, out: out.copy_(y)), unit(x.t()[None])[0].t()
    error, usual = ((y - exact).square().mean().sqrt() for y in (fast, slow))
    assert error < 2 * usual


@pytest.mark.parametrize("frames", [1, 7, 100, 101, 333])
def test_parts_are_the_whole(monkeypatch, frames):
    units, snake, x = make(6), Snake(6).requires_grad_(False), torch.randn(frames, 6)
    whole = units.rows(x, snake)
    for part in (2, 50, 100):
        monkeypatch.setattr(residual_filter, "PART", part)
        torch.testing.assert_close(units.rows(x, snake), whole, atol=1e-5, rtol=1e-5)


def test_a_channel_of_alpha_zero_passes_unchanged():
    unit, x = make(4, ResidualUnit, dilation=3), torch.randn(50, 4)
    unit.snake1.alpha.zero_()
    unit.snake2.alpha[:, 1] = 0.0
    got = residual_filter.filtered([unit.filter()], x, lambda y, out: out.copy_(y))
    torch.testing.assert_close(got, unit(x.t()[None])[0].t(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_is_made_once_and_anew_where_weights_change():
    unit = make(4, ResidualUnit, dilation=1)
    first = unit.filter()
    assert unit.filter() is first
    for weight in unit.parameters():
        weight.mul_(1.5)
        changed = unit.filter()
        assert changed is not first
        weight.data = weight.data.clone()
        first = unit.filter()
        assert first is not changed
    unit.load_state_dict(unit.state_dict())
    assert unit.filter() is not first


def test_weights_whose_changes_nobody_counts():
    unit = make(4, ResidualUnit, dilation=1).requires_grad_(True)
    with torch.no_grad():
        assert unit.filter() is not unit.filter()
    with torch.inference_mode():
        unit = make(4, ResidualUnit, dilation=1)
        assert unit.filter() is not unit.filter()


def test_weights_keep_their_values():
    unit = make(4, ResidualUnit, dilation=1)
    before = deepcopy(unit.state_dict())
    unit.filter()
    assert unit.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in unit.state_dict().items())
