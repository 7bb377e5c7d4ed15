"""Sampling: what is drawn in which order, by how many processes, from where on; no audio is read."""

import json
from collections import Counter
from itertools import islice, takewhile

import numpy as np
import pytest
from corpus import config
from lhotse import AudioSource, Recording

from xycodec.data.batch import BEGINNING, Position
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import open_corpus
from xycodec.data.sampling import Sampler, _Cell
from xycodec.errors import ConfigError


def seconds_of(number):
    """0.5 to 2 s, in no order."""
    return 0.5 + 0.03 * (number * 37 % 51)


def manifest(path, count, seconds=seconds_of):
    """A manifest of recordings that do not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for number in range(count):
            samples = round(16000 * seconds(number))
            source = AudioSource("file", [0], f"{number}.wav")
            cut = Recording(f"{number}", [source], 16000, samples, samples / 16000).to_cut()
            file.write(json.dumps(cut.to_dict()) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_corpus([SourceConfig(path=str(manifest(tmp_path_factory.mktemp("cuts") / "cuts.jsonl", 2000)))])


def sampler(corpus, rank=0, world_size=1, seed=0, **settings):
    settings = {"batch_clips": 7, "batch_seconds": 8.0, "buckets": 5} | settings
    return Sampler(
        corpus, config(**settings), output_sample_rate=16000, seed=seed, rank=rank, world_size=world_size
    )  # fmt: skip


def all_steps(corpus, world_size, start=BEGINNING, epoch=0, **settings):
    """Steps of all processes up to the end of an epoch: [(numbers of all processes, position)]."""
    streams = [
        takewhile(
            lambda step: step[1].epoch == epoch,
            sampler(corpus, rank, world_size, **settings).steps(start),
        )
        for rank in range(world_size)
    ]
    joined = []
    for parts in zip(*streams, strict=True):
        (position,) = {position for _, position in parts}
        joined.append(([draw for draws, _ in parts for draw in draws], position))
    return joined


def numbers(steps):
    return [number for draws, _ in steps for number, _ in draws]


@pytest.mark.parametrize("buckets", [0, 5])
def test_a_clip_may_stand_anywhere_in_an_epoch(corpus, buckets):
    """A corpus sorted by language must not be learned language after language."""
    orders = [numbers(all_steps(corpus, 2, Position(epoch, 0), epoch, buckets=buckets)) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(2000))
        # Medians of 200 of the numbers 0 to 1999 deviate by 71 from 1000.
        medians = [np.median(part) for part in np.split(np.array(order), 10)]
        assert max(abs(median - 1000) for median in medians) < 300
        # Neighbours of the manifest are no neighbours: the mean distance of two of 2000 places is 667.
        assert np.abs(np.diff(np.argsort(order))).mean() > 600
    # One epoch says nothing about the next: the correlation of 2000 places deviates by 0.022.
    places = np.argsort(orders, axis=1)
    assert np.abs(np.corrcoef(places) - np.eye(3)).max() < 0.1


def test_the_end_of_an_epoch_is_as_mixed_as_its_beginning(corpus):
    """Every tenth of an epoch has clips of all durations."""
    order = numbers(all_steps(corpus, 1))
    for part in np.split(np.array(order), 10):
        assert 1.05 < np.mean([seconds_of(int(number)) for number in part]) < 1.45


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 8), (1, 3), (8, 1)])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_other_processes_go_on_with_the_clips_that_are_left(corpus, before, after, share):
    whole = all_steps(corpus, before)
    taken = whole[: round(share * len(whole))]
    left = all_steps(corpus, after, taken[-1][1])
    assert sorted(numbers(taken) + numbers(left)) == list(range(2000))
    assert left[-1][1].batch == len(taken) + len(left)
    # And once more, back on as many as at first.
    half = left[: len(left) // 2]
    rest = all_steps(corpus, before, half[-1][1])
    assert sorted(numbers(taken) + numbers(half) + numbers(rest)) == list(range(2000))


def test_other_batch_sizes_go_on_as_well(corpus):
    taken = all_steps(corpus, 2)[:50]
    left = all_steps(corpus, 2, taken[-1][1], batch_clips=3)
    assert sorted(numbers(taken) + numbers(left)) == list(range(2000))


def test_the_same_processes_go_on_with_the_same_batches(corpus):
    whole = list(islice(sampler(corpus, 1, 3).steps(BEGINNING), 250))
    assert whole[-1][1].epoch == 1
    for place in (1, 60, 200):
        assert list(islice(sampler(corpus, 1, 3).steps(whole[place][1]), 20)) == whole[place + 1 : place + 21]


def test_going_on_draws_nothing_of_what_was_taken(corpus, monkeypatch):
    start = all_steps(corpus, 1)[-3][1]
    drawn = []
    at = _Cell.at
    monkeypatch.setattr(_Cell, "at", lambda self, *where: drawn.append(where) or at(self, *where))
    draws, _ = next(sampler(corpus).steps(start))
    assert len(drawn) == len(draws)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"buckets": 0}, {"batch_clips": 1}, {"batch_clips": 999}])
def test_batches_of_an_epoch_are_counted_without_drawing(corpus, world_size, settings):
    assert sampler(corpus, 0, world_size, **settings).batches_per_epoch() == len(
        all_steps(corpus, world_size, **settings)
    )


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"buckets": 4}, {"min_seconds": 0.6}, {"clip_seconds": 1.0, "batch_seconds": 9.0}]
)
def test_a_place_in_another_order_is_not_gone_on_from(corpus, change):
    """The next epoch begins instead."""
    old = list(islice(sampler(corpus).steps(BEGINNING), 40))[-1][1]
    other = sampler(corpus, **change)
    assert other.resumed(old) == Position(1, 0)
    assert next(other.steps(old)) == next(other.steps(Position(1, 0)))
    assert sampler(corpus).resumed(old) == old


def test_a_place_of_an_earlier_version_begins_the_next_epoch(corpus):
    assert sampler(corpus).resumed(Position(3, 17)) == Position(4, 0)
    assert sampler(corpus).resumed(Position(3, 0)) == Position(3, 0)


def test_the_order_is_that_of_the_clips_and_not_of_their_paths(tmp_path):
    """A corpus that moved to another disk is the same; one with another clip in it is not."""
    found = []
    for name, count, more in (("a", 40, 0.0), ("moved/to/b", 40, 0.0), ("c", 41, 0.0), ("d", 40, 0.01)):
        path = manifest(tmp_path / f"{name}.jsonl", count, lambda i, more=more: seconds_of(i) + more * (i == 20))
        path.write_text(path.read_text().replace(".wav", f"{name}.wav"))
        found.append(sampler(open_corpus([SourceConfig(path=str(path))])).order)
    assert found[0] == found[1]
    assert len(set(found)) == 3


# ---- mixes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """Sources of 300, 60 and 140 clips, of which the last are short ones, with weights."""
    folder = tmp_path_factory.mktemp("mix")
    parts = [(300, 1.0, seconds_of), (60, 3.0, seconds_of), (140, 1.0, lambda i: 0.5 + 0.001 * i)]
    return open_corpus(
        [
            SourceConfig(path=str(manifest(folder / f"{i}.jsonl", count, seconds)), weight=weight)
            for i, (count, weight, seconds) in enumerate(parts)
        ]
    )


def drawn_of(mix, count, world_size=1, start=BEGINNING):
    steps = [list(islice(sampler(mix, rank, world_size).steps(start), count)) for rank in range(world_size)]
    draws = [draw for step in zip(*steps, strict=True) for part, _ in step for draw in part]
    return draws, steps[0][-1][1]


def test_shares_of_a_mix_are_its_weights(mix):
    draws, _ = drawn_of(mix, 3000)
    shares = Counter(int(np.searchsorted(mix.starts, number, side="right")) - 1 for number, _ in draws)
    assert [shares[i] / len(draws) for i in range(3)] == pytest.approx([0.2, 0.6, 0.2], abs=0.02)


def test_all_clips_of_a_source_in_a_mix_come_equally_often(mix):
    """Exactly so in a cell, on whatever processes and after whatever stops."""
    draws, place = drawn_of(mix, 500)
    for world_size, steps in ((4, 150), (2, 300), (3, 100)):
        more, place = drawn_of(mix, steps, world_size, place)
        draws += more
    times = Counter(number for number, _ in draws)
    for cell in sampler(mix)._cells:
        counts = [times[int(number)] for number in cell.numbers]
        assert max(counts) - min(counts) <= 1
    # A clip that comes again has other crops: its turns are all different.
    assert len(set(draws)) == len(draws)


def test_a_mix_is_mixed_from_its_first_step_on(mix):
    draws, _ = drawn_of(mix, 40)
    first = [number for number, _ in draws if number < 300]
    assert abs(np.median(first) - 150) < 75
    assert drawn_of(mix, 40)[0] == draws


def test_a_source_without_usable_clips_gives_nothing_to_a_mix(tmp_path):
    parts = [manifest(tmp_path / "good.jsonl", 30), manifest(tmp_path / "short.jsonl", 30, lambda i: 0.2)]
    mix = open_corpus([SourceConfig(path=str(path), weight=1) for path in parts])
    draws, _ = drawn_of(mix, 50)
    assert {number for number, _ in draws} == set(range(30))
    alone = open_corpus([SourceConfig(path=str(parts[1]), weight=1)])
    with pytest.raises(ConfigError, match="no clip is left"):
        sampler(alone)
