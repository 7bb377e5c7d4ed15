import numpy as np
import pytest
import torch

from xycodec.losses import MultiScaleMel

RATE = 16_000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def slaney(hz):
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)


def slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)


def filters(window, bands, rate):
    """Triangles over the FFT bins, one at a time, each of unit area in Hz: (bands, window // 2 + 1)."""
    hz = np.arange(window // 2 + 1) * rate / window
    edges = [slaney_hz(mel) for mel in np.linspace(0, slaney(rate / 2), bands + 2)]
    return np.stack([np.interp(hz, edges[i : i + 3], [0, 1, 0]) * 2 / (edges[i + 2] - edges[i]) for i in range(bands)])


def log_mel(audio, window, bands, rate):
    """Frame by frame: (frames, bands)."""
    hop, half = window // 4, window // 2
    padded = np.pad(audio, half, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    triangles = filters(window, bands, rate)
    frames = []
    for start in range(0, len(audio) + 1, hop):
        magnitude = np.abs(np.fft.rfft(padded[start : start + window] * hann)) / np.sqrt(window)
        frames.append(np.log10(np.maximum(triangles @ magnitude, 1e-5)))
    return np.stack(frames)


def naive(decoded, target, rate, length=None):
    """The distance of two arrays; `length` keeps the frames that start before it."""
    total = 0
    for window, bands in zip((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320), strict=True):
        difference = np.abs(log_mel(decoded, window, bands, rate) - log_mel(target, window, bands, rate))
        starts = np.arange(len(difference)) * (window // 4)
        total += difference[starts < (length or np.inf)].mean()
    return total


@pytest.mark.parametrize("rate", [16_000, 24_000])
@pytest.mark.parametrize("samples", [1025, 4001])
def test_equals_a_computation_frame_by_frame(rate, samples):
    decoded, target = noise(samples), noise(samples, seed=1) * torch.linspace(0, 3, samples)
    expected = naive(decoded.double().numpy(), target.double().numpy(), rate)
    assert expected > 0.5
    assert MultiScaleMel(rate)(decoded[None], target[None]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", [1, 2999, 3072])
def test_only_frames_that_start_within_an_item_count(length):
    decoded, target = noise(5000), noise(5000, seed=1)
    cut = [np.where(np.arange(5000) < length, audio.double().numpy(), 0) for audio in (decoded, target)]
    expected = naive(*cut, RATE, length)
    value = MultiScaleMel(RATE)(decoded[None], target[None], torch.tensor([length]))
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_is_the_mean_over_its_items():
    decoded, target = noise(3, 5000), noise(3, 5000, seed=1)
    distance = MultiScaleMel(RATE)
    alone = [distance(decoded[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(distance(decoded, target), torch.stack(alone).mean())


@pytest.mark.parametrize("lengths", [None, torch.tensor([6000, 2500])])
def test_equal_audio_has_no_distance(lengths):
    audio = noise(2, 6000)
    assert MultiScaleMel(RATE)(audio, audio.clone(), lengths).item() == 0


def test_symmetric_and_larger_for_what_is_farther():
    distance, audio = MultiScaleMel(RATE), noise(1, 8000)
    near, far = audio * 1.1, audio * 4
    assert distance(audio, near).item() == distance(near, audio).item()
    # log10 of a gain, once per window length, wherever no band is at its floor
    assert distance(audio, far).item() == pytest.approx(7 * np.log10(4), rel=0.02)
    assert 0 < distance(audio, near) < distance(audio, far)


def test_what_lies_past_an_items_end_is_ignored():
    distance, lengths = MultiScaleMel(RATE), torch.tensor([8000, 3000, 1])
    decoded, target = noise(3, 8000), noise(3, 8000, seed=1)
    expected = distance(decoded, target, lengths)
    for seed in (2, 3):
        for padded in (decoded, target):
            padded[1, 3000:] = noise(5000, seed=seed)
            padded[2, 1:] = 7.0
        assert distance(decoded, target, lengths).item() == expected.item()
    decoded[1, 2999] += 1
    assert distance(decoded, target, lengths).item() != expected.item()


def test_more_padding_changes_nothing():
    distance = MultiScaleMel(RATE)
    lengths, decoded, target = torch.tensor([3000, 5000]), noise(2, 7000), noise(2, 7000, seed=1)
    longer = [torch.nn.functional.pad(audio, (0, 4321)) for audio in (decoded, target)]
    torch.testing.assert_close(distance(*longer, lengths), distance(decoded, target, lengths))


def test_every_frame_of_a_batch_weighs_the_same():
    """The mean is over valid frames, so an item weighs as much as it is long."""
    distance, n = MultiScaleMel(RATE), 64_000
    target = noise(2, n)
    decoded = torch.stack([target[0], target[1] * 10])
    half = distance(decoded, target, torch.tensor([n, n])).item()
    tenth = distance(decoded, target, torch.tensor([n, n // 9])).item()
    assert half == pytest.approx(3.5, rel=0.02)
    assert tenth == pytest.approx(0.7, rel=0.06)


@pytest.mark.parametrize("lengths", [[0, 0], [0, 5000], [1, 1]])
def test_short_and_empty_items_give_a_finite_number(lengths):
    value = MultiScaleMel(RATE)(noise(2, 5000), noise(2, 5000, seed=1), torch.tensor(lengths))
    assert torch.isfinite(value)
    assert (value.item() == 0) == (max(lengths) == 0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1.0, 1e4])
def test_gradients_are_finite(scale):
    decoded = (noise(2, 4000) * scale).requires_grad_()
    MultiScaleMel(RATE)(decoded, noise(2, 4000, seed=1), torch.tensor([4000, 1500])).backward()
    assert torch.isfinite(decoded.grad).all()
    assert (decoded.grad[1, 1500:] == 0).all()
    if scale == 1:
        assert (decoded.grad[0] != 0).any()


def test_following_the_gradient_lessens_the_distance():
    distance, target = MultiScaleMel(RATE), noise(1, 4000)
    decoded = noise(1, 4000, seed=1).requires_grad_()
    before = distance(decoded, target)
    before.backward()
    after = distance(decoded.detach() - 0.1 * decoded.grad, target)
    assert after < before


def test_nothing_of_it_is_saved():
    assert MultiScaleMel(RATE).state_dict() == {}
