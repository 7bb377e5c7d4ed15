import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import accumulate

import pytest
import torch
from corpus import config, corpus, cut_of, noise, numbered, save
from lhotse import CutSet

from xycodec.data.batch import Position
from xycodec.data.clip import load_clip
from xycodec.data.config import Augmentation
from xycodec.data.corpus import Corpus, open_corpus
from xycodec.data.stream import BatchStream, draw_validation, validation_batches
from xycodec.errors import ConfigError

ALL = Augmentation(speed=1, pitch=1, gain=1, eq=1)


def stream(cuts, settings, rank=0, world_size=1, seed=0, rate=16000):
    corpus = cuts if isinstance(cuts, Corpus) else numbered(cuts)
    return BatchStream(corpus, settings, output_sample_rate=rate, seed=seed, rank=rank, world_size=world_size)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def one_epoch(cuts, settings, epoch=0, **place):
    batches = stream(cuts, settings, **place).batches(Position(epoch, 0))
    return list(itertools.takewhile(lambda batch: batch.position.epoch == epoch, batches))


def assert_same(one, other):
    assert one.position == other.position
    assert (one.ids, one.lengths, one.texts, one.skipped) == (other.ids, other.lengths, other.texts, other.skipped)
    assert one.target_lengths == other.target_lengths
    assert torch.equal(one.audio, other.audio)
    assert torch.equal(one.target, other.target)


@pytest.mark.parametrize("buckets", [0, 3, 20])
def test_an_epoch_holds_every_clip_once(tmp_path, buckets):
    cuts = corpus(tmp_path, 21)
    settings = config(buckets=buckets)
    batches = one_epoch(cuts, settings)
    assert sorted(name for batch in batches for name in batch.ids) == [cut.id for cut in cuts]
    assert [(batch.position.epoch, batch.position.batch) for batch in batches] == [
        (0, i + 1) for i in range(len(batches))
    ]
    assert [sum(batch.position.taken) for batch in batches] == list(accumulate(len(batch.ids) for batch in batches))
    assert stream(cuts, settings).batches_per_epoch() == len(batches)
    assert all(len(batch.ids) <= settings.batch_clips for batch in batches)


def test_a_batch_holds_what_each_clip_gives_alone(tmp_path):
    cuts = {cut.id: cut for cut in corpus(tmp_path, 9, rate=24000)}
    settings = config(crop="random", clip_seconds=1.0, augment=ALL)
    for epoch in (0, 1):
        for batch in one_epoch(CutSet(cuts.values()), settings, epoch, seed=7, rate=24000):
            for i, name in enumerate(batch.ids):
                clip = load_clip(cuts[name], settings, output_sample_rate=24000, seed=7, epoch=epoch)
                assert torch.equal(batch.audio[i, : batch.lengths[i]], clip.audio)
                assert torch.equal(batch.target[i, : batch.target_lengths[i]], clip.target)
                assert batch.texts[i] == clip.text


def test_the_same_seed_gives_the_same_stream_and_another_epoch_another_order(tmp_path):
    cuts = corpus(tmp_path, 20)

    def order(**which):
        return [batch.ids for batch in one_epoch(cuts, config(), **which)]

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    # Not the draws of seed 0, shifted by an epoch.
    assert order(epoch=1) != order(seed=1)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("taken", [1, 4, 6, 7, 13])
def test_a_stream_resumes_where_it_was_left(tmp_path, workers, taken):
    cuts = corpus(tmp_path, 22)
    whole = stream(cuts, config(crop="random", clip_seconds=1.0, augment=ALL))
    per_epoch = whole.batches_per_epoch()
    assert per_epoch in (6, 7)  # so that the positions lie before, on and after the end of an epoch
    uninterrupted = take(whole.batches(), 18)
    settings = config(crop="random", clip_seconds=1.0, augment=ALL, workers=workers)
    before = take(stream(cuts, settings).batches(), taken)
    after = take(stream(cuts, settings).batches(before[-1].position), 18 - taken)
    for one, other in zip(uninterrupted, before + after, strict=True):
        assert_same(one, other)


def test_the_global_generator_is_left_alone(tmp_path):
    cuts = corpus(tmp_path, 5)
    for workers in (0, 1):
        before = torch.get_rng_state()
        take(stream(cuts, config(workers=workers)).batches(), 3)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("buckets", [0, 3])
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 9, 21, 24])
def test_processes_take_equally_many_batches_and_share_the_clips(tmp_path, world_size, count, buckets):
    cuts = corpus(tmp_path, count)
    settings = config(buckets=buckets)
    parts = [one_epoch(cuts, settings, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert stream(cuts, settings, rank=1, world_size=world_size).batches_per_epoch() == len(parts[0])
    names = [name for part in parts for batch in part for name in batch.ids if name]
    assert sorted(names) == [cut.id for cut in cuts]
    for step in zip(*parts, strict=True):
        assert len({batch.position for batch in step}) == 1
        assert all(batch.lengths != (0,) or len(other.ids) == 1 for batch in step for other in step)


def test_a_clip_is_cropped_alike_in_every_process(tmp_path):
    cuts = corpus(tmp_path, 12)
    settings = config(crop="random", clip_seconds=0.5, augment=ALL)

    def clips(world_size):
        return {
            name: batch.audio[i, : batch.lengths[i]]
            for rank in range(world_size)
            for batch in one_epoch(cuts, settings, rank=rank, world_size=world_size)
            for i, name in enumerate(batch.ids)
        }

    alone, shared = clips(1), clips(3)
    assert alone.keys() == shared.keys() - {""}
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


@pytest.mark.parametrize(("buckets", "most"), [(0, 3), (8, 6)])
def test_a_batch_stays_below_its_seconds_padding_included(tmp_path, buckets, most):
    cuts = corpus(tmp_path, 60, lambda i: 0.5 + 0.02 * ((7 * i) % 60))
    slow = Augmentation(speed=1, speed_range=(0.8, 0.9))
    settings = config(buckets=buckets, batch_clips=50, batch_seconds=6.0, augment=slow)
    sizes = []
    for world_size in (1, 3):
        for rank in range(world_size):
            batches = one_epoch(cuts, settings, rank=rank, world_size=world_size)
            assert all(batch.audio.numel() <= 6 * 16000 for batch in batches)
            sizes += [len(batch.ids) for batch in batches]
    # Without buckets any clip may be 2 s long; with them the shortest fill a batch in greater numbers.
    assert max(sizes) == most


def test_a_batch_comes_from_one_bucket(tmp_path):
    cuts = corpus(tmp_path, 40, lambda i: 0.5 + 0.03 * ((11 * i) % 40))

    def padding(buckets):
        batches = one_epoch(cuts, config(buckets=buckets))
        return 1 - sum(sum(batch.lengths) for batch in batches) / sum(batch.audio.numel() for batch in batches)

    assert padding(5) < 0.5 * padding(0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_buckets_of_few_and_of_many_batches_end_together(tmp_path, world_size):
    # A batch holds 4 clips of 0.5 s or 2 of 1 s, so that there are twice as many batches of long clips.
    cuts = corpus(tmp_path, 80, lambda i: 1.0 if i % 2 else 0.5)
    long = {cut.id for cut in cuts if cut.duration > 0.75}
    settings = config(buckets=4, batch_clips=4, batch_seconds=2.0, clip_seconds=1.0)
    for epoch in range(3):
        kinds = [batch.ids[0] in long for batch in one_epoch(cuts, settings, epoch, world_size=world_size)]
        halves = kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]
        assert all(0.4 < sum(half) / len(half) < 0.9 for half in halves)


def mixed(folder):
    """Good clips beside clips that fail in each way."""
    cuts = list(corpus(folder, 8))
    (folder / "001.wav").unlink()
    (folder / "003.wav").write_bytes(b"no audio" * 1000)
    cuts.append(cut_of(save(folder / "silent.wav", noise(1, level=1e-6))))
    cuts.append(cut_of(save(folder / "short.wav", noise(0.3))))
    cuts.append(cut_of(save(folder / "low.wav", noise(1, 8000), 8000)))
    return CutSet(cuts)


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_that_cannot_be_used_are_listed_and_the_stream_goes_on(tmp_path, workers):
    batches = take(stream(mixed(tmp_path), config(workers=workers, buckets=0)).batches(), 6)
    first = [batch for batch in batches if batch.position.epoch == 0]
    assert len(first) == 3
    skipped = dict(pair for batch in first for pair in batch.skipped)
    assert sorted(skipped) == ["001.wav", "003.wav", "silent.wav"]
    assert "No such file" in skipped["001.wav"]
    assert "is not audio" in skipped["003.wav"]
    assert "silent" in skipped["silent.wav"]
    names = sorted(name for batch in first for name in batch.ids if name)
    assert names == ["000.wav", "002.wav", "004.wav", "005.wav", "006.wav", "007.wav"]


def test_a_batch_without_a_usable_clip_still_comes(tmp_path):
    cuts = corpus(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.unlink()
    (batch,) = take(stream(cuts, config()).batches(), 1)
    assert (batch.ids, batch.lengths) == (("",), (0,))
    assert [name for name, _ in batch.skipped] != []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"min_seconds": 60.0}, "no clip is left"),
        ({"batch_seconds": 1.0}, "batch_seconds 1 is below data.clip_seconds 2"),
    ],
)
def test_what_can_never_work_is_said_before_the_first_batch(tmp_path, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        stream(corpus(tmp_path, 3), config(**settings))


def test_an_endless_mix_has_no_epochs_and_resumes(tmp_path):
    for number in (0, 1):
        corpus(tmp_path / f"c{number}", 5).to_file(tmp_path / f"c{number}.jsonl")
    settings = config(
        train=[{"path": str(tmp_path / f"c{number}.jsonl"), "weight": 1 + number} for number in (0, 1)],
        crop="random",
        clip_seconds=0.5,
    )
    cuts = open_corpus(settings.train)
    assert stream(cuts, settings).batches_per_epoch() is None
    whole = take(stream(cuts, settings).batches(), 12)
    assert [(batch.position.epoch, batch.position.batch) for batch in whole] == [(0, i) for i in range(1, 13)]
    for one, other in zip(whole[5:], take(stream(cuts, settings).batches(whole[4].position), 7), strict=True):
        assert_same(one, other)


def test_an_endless_mix_without_a_usable_clip_ends_with_an_error(tmp_path):
    corpus(tmp_path, 3, rate=8000).to_file(tmp_path / "cuts.jsonl")
    settings = config(train=[{"path": str(tmp_path / "cuts.jsonl"), "weight": 1}])
    with pytest.raises(ConfigError, match="no clip is left of those that are too short or below the rate"):
        stream(open_corpus(settings.train), settings)


def test_workers_leave_signals_to_the_main_process(tmp_path):
    batches = stream(corpus(tmp_path, 12), config(workers=2)).batches()
    # They take turns: when either has given a batch, both have begun.
    for _ in range(2):
        next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    time.sleep(0.2)
    assert len(take(batches, 20)) == 20
    assert not any(child.is_alive() for child in children)


@pytest.mark.long
def test_a_process_that_leaves_its_stream_open_ends(tmp_path):
    corpus(tmp_path, 6).to_file(tmp_path / "cuts.jsonl")
    program = f"""
from xycodec.data.corpus import open_corpus
from xycodec.data.stream import BatchStream
from xycodec.data.config import DataConfig
config = DataConfig(train=[{str(tmp_path / "cuts.jsonl")!r}], workers=2)
corpus = open_corpus(config.train)
batches = BatchStream(corpus, config, output_sample_rate=16000, seed=0, rank=0, world_size=1).batches()
print(next(batches).position.batch)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip(), ran.stderr) == (0, "1", "")


def check_validation(cuts, world_size, seed=0, clips=7, **settings):
    clipped, made = config(**settings), numbered(cuts)
    drawn = draw_validation(made, clipped, 16000, seed)[:clips]
    return [
        list(validation_batches(made, drawn, clipped, output_sample_rate=16000, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]


def drawn_ids(cuts, world_size=1, **how):
    parts = check_validation(cuts, world_size, **how)
    batches = sorted((batch for part in parts for batch in part), key=lambda batch: batch.position)
    return [name for batch in batches for name in [*batch.ids, *(name for name, _ in batch.skipped)] if name]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_takes_clips_unchanged(tmp_path, world_size):
    cuts = mixed(tmp_path)
    how = {"crop": "random", "augment": ALL, "clip_seconds": 0.9, "batch_clips": 2, "clips": 9}
    parts = check_validation(cuts, world_size, **how)
    assert [len(part) for part in parts] == {1: [5], 2: [3, 2], 3: [2, 2, 1]}[world_size]
    # What is too short or below the rate is not even drawn.
    assert sorted(drawn_ids(cuts, world_size, **how)) == sorted([*(f"00{i}.wav" for i in range(8)), "silent.wav"])
    by_id = {cut.id: cut for cut in cuts}
    for batch in (batch for part in parts for batch in part):
        for i, name in enumerate(batch.ids):
            if name:
                samples = torch.from_numpy(by_id[name].load_audio()[0])[:14400]
                torch.testing.assert_close(batch.audio[i, : batch.lengths[i]], samples)


def test_validation_draws_over_the_whole_set_by_seed(tmp_path):
    """A set sorted by speaker: the first clips would all be of the first one."""
    cuts = corpus(tmp_path, 60, lambda i: 0.6)
    draws = [drawn_ids(cuts, seed=seed, clips=12) for seed in range(10)]
    assert all(len(set(ids)) == 12 for ids in draws)
    assert draws[0] == drawn_ids(cuts, world_size=3, seed=0, clips=12) != draws[1]
    places = [int(name[:3]) for ids in draws for name in ids]
    # 120 places of mean 29.5 and deviation 17.3: the mean's deviation is 1.6.
    assert abs(sum(places) / len(places) - 29.5) < 8
    assert all(sum(place // 15 == quarter for place in places) >= 15 for quarter in range(4))


def test_validation_batches_stay_below_their_seconds(tmp_path):
    (batches,) = check_validation(corpus(tmp_path, 9), 1, batch_clips=50, batch_seconds=2.5)
    assert all(batch.audio.numel() <= 2.5 * 16000 for batch in batches)
    assert sum(len(batch.ids) for batch in batches) == 7
