from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from xycodec.eval.report.statistics import FEWEST_SPEAKERS, LEVEL, Intervals
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


def by_leaving_out(units, measure):
    """The interval as a loop: every list lacks one unit, and is measured like any other list."""
    units = [unit for unit in units if unit]
    whole = measure([one for unit in units for one in unit])
    values = np.array(
        [measure([one for unit in units[:place] + units[place + 1 :] for one in unit]) for place in range(len(units))]
    )
    half = t.ppf((1 + LEVEL) / 2, len(units) - 1) * values.std() * np.sqrt(len(units) - 1)
    return [whole - half, whole + half]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("per_speaker", [None, 3])
def test_an_interval_is_that_of_a_plain_loop(metric, per_speaker):
    some = clips(18, seed=1, per_speaker=per_speaker)
    some[4], some[5] = without(metric, some[4]), without(metric, some[5])
    size = per_speaker or 1
    units = [some[start : start + size] for start in range(0, len(some), size)]
    units = [[one for one in unit if metric in one.scores.values] for unit in units]
    found = Intervals(some).estimates({"a": some}, METRICS)["a"][metric]
    assert found.value == pooled(some, metric)
    assert found.clips == 16
    assert [found.low, found.high] == pytest.approx(by_leaving_out(units, lambda some: pooled(some, metric)))
    assert found.low < found.value < found.high


@pytest.mark.parametrize("metric", METRICS)
def test_a_difference_is_that_of_a_plain_loop_over_pairs(metric):
    base, other = clips(12, seed=2), clips(12, seed=3)
    base[0], other[1] = without(metric, base[0]), without(metric, other[1])
    found = Intervals(base).differences({"b": other}, base, METRICS)["b"][metric]

    def measure(draw):
        return pooled([two for _, two in draw], metric) - pooled([one for one, _ in draw], metric)

    pairs = list(zip(base, other, strict=True))
    units = [[pair] if number > 1 else [] for number, pair in enumerate(pairs)]
    assert found.clips == 10
    assert found.value == measure(pairs[2:])
    assert [found.low, found.high] == pytest.approx(by_leaving_out(units, measure))
    sign = 1 if metric == "stoi" else -1
    wins = [sign * (two.scores.values[metric] - one.scores.values[metric]) > 0 for one, two in pairs[2:]]
    assert found.better == sum(wins) / 10
    assert found.equal == 0


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(0.7, 0.1, 12)
    some = [clip(number, {"stoi": value}) for number, value in enumerate(values)]
    found = Intervals(some).estimates({"a": some}, ["stoi"])["a"]["stoi"]
    half = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half])


def test_an_interval_from_five_speakers_holds_the_truth_as_often_as_it_says():
    """Intervals hold the truth in 95 % of 1,000 evaluations, within three standard errors (2.1 %) and a little.

    Clips have different numbers of words, so that word errors are a ratio of two random sums.
    """
    speakers = 5
    random = np.random.default_rng(1)
    trials, held = 1000, {"stoi": 0, "wer": 0, "difference": 0}
    for _ in range(trials):
        voices = random.normal(0, 0.05, speakers).repeat(5)
        stoi = 0.8 + voices + random.normal(0, 0.05, 5 * speakers)
        gain = 0.02 + random.normal(0, 0.02, speakers).repeat(5) + random.normal(0, 0.02, 5 * speakers)
        words = random.integers(10, 20, 5 * speakers)
        wrong = 0.3 + voices + random.normal(0, 0.05, 5 * speakers)
        base, other = (
            [
                clip(n, {"stoi": values[n], "wer": wrong[n]}, speaker=f"s{n // 5}", weights={"wer": float(words[n])})
                for n in range(5 * speakers)
            ]
            for values in (stoi, stoi + gain)
        )
        intervals = Intervals(base)
        found = intervals.estimates({"a": base}, ["stoi", "wer"])["a"]
        gained = intervals.differences({"b": other}, base, ["stoi"])["b"]["stoi"]
        for name, one, truth in (
            ("stoi", found["stoi"], 0.8), ("wer", found["wer"], 0.3), ("difference", gained, 0.02),
        ):  # fmt: skip
            held[name] += one.low <= truth <= one.high
    for count in held.values():
        assert count / trials == pytest.approx(LEVEL, abs=0.025)


def test_more_clips_of_the_same_speakers_say_no_more():
    few = clips(8, seed=4, per_speaker=1)
    many = [replace(one, clip=f"{one.clip}-{copy}") for one in few for copy in range(50)]
    one, two = (Intervals(some).estimates({"a": some}, METRICS)["a"] for some in (few, many))
    for metric in METRICS:
        assert [two[metric].low, two[metric].high] == pytest.approx([one[metric].low, one[metric].high])


def test_speakers_are_drawn_where_enough_are_named():
    few, enough = (clips(2 * speakers, seed=5, per_speaker=2) for speakers in (FEWEST_SPEAKERS - 1, FEWEST_SPEAKERS))
    assert (Intervals(few).unit, Intervals(few).units) == ("clip", len(few))
    assert (Intervals(enough).unit, Intervals(enough).units) == ("speaker", FEWEST_SPEAKERS)
    unnamed = [replace(one, clip=f"other{number}", speaker=None) for number, one in enumerate(few)]
    assert Intervals([*enough, *unnamed]).units == FEWEST_SPEAKERS + len(unnamed)
    elsewhere = [replace(one, clip=f"there{number}", source="there") for number, one in enumerate(enough)]
    assert Intervals([*enough, *elsewhere]).units == 2 * FEWEST_SPEAKERS


def test_a_constant_gain_is_certain_though_the_values_are_not():
    base = clips(20, seed=6)
    better = [replace(one, scores=Scores({"stoi": one.scores.values["stoi"] + 0.125})) for one in base]
    found = Intervals(base).differences({"b": better, "same": base}, base, ["stoi"])
    gain = found["b"]["stoi"]
    assert [gain.value, gain.low, gain.high, gain.better] == pytest.approx([0.125, 0.125, 0.125, 1])
    same = found["same"]["stoi"]
    assert (same.value, same.low, same.high, same.better, same.equal) == (0, 0, 0, 0, 1)


def test_what_no_clip_has_has_no_estimate_and_one_clip_no_interval():
    one = [clip(0, {"stoi": 0.5})]
    found = Intervals(one).estimates({"a": one, "nothing": []}, METRICS)
    assert set(found["a"]) == {"stoi"}
    assert (found["a"]["stoi"].low, found["a"]["stoi"].high) == (None, None)
    assert found["nothing"] == {}
    assert Intervals(one).differences({"nothing": []}, one, METRICS) == {"nothing": {}}
