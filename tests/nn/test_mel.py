import math

import numpy as np
import pytest
import torch

from xycodec.nn.mel import LogMel, mel_filterbank

RATE = 16_000
WINDOW = 30 * RATE


def sine(seconds=2.0, hz=440.0, level=0.5):
    t = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    return (level * torch.sin(2 * math.pi * hz * t)).float()


def padded(clip):
    return torch.nn.functional.pad(clip, (0, WINDOW - len(clip)))[None]


def slow_filterbank(n_fft, n_mels, rate, htk=False):
    def to_mel(hz):
        if htk:
            return 1127 * math.log(1 + hz / 700)
        return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    def to_hz(mel):
        if htk:
            return 700 * (math.exp(mel / 1127) - 1)
        return mel * (200 / 3) if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    step = to_mel(rate / 2) / (n_mels + 1)
    out = np.zeros((n_fft // 2 + 1, n_mels))
    for m in range(n_mels):
        low, centre, high = (to_hz(step * (m + i)) for i in range(3))
        for b in range(n_fft // 2 + 1):
            hz = b * rate / n_fft
            if low < hz <= centre:
                height = (hz - low) / (centre - low)
            elif centre < hz < high:
                height = (high - hz) / (high - centre)
            else:
                height = 0.0
            out[b, m] = height if htk else height * 2 / (high - low)
    return out


def slow_log_mel(audio):
    """One clip, frame by frame, in float64."""
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 400) for i in range(400)])
    audio = audio.double().numpy()
    audio = np.concatenate([audio[200:0:-1], audio, audio[-2:-202:-1]])
    frames = [audio[t * 160 : t * 160 + 400] * window for t in range((len(audio) - 400) // 160)]
    power = np.abs(np.fft.rfft(np.stack(frames))) ** 2
    mel = np.log10(np.maximum(power @ slow_filterbank(400, 80, RATE), 1e-10))
    return ((np.maximum(mel, mel.max() - 8) + 4) / 4).T


def test_filterbank_has_the_published_sum_and_maximum():
    bank = mel_filterbank(400, 80, RATE)
    assert bank.shape == (201, 80)
    assert bank.dtype == torch.float32
    assert float(bank.double().sum()) == pytest.approx(1.99902410, abs=2e-7)
    assert float(bank.max()) == pytest.approx(0.02588068, abs=2e-8)  # printed to eight digits


@pytest.mark.parametrize(("n_fft", "n_mels", "rate"), [(400, 80, RATE), (1024, 64, 24_000), (32, 5, RATE)])
def test_filterbank_equals_a_loop(n_fft, n_mels, rate):
    expected = slow_filterbank(n_fft, n_mels, rate)
    got = mel_filterbank(n_fft, n_mels, rate).double().numpy()
    np.testing.assert_allclose(got, expected, atol=2e-9, rtol=1e-6)


@pytest.mark.parametrize(("n_fft", "n_mels", "rate"), [(400, 80, RATE), (1024, 513, RATE), (128, 65, 24_000)])
def test_htk_filterbank_equals_a_loop(n_fft, n_mels, rate):
    expected = slow_filterbank(n_fft, n_mels, rate, htk=True)
    # 1127 is 2595 / log(10) to four digits, and narrow triangles are steep
    np.testing.assert_allclose(mel_filterbank(n_fft, n_mels, rate, htk=True), expected, atol=1e-3)


def test_sine_has_the_published_values():
    mel = LogMel(80, 16_000)(padded(sine()))
    assert mel.shape == (1, 80, 3000)
    mel = mel[0]
    # Six digits were printed, and the spectrum's sums of 400 terms differ in the last one. Where the tone ends, at
    # frame 200, little is left of such sums and its logarithm differs by more.
    assert float(mel.max()) == pytest.approx(1.438205, abs=5e-6)
    assert float(mel.min()) == pytest.approx(-0.561795, abs=5e-6)
    assert (mel[:, 210:] == mel.min()).all()
    assert int(mel[:, 100].argmax()) == 11
    assert float(mel[10, 100]) == pytest.approx(1.348738, abs=5e-6)
    assert mel[11, 199:202].tolist() == pytest.approx([1.436952, 1.292920, 0.351049], abs=2e-5)


def test_silence_is_flat():
    mel = LogMel(80, 16_000)(torch.zeros(1, WINDOW))
    assert mel.shape == (1, 80, 3000)
    torch.testing.assert_close(mel, torch.full_like(mel, -1.5))


@pytest.mark.parametrize("length", [201, 1600, 4000, 4159])
def test_equals_a_float64_loop(length):
    audio = 0.1 * torch.randn(length)
    audio[length // 2 :] *= 1e-4
    got = LogMel(80, 16_000)(audio[None])[0]
    assert got.shape == (80, length // 160)
    np.testing.assert_allclose(got.double().numpy(), slow_log_mel(audio), atol=1e-4)


def test_batch_equals_single():
    # Loud, fainter and silent: each has a floor of its own.
    batch = torch.randn(3, 8000) * torch.tensor([[0.5], [0.1], [0.0]])
    batch[:, 4000:] = 0
    mel = LogMel(80, 16_000)
    torch.testing.assert_close(mel(batch), torch.cat([mel(item[None]) for item in batch]), atol=1e-6, rtol=0)
    assert len({float(item.min()) for item in mel(batch)}) == 3


def test_floor_is_eight_below_the_maximum_of_the_clip():
    clip = torch.zeros(16_000)
    clip[8000] = 1.0
    mel = LogMel(80, 16_000)(clip[None])
    assert float(mel.max() - mel.min()) == pytest.approx(2.0, abs=1e-6)


def test_nothing_of_it_is_in_checkpoints():
    assert LogMel(80, 16_000).state_dict() == {}


def test_constants_are_real_when_the_model_is_built_on_meta():
    with torch.device("meta"):
        mel = LogMel(80, 16_000)
    assert torch.equal(mel.window, LogMel(80, 16_000).window)
    assert torch.equal(mel.filters, mel_filterbank(400, 80, RATE))
