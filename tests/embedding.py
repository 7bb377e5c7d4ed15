"""Embedders of sets of audio: small, random, in the layout of their published files."""

import json

import numpy as np
import torch
from tests.judging import shake
from torch import nn

SIZES = {16_000: 512, 32_000: 1024}


def panns_state(rate=16_000, widths=(4, 4, 6, 6, 8, 8), embedding=10, classes=7):
    """Names and values as the published Cnn14 has them, its Fourier transform as a convolution among them."""
    n_fft, bands = SIZES[rate], 64
    draw = torch.Generator().manual_seed(rate)

    def norm(size):
        return {
            "weight": torch.rand(size, generator=draw) + 0.5,
            "bias": torch.randn(size, generator=draw),
            "running_mean": torch.randn(size, generator=draw),
            "running_var": torch.rand(size, generator=draw) + 0.5,
            "num_batches_tracked": torch.tensor(3),
        }

    turns = torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) * (2 * torch.pi / n_fft)
    window = torch.hann_window(n_fft)
    state = {
        "spectrogram_extractor.stft.conv_real.weight": (torch.cos(turns) * window)[:, None],
        "spectrogram_extractor.stft.conv_imag.weight": (-torch.sin(turns) * window)[:, None],
        "logmel_extractor.melW": torch.rand(n_fft // 2 + 1, bands, generator=draw),
        **{f"bn0.{key}": value for key, value in norm(bands).items()},
    }
    for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), 1):
        for place, channels in ((1, inputs), (2, outputs)):
            block = f"conv_block{number}"
            state[f"{block}.conv{place}.weight"] = torch.randn(outputs, channels, 3, 3, generator=draw) / 3
            state |= {f"{block}.bn{place}.{key}": value for key, value in norm(outputs).items()}
    for name, inputs, outputs in (("fc1", widths[-1], embedding), ("fc_audioset", embedding, classes)):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=draw)
        state[f"{name}.bias"] = torch.randn(outputs, generator=draw)
    return state


def save_panns(path, **sizes):
    torch.save({"model": panns_state(**sizes), "iteration": 1}, path)
    return path


def vggish_state(widths=(4, 4, 6, 6, 8, 8), hidden=12, out=5):
    draw = torch.Generator().manual_seed(0)
    state = {}
    for place, inputs, outputs in zip((0, 3, 6, 8, 11, 13), (1, *widths), widths, strict=False):
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=draw)
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=draw)
    for place, inputs, outputs in ((0, widths[-1] * 24, hidden), (2, hidden, hidden), (4, hidden, out)):
        state[f"embeddings.{place}.weight"] = torch.randn(outputs, inputs, generator=draw)
        state[f"embeddings.{place}.bias"] = torch.randn(outputs, generator=draw)
    return state


def save_vggish(path, **sizes):
    torch.save(vggish_state(**sizes), path)
    return path


def save_mert(folder, **changes):
    """A HuBERT of ten layers in MERT's form: another kind in its settings, weight norm by its old names."""
    import transformers

    config = transformers.HubertConfig(
        hidden_size=16,
        num_hidden_layers=10,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="group",
    )
    model = shake(transformers.HubertModel(config))
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, value in model.state_dict().items():
        for new, name in old.items():
            key = key.replace(new, name)
        state[key] = value
    folder.mkdir(parents=True)
    torch.save(state, folder / "pytorch_model.bin")
    own = {
        "model_type": "mert_model",
        "architectures": ["MERTModel"],
        "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
    }
    own |= {"feature_extractor_cqt": False, "deepnorm": False, "attention_relax": -1.0, "sample_rate": 24_000}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | own | changes))
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24_000).save_pretrained(folder)
    return folder, model


def save_clap(folder, alike=False):
    """A CLAP with windows of 1 s; where `alike`, all its captions have one embedding."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    tokenizer = transformers.RobertaTokenizer(vocab={token: id for id, token in enumerate(tokens)}, merges=[])
    text = {"vocab_size": len(tokens), "max_position_embeddings": 80, "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 24, "projection_dim": 12}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    audio |= {"projection_dim": 12, "num_mel_bins": 64, "spec_size": 256, "enable_fusion": False}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    torch.manual_seed(0)
    model = shake(transformers.ClapModel(config), scale=1.0)
    with torch.no_grad():  # what all texts share would make them alike
        model.text_model.embeddings.position_embeddings.weight.zero_()
        for name, weight in model.text_model.named_parameters():
            weight.mul_(not name.endswith("bias"))
    if alike:
        nn.init.zeros_(model.text_projection.linear2.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    features = transformers.ClapFeatureExtractor(max_length_s=1, truncation="rand_trunc", padding="repeatpad")
    features.save_pretrained(folder)
    return folder


def tones(count, seconds=1.5, rate=16_000, seed=0):
    """Clips of noise that swells at its own pace."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return [
        (0.3 * draw.standard_normal(len(time)) * np.sin(2 * np.pi * (1 + number) * time)).astype(np.float32)
        for number in range(count)
    ]
