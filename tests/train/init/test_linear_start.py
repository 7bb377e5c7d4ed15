import json

import numpy as np
import pytest
import soundfile as sf
import torch
from tests.training import clip, pretraining, tiny_model

from xycodec.data.manifest import import_manifest
from xycodec.errors import ConfigError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import QuantizerConfig, VocosConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.init.linear import start_linear
from xycodec.train.stages import pretrain
from xycodec.train.stages.pretrain import build

WIDE = TowerConfig(d_model=48, layers=2, heads=2, ffn_dim=32)
FRAMES = 12


def small_codec(**changes):
    settings = {
        "n_mels": 12,
        "window_frames": 25,
        "semantic_encoder": WIDE,
        "semantic_encoder_adapter": WIDE,
        "acoustic_encoder": WIDE,
        "pre_rvq_adapter": TowerConfig(d_model=40, layers=1, heads=2, ffn_dim=32),
        "quantizer": QuantizerConfig(n_q=4, codebook_size=64, codebook_dim=16),
        "post_rvq_adapter": WIDE,
        "acoustic_decoder": WIDE,
        "vocos": VocosConfig(dim=32, intermediate_dim=32, layers=1),
    }
    torch.manual_seed(0)
    return XYTokenizer(tiny_model(**{**settings, **changes})).eval()


def clips(first, count):
    """Tones that swell and change within a clip."""
    parts = [clip(first + number).audio[: FRAMES * 1280] for number in range(2 * count)]
    half = FRAMES * 640
    return torch.stack([torch.cat([a[:half], b[half:]]) for a, b in zip(parts[::2], parts[1::2], strict=True)])


def patches(codec, audio):
    """Stacked features of every code frame, by the codec's own definition of them."""
    ideal = codec.ideal_features(audio, [audio.shape[1]] * len(audio))
    return ideal.transpose(1, 2).reshape(len(audio) * FRAMES, -1)


def distance(codec, audio, *, quantize):
    with torch.no_grad():
        latents, *_ = codec.encode_latents(audio, [audio.shape[1]] * len(audio))
        quantizer = codec.quantizer
        out = quantizer(latents).quantized if quantize else quantizer.output_proj(quantizer.input_proj(latents))
        features = codec.acoustic_features(codec.post_rvq_adapter(out))
    made = features.transpose(1, 2).reshape(len(audio) * FRAMES, -1)
    return float((made - patches(codec, audio)).abs().mean())


def test_it_is_nearly_as_good_as_principal_components_on_clips_it_has_not_seen():
    codec, learned, unseen = small_codec(), clips(0, 60), clips(500, 12)
    before = distance(codec, unseen, quantize=False)
    start_linear(codec, learned, batch_frames=60)
    seen, new = patches(codec, learned).double().numpy(), patches(codec, unseen).double().numpy()
    mean = seen.mean(axis=0)
    basis = np.linalg.svd(seen - mean, full_matrices=False)[2][:16]
    components = float(np.abs((new - mean) @ basis.T @ basis + mean - new).mean())
    constant = float(np.abs(new - mean).mean())
    unquantized, quantized = (distance(codec, unseen, quantize=way) for way in (False, True))
    assert components <= unquantized < components + 0.25 * (constant - components)
    assert unquantized < quantized < 0.6 * constant
    assert quantized < 0.2 * before


def test_it_follows_from_the_clips_and_the_generator_alone():
    learned = clips(0, 30)
    states = []
    for _ in range(2):
        codec = small_codec()
        torch.manual_seed(3)
        start_linear(codec, learned, batch_frames=60)
        states.append(codec.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_semantic_tower_stays():
    codec = small_codec()
    before = {name: value.clone() for name, value in codec.semantic_encoder.state_dict().items()}
    start_linear(codec, clips(0, 30), batch_frames=60)
    assert all(torch.equal(value, before[name]) for name, value in codec.semantic_encoder.state_dict().items())
    assert codec.quantizer.inited.all()


def test_everything_can_learn_from_there():
    codec = small_codec()
    audio = clips(0, 30)
    start_linear(codec, audio, batch_frames=60)
    codec.train()
    latents, *_ = codec.encode_latents(audio[:4], [audio.shape[1]] * 4)
    codec.decode_latents(codec.quantizer(latents).quantized).square().sum().backward()
    still = [name for name, value in codec.named_parameters() if value.grad is None or not value.grad.any()]
    # What stands before a map that begins at zero waits for it to move.
    waiting = (
        ".self_attn.qkv",
        ".self_attn.q_bias",
        ".self_attn.v_bias",
        "_layer_norm.",
        ".fc1.",
        "downsample.gate",
        "downsample.up_",
    )
    assert not [name for name in still if not any(part in name for part in waiting)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_mels": 32}, "towers of 2 x n_mels channels"),
        (
            {"quantizer": QuantizerConfig(n_q=4, codebook_size=512, codebook_dim=16)},
            "found 360 code frames, fewer than",
        ),
        ({"pre_rvq_adapter": TowerConfig(d_model=96, layers=1, heads=2, ffn_dim=32)}, "adapter before the quantizer"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        start_linear(small_codec(**changes), clips(0, 30), batch_frames=60)
    assert "\n" not in str(caught.value)


def corpus(folder, seconds):
    rows = []
    for number in range(8):
        sf.write(folder / f"{number}.wav", clip(number, seconds).audio.clamp(-1, 1).numpy(), 16_000)
        rows.append(json.dumps({"audio": f"{number}.wav", "duration": seconds}))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    import_manifest(folder / "rows.jsonl", folder / "cuts.jsonl")
    return {"train": [str(folder / "cuts.jsonl")], "clip_seconds": 2.0, "batch_clips": 3, "workers": 0}


def test_a_recipe_fits_it_to_its_data(tmp_path):
    data = corpus(tmp_path, 2.1)
    model = small_codec().config.model_dump()
    one, two = (build(pretraining(model=model, data=data, start="linear")).codec.state_dict() for _ in range(2))
    plain = build(pretraining(model=model, data=data)).codec.state_dict()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert one["quantizer.inited"].all()
    assert not plain["quantizer.inited"].any()


def test_a_recipe_does_not_undo_its_weights():
    with pytest.raises(ConfigError, match="start: linear would undo what weights gives"):
        pretraining(start="linear", weights="somewhere")


@pytest.mark.parametrize("endless", [False, True])
def test_a_recipe_whose_clips_are_too_short(tmp_path, monkeypatch, endless):
    monkeypatch.setattr(pretrain, "SEARCHED", 40)
    data = corpus(tmp_path, 1.0)
    if endless:
        data["train"] = [{"path": data["train"][0], "weight": 1}]
    with pytest.raises(ConfigError, match="start: linear needs clips of 2 s, and found none"):
        build(pretraining(model=small_codec().config.model_dump(), data=data, start="linear"))
