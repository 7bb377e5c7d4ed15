"""Frame labels beside a clip: which frame of another rate they are, whatever was done to the cut."""

import math
import pickle

import numpy as np
import pytest
import soundfile as sf
import torch
from corpus import config, cut_of, noise, numbered, save
from lhotse import CutSet
from lhotse.qa import validate

from xycodec.data.batch import BEGINNING, collate
from xycodec.data.clip import load_clip
from xycodec.data.config import SourceConfig
from xycodec.data.facts import has_labels
from xycodec.data.pack import MANIFEST, pack
from xycodec.data.sources import open_source
from xycodec.data.stream import BatchStream
from xycodec.data.survey import survey
from xycodec.data.targets import NO_LABEL, load_labels, targets_of, with_targets
from xycodec.errors import AudioError

RATE = 75.0
OF = {"codec": "a codec", "size": 60_000}


@pytest.fixture
def labelled(tmp_path):
    """A function that makes a cut of noise; the label of frame i is 1000 + i, of a second layer 30,000 more."""

    def make(seconds=4.0, rate=RATE, layers=1, name="a", suffix=".u2"):
        frames = math.ceil(seconds * rate)
        labels = 1000 + np.arange(frames)[:, None] + 30_000 * np.arange(layers)
        path = tmp_path / f"{name}{suffix}"
        before = np.full(7, 9)
        np.concatenate([before, labels.ravel(), before]).astype(f"<{suffix[1:]}").tofile(path)
        cut = cut_of(save(tmp_path / f"{name}.wav", noise(seconds)))
        return with_targets(cut, path, len(before), (frames, layers), np.dtype(f"<{suffix[1:]}"), rate, OF)

    return make


def expected(start, samples, rate=RATE, frames=10**9):
    """Frame by frame: the label whose frame holds the middle of HuBERT's frame."""
    found = []
    for k in range(samples):
        middle = 320 * k + 200
        if middle >= samples:
            break
        place = math.floor((start + middle / 16_000) * rate)
        found.append(1000 + place if place < frames else NO_LABEL)
    return found


@pytest.mark.parametrize("rate", [75.0, 50.0, 12.5, 86.1328125])
@pytest.mark.parametrize("samples", [64_000, 64_000 - 121, 64_000 - 120, 1280, 400, 201, 200, 1, 0])
def test_labels_are_those_of_the_middles_of_frames(labelled, rate, samples):
    labels = load_labels(labelled(rate=rate), 0.0, samples)
    assert labels.dtype == torch.int64
    assert labels[:, 0].tolist() == expected(0, samples, rate)
    assert labels.shape == (len(expected(0, samples, rate)), 1)


def test_layers_and_large_numbers(labelled):
    cut = labelled(layers=3, suffix=".u4")
    assert torch.equal(
        load_labels(cut, 1.0, 8000)[:, 1:], load_labels(cut, 1.0, 8000)[:, :1] + torch.tensor([30_000, 60_000])
    )


def test_a_crop_has_the_labels_of_its_place(labelled):
    cut = labelled()
    for epoch in range(20):
        clip = load_clip(cut, config(clip_seconds=1, crop="random"), output_sample_rate=16_000, seed=0, epoch=epoch)
        whole, _ = sf.read(cut.recording.sources[0].source, dtype="float32")
        (place,) = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(whole, 8) == clip.audio[:8].numpy()).all(1))
        np.testing.assert_array_equal(clip.audio.numpy(), whole[place : place + len(clip.audio)])
        ours, theirs = clip.labels[:, 0].numpy(), np.array(expected(place / 16_000, len(clip.audio)))
        # The crop begins within half a sample of the time that was drawn.
        assert len(ours) == len(theirs)
        assert np.mean(ours == theirs) > 0.98


def test_cuts_that_lhotse_made_shorter_keep_their_place(labelled):
    cut = labelled().truncate(offset=1.5, duration=1.25).truncate(offset=0.25)
    assert load_labels(cut, 0.0, 16_000)[:, 0].tolist() == expected(1.75, 16_000)
    # As Lhotse itself has it, where frames are whole.
    loaded = cut.load_targets()[:, 0]
    assert loaded.tolist() == list(range(1000 + 131, 1000 + 131 + len(loaded)))
    validate(cut)


def test_what_the_array_lacks_has_no_label(labelled):
    labels = load_labels(labelled(seconds=1.0), 0.5, 16_000)[:, 0].tolist()
    assert labels == expected(0.5, 16_000, frames=75)
    assert labels.count(NO_LABEL) == 25


def test_packing_moves_labels_with_the_audio(labelled, tmp_path):
    cuts = [labelled(name="b").truncate(offset=1.1, duration=2), labelled(name="a"), labelled(name="c")]
    pack(CutSet.from_cuts(cuts), tmp_path / "pack", part_seconds=5)
    for old, new in zip(cuts, open_source(SourceConfig(path=str(tmp_path / "pack" / MANIFEST))), strict=True):
        assert torch.equal(load_labels(new, 0.3, 16_000), load_labels(old, 0.3, 16_000))


def test_another_speed_has_no_labels(labelled):
    faster = {"speed": 1.0, "speed_range": (1.1, 1.1)}
    for augment, has in ((faster, False), ({"gain": 1.0}, True), ({}, True)):
        clip = load_clip(labelled(), config(augment=augment), output_sample_rate=16_000, seed=0, epoch=0)
        assert (clip.labels is not None) == has


def test_a_batch_pads_labels_and_moves_them(labelled, tmp_path):
    plain = cut_of(save(tmp_path / "plain.wav", noise(1)))
    cuts = [labelled(seconds=1.0, name="a"), plain, labelled(seconds=1.5, name="b", layers=2)]
    clips = [load_clip(cut, config(), output_sample_rate=16_000, seed=0, epoch=0) for cut in cuts]
    batch = collate(clips, (), BEGINNING, output_sample_rate=16_000)
    assert batch.labels.shape == (3, 75, 1)
    assert batch.labels[0, :50, 0].tolist() == expected(0, 16_000)
    assert (batch.labels[0, 50:] == NO_LABEL).all()
    assert (batch.labels[1] == NO_LABEL).all()
    assert batch.labels[2, :, 0].tolist() == expected(0, 24_000)
    assert batch.to("meta").labels.device.type == "meta"
    assert collate(clips[1:2], (), BEGINNING, output_sample_rate=16_000).labels is None
    assert collate((), (), BEGINNING, output_sample_rate=16_000).to("cpu").labels is None


def test_streams_have_the_same_labels_from_workers(labelled):
    cuts = CutSet.from_cuts([labelled(name=name) for name in "abc"])
    settings = config(crop="random", clip_seconds=1, batch_clips=2)
    made = []
    for workers in (0, 1):
        stream = BatchStream(
            numbered(cuts), settings.model_copy(update={"workers": workers}), output_sample_rate=16_000, seed=0, rank=0,
            world_size=1,
        )  # fmt: skip
        batches = stream.batches()
        made.append([next(batches).labels for _ in range(3)])
        batches.close()
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))


def test_the_survey_counts_clips_with_labels(labelled, tmp_path):
    plain = cut_of(save(tmp_path / "plain.wav", noise(1)))
    cuts = [labelled(name="a"), plain, labelled(name="b")]
    assert [has_labels(cut) for cut in cuts] == [True, False, True]
    assert survey(numbered(cuts), config(), 16_000).with_labels == 2
    assert targets_of(cuts[0].pad(5.0)) is None
    assert load_labels(plain, 0.0, 16_000) is None


def test_labels_that_cannot_be_read_are_one_line(labelled, tmp_path):
    cut = pickle.loads(pickle.dumps(labelled()))
    path = tmp_path / "a.u2"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(AudioError, match=r"a\.wav: its labels cannot be read \(OSError: .*a\.u2 ends before") as raised:
        load_labels(cut, 0.0, 64_000)
    assert "\n" not in str(raised.value)
    assert load_labels(cut, 0.0, 16_000)[:, 0].tolist() == expected(0, 16_000)
    path.unlink()
    with pytest.raises(AudioError, match=r"its labels cannot be read .*No such file"):
        load_labels(cut, 0.0, 16_000)
