import math
from pathlib import Path

import numpy as np
import pytest
import torch

import xycodec
from xycodec.io.audio import read_audio
from xycodec.losses.stft import FullBandStft, LogMelDistance, SubBandStft, WaveformDistance

RATE = 16_000
FULL = ((512, 480, 120), (1024, 960, 240), (2048, 1200, 300))
SUB = ((128, 80, 20), (256, 120, 40), (256, 200, 50))
SIZES = {"full": FULL, "sub": SUB}
KINDS = {"full": FullBandStft, "sub": SubBandStft, "mel": lambda: LogMelDistance(RATE), "wave": WaveformDistance}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def array(tensor):
    return tensor.double().numpy()


# slow versions, in float64


def spectrogram(audio, n_fft, window, hop):
    """Magnitudes (frames, bins), each a sum of cosines and one of sines, around a sample that is a multiple of hop."""
    reach = n_fft // 2
    before, hann = (n_fft - window) // 2, 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(audio, reach, mode="reflect")  # to and fro, where audio is shorter than that
    angles = 2 * np.pi * np.outer(np.arange(reach + 1), np.arange(n_fft)) / n_fft
    real, imaginary = np.cos(angles), np.sin(angles)
    frames = []
    for centre in range(0, len(audio) + 1, hop):
        frame = np.zeros(n_fft)
        frame[before : before + window] = padded[centre + before : centre + before + window] * hann
        frames.append(np.sqrt(np.maximum((real @ frame) ** 2 + (imaginary @ frame) ** 2, 1e-7)))
    return np.array(frames)


def sub_bands(audio):
    """Six, each sample a sum over 63 taps of a cosine-modulated low-pass."""
    padded, bands = np.pad(audio, 31), []
    at = np.arange(-31, 32)
    low_pass = 0.10032791 * np.sinc(0.10032791 * at) * np.kaiser(63, 9)
    for band in range(6):
        taps = 2 * low_pass * np.cos((2 * band + 1) * np.pi / 12 * at + (-1) ** band * np.pi / 4)
        bands.append(np.array([taps @ padded[i : i + 63] for i in range(0, len(audio), 6)]))
    return bands


def naive(kind, decoded, target):
    """(sums over items of norms of the differences, of the true norms, mean log distance) of clips, at each scale."""
    scales = []
    for sizes in SIZES[kind]:
        split = sub_bands if kind == "sub" else lambda audio: [audio]
        differences, norms, logarithms = 0.0, 0.0, []
        for one, other in zip(decoded, target, strict=True):
            fake, real = (np.concatenate([spectrogram(b, *sizes) for b in split(audio)]) for audio in (one, other))
            differences += math.sqrt(((real - fake) ** 2).sum())
            norms += math.sqrt((real**2).sum())
            logarithms.append(np.abs(np.log(real) - np.log(fake)).mean(axis=1))
        scales.append((differences, norms, np.concatenate(logarithms).mean()))
    return scales


def slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def log_mel(audio):
    top = 15 + 27 * math.log(8) / math.log(6.4)
    edges, bins = [slaney_hz(mel) for mel in np.linspace(0, top, 82)], np.arange(513) * RATE / 1024
    filters = [np.interp(bins, edges[i : i + 3], [0, 1, 0]) * 2 / (edges[i + 2] - edges[i]) for i in range(80)]
    return np.log(np.maximum(spectrogram(audio, 1024, 800, 160) @ np.array(filters).T, 1e-5))


# equality


def faint(audio):
    """Audio with a part so faint that the least magnitude shows in it."""
    audio = audio.clone()
    audio[len(audio) // 2 :] *= 1e-5
    return audio


@pytest.mark.parametrize(("kind", "samples"), [("full", 2500), ("full", 1200), ("sub", 3000), ("sub", 2401)])
def test_equals_sums_of_cosines(kind, samples):
    decoded, target = faint(noise(samples)), faint(noise(samples, seed=1) * 0.5)
    got = KINDS[kind]()(decoded[None], target[None])
    assert got.total.dtype == got.count.dtype == torch.float32
    expected = naive(kind, [array(decoded)], [array(target)])
    ratios = [total / norm for total, norm, _ in expected] + [logarithm for *_, logarithm in expected]
    assert (got.total / got.count * 3).tolist() == pytest.approx(ratios, rel=2e-4)
    assert got.value().item() == pytest.approx(sum(ratios) / 3, rel=2e-4)


@pytest.mark.parametrize("samples", [900, 4000])
def test_mel_equals_sums_of_cosines(samples):
    decoded, target = faint(noise(samples)), noise(samples, seed=1)
    expected = np.abs(log_mel(array(decoded)) - log_mel(array(target))).mean()
    assert expected > 1
    got = LogMelDistance(RATE)(decoded[None], target[None])
    assert got.value().item() == pytest.approx(expected, rel=1e-4)
    assert got.count.tolist() == [samples // 160 + 1]


LENGTHS = (3000, 1601, 700)


@pytest.mark.parametrize("kind", ["full", "sub"])
def test_a_padded_batch_equals_its_clips(kind):
    decoded, target = noise(3, 3500), noise(3, 3500, seed=1) * torch.tensor([[1.0], [0.3], [2.0]])
    clips = [[array(audio[i, :n]) for i, n in enumerate(LENGTHS)] for audio in (decoded, target)]
    got = KINDS[kind]()(decoded, target, torch.tensor(LENGTHS))
    expected = naive(kind, *clips)
    assert (got.total[:3] * 3).tolist() == pytest.approx([total for total, *_ in expected], rel=2e-4)
    assert got.count[:3].tolist() == pytest.approx([norm for _, norm, _ in expected], rel=2e-4)
    assert (got.total[3:] / got.count[3:] * 3).tolist() == pytest.approx([log for *_, log in expected], rel=2e-4)


# what they are of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, torch.tensor([6000, 2500])])
def test_equal_audio_has_no_distance(kind, lengths):
    audio = noise(2, 6000)
    assert KINDS[kind]()(audio, audio.clone(), lengths).value().item() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gain", [2.0, 0.5])
def test_a_gain_is_known(kind, gain):
    """Every magnitude is that much larger, wherever none is at its least."""
    target = noise(2, 16_000)
    mean = KINDS[kind]()(target * gain, target)
    if kind in SIZES:
        *convergences, logarithm = (mean.total / mean.count).view(-1, 3).sum(dim=1)
    else:
        convergences, logarithm = ([mean.value()], None) if kind == "wave" else ([], mean.value())
    if logarithm is not None:
        assert float(logarithm) == pytest.approx(math.log(2), rel=1e-3)
    for convergence in convergences:
        assert float(convergence) == pytest.approx(abs(gain - 1), rel=1e-4)


@pytest.mark.parametrize("kind", ["full", "sub", "wave"])
def test_silence_for_sound_is_as_far_as_the_sound(kind):
    target = noise(2, 8000)
    mean = KINDS[kind]()(torch.zeros_like(target), target)
    assert (mean.total / mean.count)[:3].sum().item() == pytest.approx(1, rel=0.01)


def test_only_the_waveform_knows_phase():
    """A delay of half a period, which no ear notices, is twice as far in samples as silence."""
    tone = 0.1 * torch.sin(2 * math.pi * 200 / RATE * torch.arange(8080))
    target, late = tone[None, :8000], tone[None, 40:8040]
    assert WaveformDistance()(late, target).value().item() == pytest.approx(2, rel=1e-3)
    spectral = FullBandStft()(late, target)
    assert (spectral.total / spectral.count)[:3].sum().item() < 0.1


def test_waveforms_by_hand():
    decoded, target = torch.tensor([[3.0, 0, 9], [1, 1, 1]]), torch.tensor([[0.0, 4, 9], [1, 1, 4]])
    mean = WaveformDistance()(decoded, target, torch.tensor([2, 3]))
    assert mean.value().item() == pytest.approx((5 + 3) / (4 + 18**0.5))


@pytest.mark.parametrize("kind", ["full", "sub"])
def test_a_silent_item_does_not_outweigh_the_others(kind):
    target, decoded = noise(4, 8000), noise(4, 8000, seed=1)
    target[0] = 0
    distance = KINDS[kind]()
    assert distance(decoded[:1], target[:1]).value() > 100
    assert distance(decoded, target).value() < 4


def test_speech_that_is_nearer_is_nearer():
    speech = torch.from_numpy(read_audio(Path(xycodec.__file__).parent / "assets" / "harbour.flac"))[None]
    for kind in KINDS.values():
        near, far = (float(kind()(speech + noise(*speech.shape) * level, speech).value()) for level in (0.01, 0.1))
        assert 0 < near < far


# lengths


@pytest.mark.parametrize("kind", KINDS)
def test_no_lengths_are_full_lengths(kind):
    decoded, target = noise(2, 3001), noise(2, 3001, seed=1)
    without, full = (KINDS[kind]()(decoded, target, n) for n in (None, torch.tensor([3001, 3001])))
    assert torch.equal(without.total, full.total)
    assert torch.equal(without.count, full.count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [1, 119, 1025, 5000])
def test_padded_equals_trimmed(kind, padding):
    distance, length = KINDS[kind](), torch.tensor([2999])
    decoded, target = noise(1, 2999), noise(1, 2999, seed=1)
    trimmed = distance(decoded, target)
    padded = distance(*(torch.cat([audio, noise(1, padding, seed=2)], dim=1) for audio in (decoded, target)), length)
    torch.testing.assert_close(padded.total, trimmed.total)
    torch.testing.assert_close(padded.count, trimmed.count)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_past_an_items_end_is_never_read(kind):
    distance, lengths = KINDS[kind](), torch.tensor([4000, 1500, 1])
    decoded, target = noise(3, 4000), noise(3, 4000, seed=1)
    expected = distance(decoded, target, lengths)
    for audio in (decoded, target):
        audio[1, 1500:], audio[2, 1:] = math.nan, math.inf
    assert torch.equal(distance(decoded, target, lengths).total, expected.total)
    decoded[1, 1499] += 1
    assert not torch.equal(distance(decoded, target, lengths).total, expected.total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2])
def test_parts_of_a_batch_join_to_the_whole(kind, cut):
    distance, lengths = KINDS[kind](), torch.tensor([4000, 1500, 2500])
    decoded, target = noise(3, 4000), noise(3, 4000, seed=1)
    first, second = (distance(decoded[s], target[s], lengths[s]) for s in (slice(cut), slice(cut, None)))
    whole, joined = distance(decoded, target, lengths), first + second
    torch.testing.assert_close(joined.total, whole.total)
    torch.testing.assert_close(joined.count, whole.count)
    longest = int(lengths[cut:].max())
    trimmed = distance(decoded[cut:, :longest], target[cut:, :longest], lengths[cut:])
    torch.testing.assert_close((first + trimmed).value(), whole.value())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[0, 0], [0, 900], [1, 2]])
def test_short_and_empty_items_give_a_finite_number(kind, lengths):
    decoded = noise(2, 900).requires_grad_()
    value = KINDS[kind]()(decoded, noise(2, 900, seed=1), torch.tensor(lengths)).value()
    value.backward()
    assert torch.isfinite(value)
    assert (value.item() == 0) == (max(lengths) == 0)
    assert torch.isfinite(decoded.grad).all()
    assert not decoded.grad[0, lengths[0] :].any()


# gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("true", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e4])
def test_gradients_are_finite(kind, true, scale):
    decoded = (noise(2, 3000) * scale).requires_grad_()
    KINDS[kind]()(decoded, noise(2, 3000) * true, torch.tensor([3000, 1500])).value().backward()
    assert torch.isfinite(decoded.grad).all()
    assert not decoded.grad[1, 1500:].any()
    assert decoded.grad.any() or true == scale or scale < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_following_the_gradient_lessens_the_distance(kind):
    distance, target = KINDS[kind](), noise(1, 4000)
    decoded = noise(1, 4000, seed=1).requires_grad_()
    before = distance(decoded, target).value()
    before.backward()
    step = 0.01 * decoded.grad / decoded.grad.square().mean().sqrt()
    assert distance(decoded.detach() - step, target).value() < before


# as the others


@pytest.mark.parametrize("kind", KINDS)
def test_float32_under_autocast_and_nothing_of_it_is_saved(kind):
    distance, lengths = KINDS[kind](), torch.tensor([3000, 2500])
    decoded, target = noise(2, 3000).bfloat16(), noise(2, 3000, seed=1)
    expected = distance(decoded.float(), target, lengths).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(decoded, target, lengths).total, expected)
    assert distance.state_dict() == {}
