import numpy as np
import pytest
import torch

import reference
from xycodec.nn.transformer import Adapter, SelfAttention, Transformer, TransformerLayer, sinusoids, zero_padding


def check(got, expected, atol=2e-5):
    np.testing.assert_allclose(reference.array(got), expected, atol=atol, rtol=0)


def lengths_mask(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def make_transformer(layers=2, max_positions=20):
    return reference.randomise(
        Transformer(d_model=24, layers=layers, heads=3, ffn_dim=40, max_positions=max_positions)
    ).eval()


def test_sinusoids_have_the_published_values():
    table = sinusoids(1500, 768)
    assert table.shape == (1500, 768)
    assert table.dtype == torch.float32
    assert table[1, :3].tolist() == pytest.approx([0.841471, 0.828396, 0.815181], abs=2e-6)
    assert table[1, 384:387].tolist() == pytest.approx([0.540302, 0.560142, 0.579206], abs=2e-6)
    assert float(table[1499, 383]) == pytest.approx(0.149339, abs=2e-6)


def test_sinusoids_equal_a_loop():
    check(sinusoids(375, 32), reference.positions(375, 32), atol=5e-5)


def test_attention_equals_a_loop():
    module = reference.randomise(SelfAttention(24, 3), scale=2.0)
    x = torch.randn(2, 7, 24)
    got = module(x)
    for i in range(2):
        check(got[i], reference.attention(reference.array(x[i]), module), atol=1e-4)


def test_attention_looks_at_valid_keys_only():
    module = reference.randomise(SelfAttention(24, 3), scale=2.0)
    x = torch.randn(2, 7, 24)
    got = module(x, lengths_mask(7, 4))
    for i, length in enumerate((7, 4)):
        check(got[i, :length], reference.attention(reference.array(x[i, :length]), module), atol=1e-4)


def test_attention_has_no_key_bias():
    shapes = {name: tuple(value.shape) for name, value in SelfAttention(24, 3).named_parameters()}
    assert shapes == {
        "qkv_weight": (72, 24),
        "q_bias": (24,),
        "v_bias": (24,),
        "out_proj.weight": (24, 24),
        "out_proj.bias": (24,),
    }


def test_layer_equals_a_loop():
    module = reference.randomise(TransformerLayer(24, 3, 40), scale=2.0)
    x = torch.randn(1, 6, 24)
    check(module(x)[0], reference.transformer_layer(reference.array(x[0]), module), atol=2e-4)


def test_layer_norms_have_torchs_default_epsilon():
    module = reference.randomise(TransformerLayer(24, 3, 40))
    x = 1e-3 * torch.randn(1, 6, 24)  # a variance of 1e-6 makes the epsilon visible
    check(module(x)[0], reference.transformer_layer(reference.array(x[0]), module))


def test_transformer_equals_a_loop():
    module = make_transformer()
    x = torch.randn(1, 9, 24)
    check(module.transform(x)[0], reference.transformer(reference.array(x[0]), module))


def test_masked_batch_equals_single():
    module = make_transformer()
    lengths = (9, 4, 1)
    x = torch.randn(3, 9, 24)
    got = module.transform(x, lengths_mask(*lengths))
    for item, clip, length in zip(got, x, lengths, strict=True):
        torch.testing.assert_close(item[:length], module.transform(clip[None, :length])[0], atol=1e-5, rtol=0)
        assert (item[length:] == 0).all()


def test_padding_does_not_matter():
    module = make_transformer()
    mask = lengths_mask(9, 4)
    x = torch.randn(2, 9, 24)
    other = torch.where(mask[..., None], x, 1e3 * torch.randn_like(x))
    assert torch.equal(module.transform(x, mask), module.transform(other, mask))


def test_item_of_no_frames_gives_zeros():
    module = make_transformer()
    mask = lengths_mask(5, 0, 3)
    kept = mask.clone()
    x = torch.randn(3, 5, 24, requires_grad=True)
    keys = []  # whether softmax over no key is NaN depends on torch's kernel, so no layer may meet it
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, args: keys.append(args[1].any(dim=1)))
    got = module.transform(x, mask)
    assert torch.stack(keys).all()
    assert torch.isfinite(got).all()
    assert (got[1] == 0).all()
    torch.testing.assert_close(got[0], module.transform(x[:1], mask[:1])[0], atol=1e-5, rtol=0)
    got.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.equal(mask, kept)


def test_positions_are_in_the_state_dict():
    module = make_transformer(max_positions=11)
    assert torch.equal(module.state_dict()["positional_embedding"], sinusoids(11, 24))


def test_zero_padding():
    x = torch.randn(2, 3, 4)
    assert zero_padding(x, None) is x
    got = zero_padding(x, lengths_mask(3, 1))
    assert torch.equal(got[0], x[0])
    assert torch.equal(got[1, :1], x[1, :1])
    assert (got[1, 1:] == 0).all()


def to_bfloat16(layer):
    for part in (layer.self_attn, layer.fc1, layer.fc2):
        part.to(torch.bfloat16)


def test_bfloat16_weights_keep_a_float32_residual_stream():
    module = make_transformer()
    x = 100 + torch.randn(1, 6, 24)  # values that bfloat16 rounds to steps of 0.5
    seen = []
    with torch.no_grad():
        for layer in module.layers:
            to_bfloat16(layer)
            layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
            for part in (layer.self_attn.out_proj, layer.fc2):
                part.weight.zero_()
                part.bias.zero_()
        out = module.transform(x)
    assert len(seen) == 2
    assert torch.equal(seen[0][0], x + module.positional_embedding[:6])
    for before, after in seen:
        assert after.dtype == torch.float32
        assert torch.equal(before, after)
    assert out.dtype == torch.float32


def test_bfloat16_weights_come_close():
    module = make_transformer()
    x = torch.randn(1, 6, 24)
    exact = module.transform(x)
    for layer in module.layers:
        to_bfloat16(layer)
    rough = module.transform(x)
    assert rough.dtype == torch.float32
    error = (rough - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05


def make_adapter(input_dim, output_dim):
    return reference.randomise(
        Adapter(input_dim=input_dim, output_dim=output_dim, d_model=24, layers=1, heads=3, ffn_dim=40, max_positions=20)
    )


def test_adapter_maps_where_the_width_changes():
    module = make_adapter(10, 14)
    x = torch.randn(1, 5, 10)
    inner = reference.transformer(reference.linear(reference.array(x[0]), module.proj), module)
    check(module(x)[0], reference.linear(inner, module.out_proj))


def test_adapter_of_one_width_has_no_maps():
    module = make_adapter(24, 24)
    assert not [name for name, _ in module.named_parameters() if name.startswith(("proj", "out_proj"))]
    x = torch.randn(1, 5, 24)
    check(module(x)[0], reference.transformer(reference.array(x[0]), module))


def test_adapter_holds_the_outer_bias_on_padding():
    module = make_adapter(10, 14)
    got = module(torch.randn(2, 5, 10), lengths_mask(5, 2))
    torch.testing.assert_close(got[1, 2:], module.out_proj.bias.expand(3, -1))
    assert (make_adapter(10, 24)(torch.randn(2, 5, 10), lengths_mask(5, 2))[1, 2:] == 0).all()
