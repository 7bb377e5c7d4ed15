"""Drawing codes: temperature, top-k, top-p and the guard against repetition, against their definitions."""

from collections import Counter

import pytest
import torch

from xycodec.lm.config import SamplingConfig
from xycodec.lm.sampling import generator_of, sample

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def drawn(past=(), logits=LOGITS, **settings):
    generator = generator_of(0)
    return Counter(sample(logits, SamplingConfig(**settings), generator, past) for _ in range(2000))


def shares(counts):
    return [counts[number] / counts.total() for number in range(4)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
    ],
)
def test_shares(settings, expected):
    # Four standard deviations of 2000 draws at most.
    assert shares(drawn(**settings)) == pytest.approx(expected, abs=0.045)


def test_what_was_said_lately_is_less_likely():
    logits = torch.tensor([2.0, 2.0, -2.0, -2.0])
    guarded = shares(drawn(past=(1, 1, 3, 0, 2), logits=logits, repetition_penalty=2.0, repetition_window=2))
    expected = torch.tensor([1.0, 2.0, -4.0, -2.0]).softmax(0).tolist()
    assert guarded == pytest.approx(expected, abs=0.045)
    off = shares(drawn(past=(1, 1), logits=logits, repetition_penalty=2.0, repetition_window=0))
    assert off == pytest.approx(logits.softmax(0).tolist(), abs=0.045)


def test_a_seed_decides_all_draws_and_leaves_the_logits():
    before = LOGITS.clone()
    assert drawn() == drawn()
    assert sample(LOGITS, SamplingConfig(repetition_penalty=3.0), generator_of(1), (0,)) in range(4)
    assert torch.equal(LOGITS, before)
    forbidden = torch.tensor([-torch.inf, 0.0, -torch.inf, -torch.inf])
    assert set(drawn(logits=forbidden, top_p=0.9, top_k=3)) == {1}
