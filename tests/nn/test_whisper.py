import numpy as np
import pytest
import torch

import reference
from xycodec.nn.whisper import AcousticDecoder, WhisperEncoder


def make(cls, layers=1):
    module = cls(n_mels=5, d_model=24, layers=layers, heads=3, ffn_dim=40, max_positions=40)
    return reference.randomise(module, scale=1.0).eval().requires_grad_(False)


def check(got, expected, atol=1e-4):
    np.testing.assert_allclose(reference.array(got), expected, atol=atol, rtol=0)


def slow_encoder(mel, rows, module):
    h = reference.gelu(reference.convolution(mel.T, module.conv1))
    h = reference.gelu(reference.convolution(h, module.conv2))
    return reference.transformer(h[:rows], module)


def slow_decoder(x, module):
    h = reference.transformer(x, module)
    h = reference.gelu(reference.transposed_convolution(h, module.deconv1))
    h = reference.gelu(reference.transposed_convolution(h, module.deconv2))
    return h[: 2 * len(x)].T


@pytest.mark.parametrize(("frames", "rows"), [(14, 7), (14, 6), (15, 7)])
def test_encoder_equals_a_loop(frames, rows):
    module = make(WhisperEncoder)
    mel = torch.randn(1, 5, frames)
    got = module(mel, rows)
    assert got.shape == (1, rows, 24)
    check(got[0], slow_encoder(reference.array(mel[0]), rows, module))


@pytest.mark.parametrize("frames", [16, 17])
def test_one_frame_of_margin_makes_a_clip_exact(frames):
    module = make(WhisperEncoder)
    mel, rows = torch.randn(1, 5, frames + 30), frames // 2
    expected = module(mel, rows)
    torch.testing.assert_close(module(mel[..., : frames + 1], rows), expected, atol=1e-5, rtol=0)
    if frames % 2 == 0:
        assert (module(mel[..., :frames], rows) - expected).abs().max() > 1e-3


def test_encoder_row_sees_five_frames():
    module = make(WhisperEncoder)
    with torch.no_grad():
        for layer in module.layers:  # without attention, rows do not meet
            layer.self_attn.out_proj.weight.zero_()
    mel = torch.randn(1, 5, 30)
    seen = []
    for frame in range(30):
        other = mel.clone()
        other[..., frame] += 1
        if (module(other, 15) - module(mel, 15))[0, 6].abs().max() > 1e-4:
            seen.append(frame)
    assert seen == [10, 11, 12, 13, 14]


def test_encoder_batch_equals_single():
    module = make(WhisperEncoder, layers=2)
    mel = torch.randn(3, 5, 22)
    lengths = torch.tensor([10, 4, 0])
    got = module(mel, 10, torch.arange(10) < lengths[:, None])
    for item, frames, rows in zip(got, mel, lengths.tolist(), strict=True):
        if rows:
            torch.testing.assert_close(item[:rows], module(frames[None], rows)[0], atol=1e-5, rtol=0)
        assert (item[rows:] == 0).all()


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_decoder_equals_a_loop(rows):
    module = make(AcousticDecoder)
    x = torch.randn(1, rows, 24)
    got = module(x)
    assert got.shape == (1, 5, 2 * rows)
    check(got[0], slow_decoder(reference.array(x[0]), module))
    assert got.min() > -0.171  # the minimum of GELU, which comes last too


def test_decoder_batch_equals_single():
    module = make(AcousticDecoder, layers=2)
    x = torch.randn(3, 9, 24)
    lengths = (9, 4, 1)
    got = module(x, torch.arange(9) < torch.tensor(lengths)[:, None])
    for item, rows, length in zip(got, x, lengths, strict=True):
        torch.testing.assert_close(item[:, : 2 * length], module(rows[None, :length])[0], atol=1e-5, rtol=0)


def test_state_has_the_names_of_whisper():
    encoder, decoder = (set(make(cls).state_dict()) for cls in (WhisperEncoder, AcousticDecoder))
    shared = {"positional_embedding", "layer_norm.weight", "layer_norm.bias"}
    layer = {f"layers.0.{name}" for name in make(WhisperEncoder).layers[0].state_dict()}
    assert encoder - decoder == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    assert decoder - encoder == {"deconv1.weight", "deconv1.bias", "deconv2.weight", "deconv2.bias"}
    assert encoder & decoder == shared | layer


@pytest.mark.exact
@pytest.mark.parametrize("frames", [22, 66, 102])
def test_thread_count_changes_not_a_bit(threads, frames):
    module = WhisperEncoder(n_mels=80, d_model=768, layers=1, heads=12, ffn_dim=768, max_positions=51).eval()
    mel = torch.randn(1, 80, frames)
    results = []
    for count in (1, 2, 3, 4, 8):
        threads(count)
        with torch.no_grad():
            results.append(module(mel, frames // 2))
    assert all(torch.equal(result, results[0]) for result in results)
