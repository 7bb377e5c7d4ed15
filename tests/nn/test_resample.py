import pytest
import torch
from torch.nn import functional as F

from xycodec.nn.resample import (
    GatedDownsample,
    Upsample,
    convolution_as_product,
    transposed_convolution_as_product,
)


def from_convolutions(gate, up, d_model, factor):
    """The module that computes what two published convolutions do; and its other weights are random."""
    module = GatedDownsample(d_model=d_model, factor=factor)
    with torch.no_grad():
        module.gate_proj.weight.copy_(convolution_as_product(gate.weight))
        module.up_proj.weight.copy_(convolution_as_product(up.weight))
        module.layer_norm.weight.normal_()
        module.layer_norm.bias.normal_()
    return module


@pytest.mark.parametrize("factor", [2, 4])
def test_downsample_equals_its_convolutions(factor):
    d, t = 6, 5 * factor
    gate, up = (torch.nn.Conv1d(d, d * factor, factor, stride=factor, bias=False) for _ in range(2))
    module = from_convolutions(gate, up, d, factor)
    x = torch.randn(2, t, d)
    channels = x.transpose(1, 2)
    h = (F.silu(gate(channels)) * up(channels)).transpose(1, 2) @ module.down_proj.weight.T
    neighbours = torch.stack([torch.cat([*item[i * factor : (i + 1) * factor]]) for item in x for i in range(5)])
    expected = F.layer_norm(
        h + neighbours.view(2, 5, -1), (d * factor,), module.layer_norm.weight, module.layer_norm.bias, eps=1e-5
    )
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=0)


def test_downsample_norm_has_torchs_default_epsilon():
    module = GatedDownsample(d_model=2, factor=4)
    assert module.layer_norm.eps == 1e-5
    assert [name for name, _ in module.named_parameters() if "bias" in name] == ["layer_norm.bias"]


@pytest.mark.parametrize("surplus", [1, 2, 3])
def test_downsample_drops_rows_past_the_last_whole_stack(surplus):
    module = GatedDownsample(d_model=6, factor=4)
    x = torch.randn(2, 8 + surplus, 6)
    assert module(x).shape == (2, 2, 24)
    torch.testing.assert_close(module(x), module(x[:, :8]))


def test_downsample_of_less_than_a_stack_is_empty():
    assert GatedDownsample(d_model=6, factor=4)(torch.randn(2, 3, 6)).shape == (2, 0, 24)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsample_equals_its_transposed_convolution(factor):
    conv = torch.nn.ConvTranspose1d(12, 5, factor, stride=factor, bias=False)
    module = Upsample(input_dim=12, output_dim=5, factor=factor)
    with torch.no_grad():
        module.proj.weight.copy_(transposed_convolution_as_product(conv.weight))
    x = torch.randn(2, 7, 12)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    assert module(x).shape == (2, 7 * factor, 5)
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=0)


def test_upsample_rows_depend_on_their_own_code():
    module = Upsample(input_dim=12, output_dim=5, factor=4)
    x = torch.randn(1, 3, 12)
    other = x.clone()
    other[:, 1] += 1
    changed = (module(x) != module(other)).any(dim=-1)[0]
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4
