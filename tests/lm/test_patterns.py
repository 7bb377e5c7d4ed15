"""Patterns are exact: what `apply` gives, `revert` gives back, and masks tell where codes are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xycodec.errors import XycodecError
from xycodec.lm.patterns import (
    Delayed,
    FirstBook,
    Flattened,
    join_stages,
    one_after_another,
    parallel,
    split_autoregressive,
    split_non_autoregressive,
)

SIZE = 20


@st.composite
def codes(draw, least=0):
    n_q, frames, seed = draw(st.integers(1, 8)), draw(st.integers(least, 30)), draw(st.integers(0, 999))
    return torch.randint(SIZE, (n_q, frames), generator=torch.Generator().manual_seed(seed))


@st.composite
def patterns(draw, n_q):
    delays = draw(st.lists(st.integers(0, 9), min_size=n_q, max_size=n_q))
    kinds = [
        Delayed(tuple(delays), SIZE), parallel(n_q, SIZE), one_after_another(n_q, SIZE),
        Flattened(n_q, SIZE), Flattened(n_q, SIZE, shared=True), Delayed((0, *[1] * (n_q - 1)), SIZE),
    ]  # fmt: skip
    return draw(st.sampled_from(kinds))


@given(st.data())
def test_a_pattern_and_its_inverse(data):
    given = data.draw(codes())
    pattern = data.draw(patterns(len(given)))
    rows = pattern.apply(given)
    assert rows.dtype == torch.int64
    assert torch.equal(pattern.revert(rows), given)
    mask = pattern.mask(given.shape[1])
    assert mask.shape == rows.shape
    assert int(mask.sum()) == given.numel()
    assert torch.equal(mask, rows != pattern.pad)


@given(st.data())
def test_a_pad_inside_is_told(data):
    given = data.draw(codes(least=1))
    pattern = data.draw(patterns(len(given)))
    rows = pattern.apply(given)
    places = pattern.mask(given.shape[1]).nonzero().tolist()
    row, channel = data.draw(st.sampled_from(places))
    rows[row, channel] = pattern.pad
    with pytest.raises(XycodecError, match=r"a pad .* lies inside"):
        pattern.revert(rows)


@given(codes(), st.data())
def test_delays_by_hand(given, data):
    delays = data.draw(st.lists(st.integers(0, 5), min_size=len(given), max_size=len(given)))
    rows = Delayed(tuple(delays), -1).apply(given)
    for t in range(len(rows)):
        for q, delay in enumerate(delays):
            inside = 0 <= t - delay < given.shape[1]
            assert rows[t, q] == (given[q, t - delay] if inside else -1)


def test_flattened_ids_by_hand():
    given = torch.tensor([[1, 2], [3, 4]])
    assert Flattened(2, 10).apply(given).flatten().tolist() == [1, 13, 2, 14]
    assert Flattened(2, 10, shared=True).apply(given).flatten().tolist() == [1, 3, 2, 4]
    with pytest.raises(XycodecError, match="row 1 holds 3, which is no code of codebook 1"):
        Flattened(2, 10).revert(torch.tensor([[1], [3]]))
    with pytest.raises(XycodecError, match="are not whole frames of 2"):
        Flattened(2, 10).revert(torch.tensor([[1], [13], [2]]))


@given(codes())
def test_the_first_codebook(given):
    pattern = FirstBook(SIZE)
    rows = pattern.apply(given)
    assert torch.equal(rows[:, 0], given[0])
    assert torch.equal(pattern.revert(rows), given[:1])
    assert pattern.mask(given.shape[1]).all()


@given(st.data())
def test_the_stages_of_valle(data):
    given = data.draw(codes(least=1))
    first = split_autoregressive(given, SIZE)
    assert first.tolist() == [*given[0].tolist(), SIZE]
    others = []
    for stage in range(1, len(given)):
        prompt = data.draw(st.integers(0, given.shape[1]))
        step = split_non_autoregressive(given, stage, prompt)
        assert torch.equal(step.prompt, given[:, :prompt])
        assert torch.equal(torch.cat([step.known, step.target[None]]), given[: stage + 1, prompt:])
        others.append(torch.cat([step.prompt[stage], step.target]))
    assert torch.equal(join_stages(first, others, SIZE), given)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(XycodecError, match=r"has 20 at \[1, 2\]"):
        join_stages(torch.tensor([1, 20, 20]), [], 20)
    with pytest.raises(XycodecError, match=r"has 20 at \[\]"):
        join_stages(torch.tensor([1]), [], 20)
    with pytest.raises(XycodecError, match="1 frames of the first codebook"):
        join_stages(torch.tensor([1, 20]), [torch.tensor([1, 2])], 20)
    with pytest.raises(XycodecError, match="no stage 2"):
        split_non_autoregressive(torch.zeros(2, 4), 2, 0)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 4), (3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(XycodecError, match="of shape"):
        parallel(2, SIZE).apply(torch.zeros(shape, dtype=torch.int64))


def test_delays_that_are_none_are_refused():
    for delays in ((), (0, -1)):
        with pytest.raises(XycodecError, match="delays"):
            Delayed(delays, SIZE)
