import sys

import pytest
import torch
from torch.nn import functional as F

import reference
from xycodec.errors import CheckpointError
from xycodec.models.xcodec.semantic import NormedConvolution, SelfSupervisedModel

SMALL = {"d_model": 24, "layers": 3, "heads": 2, "ffn_dim": 32, "conv_dim": 8, "position_kernel": 16,
         "position_groups": 4}  # fmt: skip
BASE = {"d_model": 768, "layers": 12, "heads": 12, "ffn_dim": 3072, "conv_dim": 512, "position_kernel": 128,
        "position_groups": 16}  # fmt: skip


@pytest.fixture(params=["hubert", "wavlm"])
def model(request):
    return reference.randomise(SelfSupervisedModel(kind=request.param, **SMALL))


def states(model, audio):
    """The first layer's input and the output of each, caught on their way."""
    caught = []
    layers = model.model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(lambda module, args, kwargs: caught.append(args[0]), with_kwargs=True)]
    hooks += [
        layer.register_forward_hook(lambda module, args, out: caught.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    model.model(audio)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("samples", [80, 399, 400, 719, 720, 6400])
def test_features_are_the_mean_of_all_states(model, samples):
    audio = torch.randn(2, samples)
    features = model(audio)
    caught = states(model, F.pad(audio, (160, 160)))
    assert len(caught) == 4
    assert features.shape == (2, (samples + 240) // 320, 24)
    torch.testing.assert_close(features, sum(caught) / 4)


@pytest.mark.parametrize("samples", [400, 1000, 9000])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_first_norm_is_the_norm_of_the_convolution(model, samples, offset):
    first = model.model.feature_extractor.conv_layers[0]
    audio = 0.1 * torch.randn(2, 1, samples) + offset
    exact = first.conv.weight.double(), first.layer_norm.weight.double(), first.layer_norm.bias.double()
    mapped = F.conv1d(audio.double(), exact[0], stride=5)
    expected = F.gelu(F.group_norm(mapped, len(exact[0]), *exact[1:])).float()
    torch.testing.assert_close(first(audio), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.exact
@pytest.mark.parametrize("samples", [400, 1000, 9000])
def test_neither_threads_nor_neighbours_matter_to_the_first_norm(threads, model, samples):
    first = model.model.feature_extractor.conv_layers[0]
    audio = 0.1 * torch.randn(2, 1, samples) + 0.5
    threads(1)
    got = first(audio)
    for count in (2, 4):
        threads(count)
        assert torch.equal(first(audio), got), count
    assert torch.equal(first(audio[1:]), got[1:])


def test_the_first_norm_of_silence(model):
    first = model.model.feature_extractor.conv_layers[0]
    expected = F.gelu(first.layer_norm.bias)[:, None].expand(-1, 79)
    torch.testing.assert_close(first(torch.zeros(1, 1, 400))[0], expected)


def test_other_norms_stay_what_they_are():
    model = SelfSupervisedModel(kind="hubert", feat_extract_norm="layer", **SMALL)
    assert not isinstance(model.model.feature_extractor.conv_layers[0], NormedConvolution)
    assert model(torch.randn(1, 400)).shape == (1, 2, 24)


def test_it_stays_in_eval_mode_and_frozen(model):
    audio = torch.randn(1, 1600)
    expected = model(audio)
    outer = torch.nn.Sequential(model).train()
    assert outer.training
    assert not any(part.training for part in model.modules())
    assert torch.equal(model(audio), expected)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model(audio.requires_grad_()).requires_grad


@pytest.mark.parametrize(("kind", "published"), [("hubert", 94_371_712), ("wavlm", 94_381_936)])
def test_full_size_has_the_published_number_of_parameters(kind, published):
    with torch.device("meta"):
        model = SelfSupervisedModel(kind=kind, **BASE)
    assert sum(p.numel() for p in model.parameters()) == published


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"transformers is not installed: pip install 'xycodec\[\w+\]'"):
        SelfSupervisedModel(kind="hubert", **SMALL)
