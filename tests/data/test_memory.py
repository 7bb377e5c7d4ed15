import itertools

import numpy as np
import pytest
import soxr
import torch
from corpus import config, corpus, cut_of, noise, numbered, save, tone
from lhotse import CutSet

from xycodec.data.clip import load_clip
from xycodec.data.config import Augmentation
from xycodec.data.memory import Memory, read_at_speed
from xycodec.data.pack import pack
from xycodec.data.sources import ManifestCuts
from xycodec.data.stream import BatchStream
from xycodec.errors import ConfigError


def load(cuts, rate=16000):
    return Memory.load(cuts, output_sample_rate=rate, device="cpu")


def streams(cuts, settings, start=0):
    """Nine batches from files and from memory, after the first `start` of them."""
    made = numbered(cuts)
    for memory in (None, load(cuts)):
        stream = BatchStream(made, settings, output_sample_rate=16000, seed=3, rank=0, world_size=1, memory=memory)
        before = [batch.position for batch in itertools.islice(stream.batches(), start)]
        batches = stream.batches(*before[-1:])
        yield list(itertools.islice(batches, 9))
        batches.close()


@pytest.mark.parametrize("start", [0, 6])
def test_batches_are_those_that_files_give(tmp_path, start):
    pack(corpus(tmp_path / "clips", 12), tmp_path / "packed", part_seconds=3)
    cuts = CutSet(ManifestCuts(tmp_path / "packed" / "cuts.jsonl.gz"))
    settings = config(crop="random", clip_seconds=0.8, augment=Augmentation(gain=0.5), batch_clips=3)
    for one, other in zip(*streams(cuts, settings, start), strict=True):
        assert (one.ids, one.lengths, one.texts, one.position) == (
            other.ids,
            other.lengths,
            other.texts,
            other.position,
        )
        torch.testing.assert_close(one.audio, other.audio, rtol=0, atol=2e-7)
        assert other.target is other.audio


def test_other_speeds_are_those_of_soxr(tmp_path):
    cuts = corpus(tmp_path, 8)
    augment = Augmentation(speed=1, speed_range=(0.85, 1.18))
    one, other = streams(cuts, config(crop="random", clip_seconds=1.0, augment=augment))
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids
        assert all(abs(x - y) <= 1 for x, y in zip(a.lengths, b.lengths, strict=True))
    low = sum(tone(hz, 1.0, 16000) for hz in (150, 900, 3100, 5000)) / 4
    samples = torch.from_numpy((low * 32768).astype(np.int16))
    for speed in (0.85, 1.18):
        expected = soxr.resample(low, 16000 * speed, 16000)
        time = torch.arange(len(expected))
        first, count = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), len(samples))
        got = read_at_speed(samples, first, count, time, torch.tensor([[speed]], dtype=torch.float64))[0].numpy()
        inner = slice(400, -400)
        assert np.abs(got[inner] - expected[inner]).max() < 2e-3 < np.abs(expected).max() / 50


def test_what_would_be_above_half_the_rate_is_filtered_out():
    high = torch.from_numpy((tone(7500, 1.0, 16000) * 32768).astype(np.int16))
    first, count = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), len(high))
    got = read_at_speed(high, first, count, torch.arange(12000), torch.tensor([[1.25]], dtype=torch.float64))
    assert got[0, 400:-400].abs().max() < 0.01


def test_no_clip_goes_beyond_full_scale(tmp_path):
    cut = CutSet(corpus(tmp_path, 1, seconds=lambda i: 1.0))
    settings = config(augment=Augmentation(gain=1, gain_range=(30, 30)))
    one, other = (batches[0] for batches in streams(cut, settings))
    assert other.audio.abs().max() == pytest.approx(1.0)
    torch.testing.assert_close(one.audio, other.audio)


def test_silence_is_skipped_and_said(tmp_path):
    paths = [save(tmp_path / "loud.wav", noise(1.0)), save(tmp_path / "still.wav", noise(1.0, level=1e-5))]
    cuts = CutSet([cut_of(path) for path in paths])
    batch = list(streams(cuts, config(batch_clips=2, buckets=0)))[1][0]
    assert batch.ids == ("loud.wav",)
    assert batch.skipped[0][0] == "still.wav"
    assert "silent" in batch.skipped[0][1]


def test_opus_lasts_as_long_as_what_it_was_made_of(tmp_path):
    cuts = corpus(tmp_path / "clips", 5)
    pack(cuts, tmp_path / "packed", opus_kbps=32)
    packed = list(ManifestCuts(tmp_path / "packed" / "cuts.jsonl.gz"))
    assert [cut.num_samples for cut in packed] == [cut.num_samples for cut in cuts]
    memory = load(packed)
    for one, other in zip(cuts, packed, strict=True):
        settings = config(clip_seconds=9.0)
        a, b = (load_clip(cut, settings, output_sample_rate=16000, seed=0, epoch=0).audio for cut in (one, other))
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.8
    assert memory.samples.abs().max() > 1000


@pytest.mark.parametrize(
    ("rate", "output", "said"), [(24000, 16000, "1 channels at 24000 Hz"), (16000, 24000, "not at 24000 Hz")]
)
def test_other_rates_are_refused_in_one_line(tmp_path, rate, output, said):
    with pytest.raises(ConfigError, match=said) as error:
        load(corpus(tmp_path, 1, rate=rate), output)
    assert "\n" not in str(error.value)


def test_changes_that_the_device_does_not_make_are_refused():
    with pytest.raises(ValueError, match=r"augment\.formant is not computed on the device"):
        config(in_memory=True, augment=Augmentation(formant=0.1))
