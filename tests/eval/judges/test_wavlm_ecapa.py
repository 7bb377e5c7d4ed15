"""The published layout is written here a second time, and the head computed from it in float64, step by step."""

import numpy as np
import pytest
import torch
from tests.judging import BODY, noisy, shake, speech

from xycodec.errors import CheckpointError
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.choose import make_judges

CHANNELS, WIDE = 16, 24
BODY = {**BODY, "hidden_size": 32, "num_attention_heads": 4, "num_buckets": 10, "num_conv_pos_embedding_groups": 4}
LARGE = {**BODY, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
# Transformers' names -> those of WavLM's authors.
PUBLISHED = {
    "masked_spec_embed": "mask_emb",
    "feature_projection.projection": "post_extract_proj",
    "feature_projection.layer_norm": "layer_norm",
    "encoder.pos_conv_embed.conv.bias": "encoder.pos_conv.0.bias",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    "attention.gru_rel_pos_linear": "self_attn.grep_linear",
    "attention.gru_rel_pos_const": "self_attn.grep_a",
    "attention.rel_attn_embed": "self_attn.relative_attention_bias",
    "attention.": "self_attn.",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
}


def published_name(key):
    if key.startswith("feature_extractor"):
        return key.replace(".conv.", ".0.").replace(".layer_norm.", ".2.1.")
    if ".layers." in key and "final" not in key:
        key = key.replace(".layer_norm.", ".self_attn_layer_norm.")
    for theirs, name in PUBLISHED.items():
        if theirs in key:
            return key.replace(theirs, name)
    return key


def layer(name, outputs, inputs, *kernel):
    return {f"{name}.weight": torch.randn(outputs, inputs, *kernel) / inputs**0.5, f"{name}.bias": torch.randn(outputs)}


def norm(name, channels):
    return {
        f"{name}.weight": 1 + 0.3 * torch.randn(channels),
        f"{name}.bias": 0.3 * torch.randn(channels),
        f"{name}.running_mean": 0.3 * torch.randn(channels),
        f"{name}.running_var": 0.5 + torch.rand(channels),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def head_state():
    torch.manual_seed(1)
    state = {"feature_weight": torch.randn(BODY["num_hidden_layers"] + 1)}
    state |= layer("layer1.conv", CHANNELS, 32, 5) | norm("layer1.bn", CHANNELS)
    for number in (2, 3, 4):
        block = f"layer{number}"
        for side in ("Conv1dReluBn1", "Conv1dReluBn2"):
            state |= layer(f"{block}.{side}.conv", CHANNELS, CHANNELS, 1) | norm(f"{block}.{side}.bn", CHANNELS)
        for group in range(7):
            state |= layer(f"{block}.Res2Conv1dReluBn.convs.{group}", 2, 2, 3)
            state |= norm(f"{block}.Res2Conv1dReluBn.bns.{group}", 2)
        state |= layer(f"{block}.SE_Connect.linear1", 6, CHANNELS) | layer(f"{block}.SE_Connect.linear2", CHANNELS, 6)
    state |= layer("conv", WIDE, 3 * CHANNELS, 1)
    state |= layer("pooling.linear1", 5, WIDE, 1) | layer("pooling.linear2", WIDE, 5, 1)
    return state | norm("bn", 2 * WIDE) | layer("linear", 12, 2 * WIDE)


@pytest.fixture(scope="module")
def published():
    """A small random WavLM, the head's weights, and both as they are published."""
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    wavlm = shake(WavLMModel(WavLMConfig(**LARGE)), scale=0.1)
    head = head_state()
    state = {f"feature_extract.model.{published_name(key)}": value for key, value in wavlm.state_dict().items()}
    return wavlm, head, state | head | {"loss_calculator.projection.weight": torch.randn(3, 12)}


def save(state, folder):
    path = folder / "wavlm_large_finetune.pth"
    torch.save({"model": state, "best_valid_eer": 100.0}, path)
    return path


# ---- the head, slowly --------------------------------------------------------------------------


def convolve(x, state, name, dilation=1):
    weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
    reach = weight.shape[2] // 2 * dilation
    padded = np.pad(x, ((0, 0), (reach, reach)))
    columns = [padded[:, start : start + x.shape[1]] for start in range(0, 2 * reach + 1, dilation)]
    return sum(weight[:, :, k] @ column for k, column in enumerate(columns)) + bias[:, None]


def normed(x, state, name):
    weight, bias, mean, variance = (
        state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((x.T - mean) / np.sqrt(variance + 1e-5) * weight + bias).T


def dense(x, state, name):
    return state[f"{name}.weight"].double().numpy() @ x + state[f"{name}.bias"].double().numpy()


def relu(x):
    return np.maximum(x, 0)


def embed(states, state):
    """(S, L, D) hidden states -> (E,)."""
    share = np.exp(state["feature_weight"].double().numpy())
    x = sum(one * s for one, s in zip(states, share / share.sum(), strict=True)).T
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = normed(relu(convolve(x, state, "layer1.conv")), state, "layer1.bn")
    outputs = []
    for number in (2, 3, 4):
        name = f"layer{number}"
        y = normed(relu(convolve(x, state, f"{name}.Conv1dReluBn1.conv")), state, f"{name}.Conv1dReluBn1.bn")
        groups = [y[2 * group : 2 * group + 2] for group in range(8)]
        before = 0
        for group in range(7):
            inner = f"{name}.Res2Conv1dReluBn"
            before = relu(convolve(groups[group] + before, state, f"{inner}.convs.{group}", dilation=number))
            groups[group] = before = normed(before, state, f"{inner}.bns.{group}")
        y = relu(convolve(np.concatenate(groups), state, f"{name}.Conv1dReluBn2.conv"))
        y = normed(y, state, f"{name}.Conv1dReluBn2.bn")
        hidden = relu(dense(y.mean(1), state, f"{name}.SE_Connect.linear1"))
        x = x + y / (1 + np.exp(-dense(hidden, state, f"{name}.SE_Connect.linear2")))[:, None]
        outputs.append(x)
    x = relu(convolve(np.concatenate(outputs), state, "conv"))
    attention = np.exp(convolve(np.tanh(convolve(x, state, "pooling.linear1")), state, "pooling.linear2"))
    attention /= attention.sum(1, keepdims=True)
    mean = (attention * x).sum(1)
    deviation = np.sqrt(np.maximum((attention * (x - mean[:, None]) ** 2).sum(1), 1e-9))
    return dense(normed(np.concatenate([mean, deviation]), state, "bn"), state, "linear")


@torch.no_grad()
def hidden_states(wavlm, audio):
    """Inputs of each layer and the final output, caught by hooks."""
    seen = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
        )
        for layer in wavlm.encoder.layers
    ]
    scaled = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-5)
    seen.append(wavlm(torch.from_numpy(scaled)[None]).last_hidden_state)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen).double().numpy()


def test_the_published_layout_gives_the_cosine_of_its_embeddings(published, tmp_path):
    wavlm, head, state = published
    judge = make_judges(similarity=str(save(state, tmp_path)), device="cpu")[0]
    original = speech()[:30_000]
    for decoded in (noisy(original, 0.1), speech()[20_000:]):
        left, right = (embed(hidden_states(wavlm, audio), head) for audio in (decoded, original))
        expected = left @ right / np.sqrt(left @ left * (right @ right))
        assert expected < 0.9999
        assert judge([Pair(decoded, original)])[0].values["similarity"] == pytest.approx(expected, abs=1e-5)
    assert "wavlm_large_finetune.pth (UniSpeech" in judge.describe()


def test_the_shortest_clip(published, tmp_path):
    judge = make_judges(similarity=str(save(published[2], tmp_path)), device="cpu")[0]
    assert judge.shortest == 720
    audio = noisy(speech())[20_000:20_720]
    assert judge([Pair(audio, audio)])[0].values["similarity"] == pytest.approx(1)
    assert judge([Pair(audio[:-1], audio)])[0].missing == {"similarity": "under 0.045 s"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"pooling.linear1.weight": None}, "Missing key.*pooling.linear1.weight|lacks .*pooling.linear1.weight"),
        ({"layer3.SE_Connect.linear1.bias": None}, "Missing key.*blocks.1.gate.linear1.bias"),
        ({"feature_weight": None}, "lacks head.feature_weight"),
        ({"more.weight": torch.zeros(1)}, "Unexpected key.*more.weight"),
        ({"pooling.linear1.weight": torch.zeros(5, 3 * WIDE, 1)}, "size mismatch"),
    ],
)
def test_other_weights(published, tmp_path, changed, reason):
    state = {key: value for key, value in (published[2] | changed).items() if value is not None}
    with pytest.raises(CheckpointError, match=f"not UniSpeech's WavLM with ECAPA-TDNN.*({reason})") as caught:
        make_judges(similarity=str(save(state, tmp_path)), device="cpu")
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path):
    for content in (b"", b"no checkpoint"):
        (tmp_path / "model.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.pth: no checkpoint with a `model` in it"):
            make_judges(similarity=str(tmp_path / "model.pth"), device="cpu")
    with pytest.raises(CheckpointError, match=r"absent.pth: no such file"):
        make_judges(similarity=str(tmp_path / "absent.pth"), device="cpu")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": pytest.approx}, path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make_judges(similarity=str(path), device="cpu")
