import math

import numpy as np
import pytest
import torch

import reference
from xycodec.nn.vocos import ConvNeXtBlock, InverseSTFT, ISTFTHead, Vocos, VocosBackbone

HOPS = [160, 240, 320]


def check(got, expected, atol=2e-5):
    np.testing.assert_allclose(reference.array(got), expected, atol=atol, rtol=0)


def lengths_mask(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def spectra(batch, frames, hop):
    return torch.randn(batch, frames, 2 * hop + 1, dtype=torch.complex64)


def make_vocos(hop=8, layers=2):
    return reference.randomise(
        Vocos(input_dim=5, dim=12, intermediate_dim=20, layers=layers, hop_length=hop), scale=1.0
    ).requires_grad_(False)


# the inverse STFT


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_istft_equals_a_loop(hop, frames):
    spectrum = spectra(2, frames, hop)
    got = InverseSTFT(hop)(spectrum)
    assert got.shape == (2, frames * hop)
    for item, frame in zip(got, spectrum, strict=True):
        check(item, reference.inverse_stft(frame.numpy(), hop), atol=1e-5)


@pytest.mark.parametrize("hop", HOPS)
def test_istft_undoes_an_stft(hop):
    audio = torch.randn(2, 9 * hop)
    around = torch.nn.functional.pad(audio, (3 * hop // 2, 3 * hop // 2))
    spectrum = torch.stft(
        around, 4 * hop, hop, window=torch.hann_window(4 * hop), center=False, return_complex=True
    ).transpose(1, 2)
    assert spectrum.shape[1] == 9
    torch.testing.assert_close(InverseSTFT(hop)(spectrum), audio, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hop", HOPS)
def test_istft_interior_equals_torchs(hop):
    spectrum = spectra(1, 12, hop)
    # torch keeps what lies between the middles of the outer frames, and needs a real DC and Nyquist.
    spectrum.imag[..., [0, -1]] = 0
    window = torch.hann_window(4 * hop)
    expected = torch.istft(spectrum.transpose(1, 2), 4 * hop, hop, window=window)[:, hop : 10 * hop]
    got = InverseSTFT(hop)(spectrum)[:, 3 * hop // 2 : 10 * hop + hop // 2]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_istft_batch_equals_single():
    hop, lengths = 160, (9, 4, 1)
    spectrum = spectra(3, 9, hop)
    istft = InverseSTFT(hop)
    got = istft(spectrum, lengths_mask(*lengths))
    for item, frames, length in zip(got, spectrum, lengths, strict=True):
        torch.testing.assert_close(item[: length * hop], istft(frames[None, :length])[0], atol=1e-6, rtol=0)


def test_istft_window_is_in_the_state_dict():
    assert torch.equal(InverseSTFT(160).state_dict()["window"], torch.hann_window(640))


# the head


def head_of(log_magnitude, hop=160):
    """A head that gives this log-magnitude in every bin, and a phase of 2.1 a bin, whatever its input."""
    head = ISTFTHead(3, hop)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias[: 2 * hop + 1] = log_magnitude
        head.out.bias[2 * hop + 1 :] = 2.1 * torch.arange(2 * hop + 1)
    return head


def test_head_equals_a_loop():
    head = reference.randomise(ISTFTHead(6, 8))
    x = torch.randn(1, 5, 6)
    out = reference.linear(reference.array(x[0]), head.out)
    spectrum = np.exp(out[:, :17]) * np.exp(1j * out[:, 17:])
    check(head(x)[0], reference.inverse_stft(spectrum, 8))


@pytest.mark.parametrize("log_magnitude", [4.7, 50.0, 1e4])
def test_magnitude_is_cut_at_100(log_magnitude):
    x = torch.zeros(1, 4, 3)
    full = head_of(math.log(100))(x)
    assert torch.isfinite(full).all()
    assert full.abs().max() > 10
    torch.testing.assert_close(head_of(log_magnitude)(x), full, atol=1e-4, rtol=1e-5)


def test_magnitude_below_100_is_the_exponential():
    x = torch.randn(1, 4, 3)
    torch.testing.assert_close(head_of(4.6)(x), head_of(0.0)(x) * math.exp(4.6), atol=1e-4, rtol=1e-5)


def test_gradients_are_finite_when_the_log_magnitude_is_huge():
    head = head_of(1000.0)
    x = torch.randn(1, 4, 3, requires_grad=True)
    head(x).square().sum().backward()
    for value in (x, head.out.weight, head.out.bias):
        assert torch.isfinite(value.grad).all()
    assert (head.out.bias.grad[:321] == 0).all()


def test_head_stays_in_float32_under_autocast():
    head = reference.randomise(ISTFTHead(6, 8))
    x = torch.randn(1, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head(x.bfloat16())
    assert got.dtype == torch.float32
    assert torch.equal(got, head(x.bfloat16().float()))


# the backbone


def slow_block(x, block):
    h = reference.layer_norm(reference.convolution(x, block.dwconv), block.norm, 1e-6)
    h = reference.linear(reference.gelu(reference.linear(h, block.pwconv1)), block.pwconv2)
    return x + reference.array(block.gamma) * h


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_block_equals_a_loop(level):
    block = reference.randomise(ConvNeXtBlock(12, 20, 0.5), scale=1.0)
    with torch.no_grad():
        block.dwconv.bias.mul_(level)
    x = level * torch.randn(1, 9, 12)
    check(block(x)[0], slow_block(reference.array(x[0]), block), atol=1e-4)


def test_backbone_equals_a_loop():
    module = make_vocos().backbone
    features = torch.randn(1, 5, 9)
    x = reference.layer_norm(reference.convolution(reference.array(features[0]).T, module.embed), module.norm, 1e-6)
    for block in module.convnext:
        x = slow_block(x, block)
    check(module(features)[0], reference.layer_norm(x, module.final_layer_norm, 1e-6), atol=1e-4)


def test_backbone_starts_as_published():
    module = VocosBackbone(input_dim=80, dim=128, intermediate_dim=256, layers=4)
    for block in module.convnext:
        assert (block.gamma == 0.25).all()
        for layer in (block.dwconv, block.pwconv1, block.pwconv2, module.embed):
            assert (layer.bias == 0).all()
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert {norm.eps for norm in module.modules() if isinstance(norm, torch.nn.LayerNorm)} == {1e-6}


def test_reach_is_three_frames_a_convolution():
    module = make_vocos(layers=2).backbone
    features = torch.randn(1, 5, 40)
    other = features.clone()
    other[..., 20] += 1
    changed = (module(features) - module(other)).abs().amax(dim=-1)[0] > 1e-6
    assert changed.nonzero()[:, 0].tolist() == list(range(11, 30))


# the whole


@pytest.mark.parametrize("hop", [8, 160])
def test_batch_equals_single(hop):
    module = make_vocos(hop)
    lengths = (30, 11, 1)
    features = torch.randn(3, 5, 30) * 10
    got = module(features, lengths_mask(*lengths))
    assert got.shape == (3, 30 * hop)
    for item, frames, length in zip(got, features, lengths, strict=True):
        alone = module(frames[None, :, :length])[0]
        torch.testing.assert_close(item[: length * hop], alone, atol=1e-4, rtol=1e-4)


def test_what_lies_on_padding_does_not_matter():
    module = make_vocos()
    mask = lengths_mask(30, 11)
    features = torch.randn(2, 5, 30)
    other = torch.where(mask[:, None], features, 1e3 * torch.randn_like(features))
    got, again = module(features, mask), module(other, mask)
    assert torch.equal(got[0], again[0])
    assert torch.equal(got[1, : 11 * 8], again[1, : 11 * 8])


def test_audio_past_the_end_is_zero():
    hop = 160
    got = make_vocos(hop)(torch.randn(2, 5, 30), lengths_mask(30, 11))
    assert (got[1, : 11 * hop] != 0).any()
    assert (got[1, 11 * hop :] == 0).all()


def test_bfloat16_blocks_keep_a_float32_stream():
    block = reference.randomise(ConvNeXtBlock(12, 20, 0.0))
    block.pwconv1.to(torch.bfloat16)
    block.pwconv2.to(torch.bfloat16)
    x = 100 + torch.randn(1, 9, 12)
    with torch.no_grad():
        block.gamma.zero_()
    got = block(x)
    assert got.dtype == torch.float32
    assert torch.equal(got, x)
