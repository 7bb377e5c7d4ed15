import pickle

import pytest
import torch
from corpus import noise

from xycodec.data.batch import Position, collate
from xycodec.data.clip import Clip

HERE = Position(2, 5)


def clip(name, samples, rate=16000, text=None):
    audio = torch.from_numpy(noise(samples / 16000))
    target = audio if rate == 16000 else torch.from_numpy(noise(samples / 16000, rate))
    return Clip(name, audio, target, text)


@pytest.mark.parametrize("rate", [16000, 24000, 32000])
def test_clips_are_padded_with_zeros_to_the_longest(rate):
    clips = [clip("a", 1000, rate, "one"), clip("b", 3000, rate), clip("c", 2000, rate, "three")]
    batch = collate(clips, [("d", "why")], HERE, output_sample_rate=rate)
    assert (batch.ids, batch.texts) == (("a", "b", "c"), ("one", None, "three"))
    assert (batch.skipped, batch.position) == ((("d", "why"),), HERE)
    assert (batch.lengths, batch.audio.shape) == ((1000, 3000, 2000), (3, 3000))
    assert batch.target_lengths == tuple(n * rate // 16000 for n in (1000, 3000, 2000))
    assert batch.target.shape == (3, 3000 * rate // 16000)
    assert (batch.target is batch.audio) == (rate == 16000)
    for i, item in enumerate(clips):
        assert torch.equal(batch.audio[i, : len(item.audio)], item.audio)
        assert torch.equal(batch.target[i, : len(item.target)], item.target)
        assert not batch.audio[i, len(item.audio) :].any()
        assert not batch.target[i, len(item.target) :].any()
    assert batch.seconds == pytest.approx(6000 / 16000)


@pytest.mark.parametrize(("rate", "samples"), [(16000, 1280), (24000, 1920), (32000, 2560)])
def test_without_a_clip_the_batch_is_one_silent_frame(rate, samples):
    batch = collate([], [("a", "why")], HERE, output_sample_rate=rate)
    assert (batch.ids, batch.texts, batch.lengths, batch.target_lengths) == (("",), (None,), (0,), (0,))
    assert (batch.audio.shape, batch.target.shape) == ((1, 1280), (1, samples))
    assert not batch.audio.any()
    assert (batch.skipped, batch.position, batch.seconds) == ((("a", "why"),), HERE, 0)
    assert (batch.target is batch.audio) == (rate == 16000)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_a_batch_that_moves_keeps_what_is_shared(rate):
    batch = collate([clip("a", 1000, rate)], [], HERE, output_sample_rate=rate)
    for moved in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(moved.audio, batch.audio)
        assert torch.equal(moved.target, batch.target)
        assert (moved.target is moved.audio) == (rate == 16000)
    elsewhere = batch.to("meta")
    assert (elsewhere.audio.device.type, elsewhere.target.device.type) == ("meta", "meta")
    assert (elsewhere.target is elsewhere.audio) == (rate == 16000)


def test_positions_have_the_order_of_the_stream():
    assert Position(0, 9) < Position(1, 0) < Position(1, 1)
