from dataclasses import replace

import numpy as np
import pytest

from xycodec.eval.report.statistics import FEWEST_SPEAKERS, LEVEL, RESAMPLES, Resamples
from xycodec.eval.results import ClipResult, Scores, pooled

METRICS = ("stoi", "wer", "f0_error")  # a mean, a ratio, a root


def clip(number, values, *, speaker=None, source="here", weights=None):
    scores = Scores(values, {}, weights or {})
    return ClipResult(f"clip{number:04d}", source, speaker, None, 1.0 + number, scores=scores)


def clips(count, seed, *, per_speaker=None):
    random = np.random.default_rng(seed)
    return [
        clip(
            number,
            {"stoi": random.uniform(), "wer": random.uniform(), "f0_error": random.uniform(1, 900)},
            speaker=None if per_speaker is None else f"s{number // per_speaker}",
            weights={"wer": float(random.integers(1, 30))},
        )
        for number in range(count)
    ]


def without(metric, one):
    values = {name: value for name, value in one.scores.values.items() if name != metric}
    return replace(one, scores=replace(one.scores, values=values, missing={metric: "silent"}))


def drawn_one_by_one(units, measure, seed=0):
    """The bootstrap as a loop: every draw is a list of clips, measured like any other list."""
    counts = np.random.default_rng(seed).multinomial(len(units), np.full(len(units), 1 / len(units)), size=RESAMPLES)
    draws = ([one for unit, times in zip(units, row, strict=True) for one in unit * int(times)] for row in counts)
    values = [value for value in map(measure, draws) if value is not None]
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("per_speaker", [None, 3])
def test_an_interval_is_that_of_a_plain_loop(metric, per_speaker):
    some = clips(18, seed=1, per_speaker=per_speaker)
    some[4], some[5] = without(metric, some[4]), without(metric, some[5])
    size = per_speaker or 1
    units = [some[start : start + size] for start in range(0, len(some), size)]
    found = Resamples(some).estimates({"a": some}, METRICS)["a"][metric]
    assert found.value == pooled(some, metric)
    assert found.clips == 16
    assert [found.low, found.high] == pytest.approx(drawn_one_by_one(units, lambda draw: pooled(draw, metric)))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("metric", METRICS)
def test_a_difference_is_that_of_a_plain_loop_over_pairs(metric):
    base, other = clips(12, seed=2), clips(12, seed=3)
    base[0], other[1] = without(metric, base[0]), without(metric, other[1])
    found = Resamples(base).differences({"b": other}, base, METRICS)["b"][metric]

    def measure(draw):
        return pooled([two for _, two in draw], metric) - pooled([one for one, _ in draw], metric) if draw else None

    pairs = list(zip(base, other, strict=True))
    units = [[pair] if number > 1 else [] for number, pair in enumerate(pairs)]
    assert found.clips == 10
    assert found.value == measure(pairs[2:])
    assert [found.low, found.high] == pytest.approx(drawn_one_by_one(units, measure))
    sign = 1 if metric == "stoi" else -1
    wins = [sign * (two.scores.values[metric] - one.scores.values[metric]) > 0 for one, two in pairs[2:]]
    assert found.better == sum(wins) / 10
    assert found.equal == 0


def test_the_interval_of_many_clips_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    some = [clip(number, {"stoi": value}) for number, value in enumerate(values)]
    found = Resamples(some).estimates({"a": some}, ["stoi"])["a"]["stoi"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_more_clips_of_the_same_speakers_say_no_more():
    few = clips(8, seed=4, per_speaker=1)
    many = [replace(one, clip=f"{one.clip}-{copy}") for one in few for copy in range(50)]
    one, two = (Resamples(some).estimates({"a": some}, METRICS)["a"] for some in (few, many))
    for metric in METRICS:
        assert [two[metric].low, two[metric].high] == pytest.approx([one[metric].low, one[metric].high])


def test_speakers_are_drawn_where_enough_are_named():
    few, enough = (clips(2 * speakers, seed=5, per_speaker=2) for speakers in (FEWEST_SPEAKERS - 1, FEWEST_SPEAKERS))
    assert (Resamples(few).unit, Resamples(few).units) == ("clip", len(few))
    assert (Resamples(enough).unit, Resamples(enough).units) == ("speaker", FEWEST_SPEAKERS)
    unnamed = [replace(one, clip=f"other{number}", speaker=None) for number, one in enumerate(few)]
    assert Resamples([*enough, *unnamed]).units == FEWEST_SPEAKERS + len(unnamed)
    elsewhere = [replace(one, clip=f"there{number}", source="there") for number, one in enumerate(enough)]
    assert Resamples([*enough, *elsewhere]).units == 2 * FEWEST_SPEAKERS


def test_a_constant_gain_is_certain_though_the_values_are_not():
    base = clips(20, seed=6)
    better = [replace(one, scores=Scores({"stoi": one.scores.values["stoi"] + 0.125})) for one in base]
    found = Resamples(base).differences({"b": better, "same": base}, base, ["stoi"])
    gain = found["b"]["stoi"]
    assert [gain.value, gain.low, gain.high, gain.better] == pytest.approx([0.125, 0.125, 0.125, 1])
    same = found["same"]["stoi"]
    assert (same.value, same.low, same.high, same.better, same.equal) == (0, 0, 0, 0, 1)


def test_what_no_clip_has_has_no_estimate_and_one_clip_no_interval():
    one = [clip(0, {"stoi": 0.5})]
    found = Resamples(one).estimates({"a": one, "nothing": []}, METRICS)
    assert set(found["a"]) == {"stoi"}
    assert (found["a"]["stoi"].low, found["a"]["stoi"].high) == (None, None)
    assert found["nothing"] == {}
    assert Resamples(one).differences({"nothing": []}, one, METRICS) == {"nothing": {}}


def test_a_seed_gives_the_same_interval_again():
    some = clips(15, seed=7)
    first, again, other = (Resamples(some, seed=seed).estimates({"a": some}, METRICS) for seed in (0, 0, 1))
    assert first == again != other
