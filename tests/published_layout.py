"""Write one of our codecs as the published checkpoints are written; the inverse of
`xycodec.models.xy_tokenizer.convert`, on purpose spelled out anew."""

import json
import re

import torch
import yaml
from safetensors.torch import save_file

from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import QuantizerConfig, VocosConfig, XYTokenizerConfig

LAYOUTS = ("official", "ttsd", "hf")


def tiny_config(**changes):
    """A codec that computes in milliseconds; all widths differ, so that swapped ones cannot go unseen."""
    tower = TowerConfig(d_model=24, layers=1, heads=2, ffn_dim=40)
    settings = {
        "model_id": "tiny",
        "window_frames": 25,
        "semantic_encoder": TowerConfig(d_model=16, layers=2, heads=2, ffn_dim=20),
        "semantic_encoder_adapter": TowerConfig(d_model=16, layers=1, heads=4, ffn_dim=28),
        "acoustic_encoder": tower,
        "pre_rvq_adapter": TowerConfig(d_model=12, layers=1, heads=3, ffn_dim=36),
        "quantizer": QuantizerConfig(n_q=3, codebook_size=32, codebook_dim=10),
        "post_rvq_adapter": TowerConfig(d_model=20, layers=1, heads=2, ffn_dim=44),
        "acoustic_decoder": tower,
        "vocos": VocosConfig(dim=18, intermediate_dim=26, layers=2),
    }
    return XYTokenizerConfig(**{**settings, **changes})


def official_state(codec):
    """The official state dict of a folded codec; folding its weight norm gives back our bits."""
    config, state = codec.config, dict(codec.state_dict())
    for key in [key for key in state if key.endswith(".qkv_weight")]:
        prefix = key.removesuffix(".qkv_weight")
        parts = state.pop(key).chunk(3)
        state.update({f"{prefix}.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)})
        for name in "qv":
            state[f"{prefix}.{name}_proj.bias"] = state.pop(f"{prefix}.{name}_bias")
    factor, width = config.downsample_factor, config.pre_rvq_adapter.d_model
    for name in ("gate_proj", "up_proj"):
        stacked = state[f"downsample.{name}.weight"]
        taps = [stacked[:, i * width : (i + 1) * width] for i in range(factor)]
        state[f"downsample.{name}.weight"] = torch.stack(taps, dim=2)
    rows = state.pop("upsample.proj.weight").chunk(factor)
    state["upsample.up_conv.weight"] = torch.stack([row.T for row in rows], dim=2)
    for side in ("input_proj", "output_proj"):
        weight = state.pop(f"quantizer.{side}.weight")[..., None]
        # A power of two: exact, and a reader that forgets the gain shows.
        state[f"quantizer.{side}.weight_v"] = 4 * weight
        # Rounded as folding rounds it, so that it folds back to the bit.
        state[f"quantizer.{side}.weight_g"] = torch._weight_norm_interface(weight, torch.ones(len(weight), 1, 1))[1]
    for buffer in ("codebook", "inited", "cluster_size", "embed_avg"):
        for layer, value in enumerate(state.pop(f"quantizer.{buffer}")):
            state[f"quantizer.quantizers.{layer}.{buffer}"] = value[None] if buffer == "inited" else value
    return {key: value.clone().contiguous() for key, value in state.items()}


def respelled(state, layout):
    """The same in another published spelling."""
    if layout == "official":
        return dict(state)
    renamed = {re.sub(r"^vocos\.", "enhanced_vocos.", key): value for key, value in state.items()}
    if layout == "ttsd":
        return renamed
    out = {}
    for key, value in renamed.items():
        name = re.sub(r"\.(layers\.\d+)\.(fc[12])\.", r".\1.mlp.\2.", key)
        name = name.replace(".weight_g", ".parametrizations.weight.original0")
        name = name.replace(".weight_v", ".parametrizations.weight.original1")
        name = name + ".weight" if name.endswith(".positional_embedding") else name
        out[name] = value[0] if name.endswith(".inited") else value
    return out


def published_settings(config, layout="official"):
    """The mapping that the published `config.yaml` holds."""
    rate = config.output_sample_rate
    rates = {"input_sample_rate": 16000, "output_sample_rate": rate, "decoder_upsample_rate": config.output_hop_length}

    def transformer(size, kind="encoder", **more):
        sizes = {"layers": size.layers, "attention_heads": size.heads, "ffn_dim": size.ffn_dim}
        return {"d_model": size.d_model, **{f"{kind}_{name}": n for name, n in sizes.items()}, **more}

    quantizer, vocos, mels = config.quantizer, config.vocos, config.n_mels
    params = {
        "feature_extractor_kwargs": {"feature_size": mels, "n_fft": 400, "hop_length": 160},
        "semantic_encoder_kwargs": transformer(config.semantic_encoder, num_mel_bins=mels),
        "semantic_encoder_adapter_kwargs": transformer(config.semantic_encoder_adapter),
        "acoustic_encoder_kwargs": transformer(config.acoustic_encoder, num_mel_bins=mels),
        "pre_rvq_adapter_kwargs": transformer(config.pre_rvq_adapter),
        "downsample_kwargs": {"d_model": config.pre_rvq_adapter.d_model, "avg_pooler": config.downsample_factor},
        "quantizer_kwargs": {
            "input_dim": config.latent_dim,
            "rvq_dim": quantizer.codebook_dim,
            "codebook_dim": quantizer.codebook_dim,
            "codebook_size": quantizer.codebook_size,
            "num_quantizers": quantizer.n_q,
        },
        "post_rvq_adapter_kwargs": transformer(config.post_rvq_adapter, max_source_positions=config.window_frames),
        "upsample_kwargs": {"d_model": config.acoustic_decoder.d_model, "stride": config.downsample_factor},
        "acoustic_decoder_kwargs": transformer(config.acoustic_decoder, "decoder", num_mel_bins=mels),
        "vocos_kwargs": {
            "dim": vocos.dim,
            "intermediate_dim": vocos.intermediate_dim,
            "num_layers": vocos.layers,
            "n_fft": 4 * rate // 100,
            "hop_size": rate // 100,
        },
    }
    if layout == "official":
        return {"sample_rate": 16000, "generator_params": {"sample_rate": 16000, **params}}
    return {**rates, "generator_params": {**rates, **params}}


def write_published(codec, folder, layout="official"):
    """Make `folder` as published: one checkpoint (two shards in the Hugging Face form) and config.yaml."""
    folder.mkdir(parents=True)
    state = respelled(official_state(codec), layout)
    (folder / "config.yaml").write_text(yaml.safe_dump(published_settings(codec.config, layout)))
    if layout != "hf":
        torch.save({"generator": state}, folder / "xy_tokenizer.ckpt")
        return folder
    (folder / "config.json").write_text(json.dumps({"architectures": ["XYTokenizer"]}))
    keys = sorted(state)
    for i, part in enumerate((keys[::2], keys[1::2]), 1):
        save_file({key: state[key] for key in part}, folder / f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder
