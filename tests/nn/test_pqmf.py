import math

import numpy as np
import pytest
import torch

from xycodec.nn.pqmf import SubbandAnalysis


def prototype():
    """The low-pass, tap by tap."""
    taps = []
    for i in range(-31, 32):
        sinc = 0.10032791 if i == 0 else math.sin(math.pi * 0.10032791 * i) / (math.pi * i)
        taps.append(sinc * np.i0(9 * math.sqrt(1 - (i / 31) ** 2)) / np.i0(9))
    return taps


def bank(sign):
    """Six filters, 63 taps each: with sign 1 they take audio apart, with -1 they put it together."""
    return np.array(
        [
            [
                2 * tap * math.cos((2 * band + 1) * math.pi / 12 * (i - 31) + sign * (-1) ** band * math.pi / 4)
                for i, tap in enumerate(prototype())
            ]
            for band in range(6)
        ]
    )


def analysed(audio):
    """Six bands of a 1-D array, sample by sample, in float64."""
    padded, filters = np.pad(audio, 31), bank(1)
    return np.array([[padded[at : at + 63] @ taps for at in range(0, len(audio), 6)] for taps in filters])


def apart(audio):
    return SubbandAnalysis()(torch.from_numpy(audio)[None])[0].numpy()


def noise(samples):
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("samples", [1, 5, 6, 7, 62, 63, 64, 200, 1201])
def test_equals_a_sum_for_every_sample(samples):
    audio = noise(samples)
    got = apart(audio)
    assert got.shape == (6, math.ceil(samples / 6))
    assert int(SubbandAnalysis.num_samples(torch.tensor(samples))) == got.shape[1]
    np.testing.assert_allclose(got, analysed(audio.astype(np.float64)), atol=2e-6)


def test_the_bands_put_together_are_the_audio():
    audio = noise(6000)
    bands = apart(audio)
    rebuilt = np.zeros(6000 + 62)
    for band, taps in zip(bands, bank(-1), strict=True):
        for at, value in enumerate(band):
            rebuilt[6 * at : 6 * at + 63] += 6 * value * taps[::-1]
    error = (rebuilt[31:-31] - audio)[100:-100]
    assert 10 * math.log10((audio**2).mean() / (error**2).mean()) > 60


@pytest.mark.parametrize("band", range(6))
def test_a_tone_is_in_its_band(band):
    t = np.arange(6000)
    tone = np.sin(2 * math.pi * (band + 0.5) / 12 * t).astype(np.float32)
    power = (apart(tone)[:, 20:-20].astype(np.float64) ** 2).mean(axis=1)
    assert power[band] == pytest.approx(0.5, rel=1e-3)
    for other in range(6):
        if other != band:
            assert 10 * np.log10(power[other] / power[band]) < (-39 if abs(other - band) == 1 else -100)


def test_batch_equals_single():
    audio, analysis = torch.from_numpy(noise(900)).view(3, 300), SubbandAnalysis()
    torch.testing.assert_close(analysis(audio), torch.cat([analysis(item[None]) for item in audio]))


def test_float32_under_autocast_and_nothing_of_it_is_saved():
    audio, analysis = torch.from_numpy(noise(300))[None].bfloat16(), SubbandAnalysis()
    expected = analysis(audio.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = analysis(audio)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    assert analysis.state_dict() == {}
