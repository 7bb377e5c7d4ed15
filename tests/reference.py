"""Slow float64 versions of the building blocks, written out as loops, and small models to test with."""

import math

import numpy as np
import torch
from torch import nn

from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import QuantizerConfig, VocosConfig, XYTokenizerConfig

PUBLISHED_PARAMETERS = {  # docs/models/xy_tokenizer.md, Overview
    "semantic_encoder": 87_002_112,
    "semantic_encoder_adapter": 28_349_952,
    "acoustic_encoder": 87_002_112,
    "pre_rvq_adapter": 29_530_368,
    "downsample": 28_317_696,
    "quantizer": 3_152_896,
    "post_rvq_adapter": 33_072_384,
    "upsample": 9_437_184,
    "acoustic_decoder": 87_001_424,
    "vocos": 126_754_946,
}
TINY = TowerConfig(d_model=32, layers=2, heads=4, ffn_dim=48)


def tiny_config(**changes):
    """A model of the real shape and lengths, with few channels."""
    settings = {
        "model_id": "tiny",
        "semantic_encoder": TINY,
        "semantic_encoder_adapter": TINY,
        "acoustic_encoder": TINY,
        "pre_rvq_adapter": TINY,
        "quantizer": QuantizerConfig(n_q=4, codebook_size=64, codebook_dim=16),
        "post_rvq_adapter": TINY,
        "acoustic_decoder": TINY,
        "vocos": VocosConfig(dim=32, intermediate_dim=48, layers=2),
    }
    return XYTokenizerConfig(**{**settings, **changes})


def randomise(module, seed=0, scale=0.5):
    """Give every parameter, norms and biases too, a value that matters; weights keep unit gain times scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator) * scale
            fan_in = math.prod(value.shape[1:])
            value.copy_(noise / fan_in**0.5 if value.ndim > 1 else noise + (1 if "norm.weight" in name else 0))
    return module


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer_norm(x, norm, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * array(norm.weight) + array(norm.bias)


def linear(x, layer):
    return x @ array(layer.weight).T + (0 if layer.bias is None else array(layer.bias))


def attention(x, module):
    """Full attention of one item x (T, D), head by head and query by query."""
    t, d = x.shape
    size = d // module.heads
    w_q, w_k, w_v = np.split(array(module.qkv_weight), 3)
    q = (x @ w_q.T + array(module.q_bias)) * size**-0.5
    k, v = x @ w_k.T, x @ w_v.T + array(module.v_bias)
    out = np.zeros((t, d))
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(t):
            scores = np.array([q[i, part] @ k[j, part] for j in range(t)])
            weights = np.exp(scores - scores.max())
            out[i, part] = weights / weights.sum() @ v[:, part]
    return linear(out, module.out_proj)


def transformer_layer(x, module):
    x = x + attention(layer_norm(x, module.self_attn_layer_norm, 1e-5), module.self_attn)
    h = layer_norm(x, module.final_layer_norm, 1e-5)
    return x + linear(gelu(linear(h, module.fc1)), module.fc2)


def positions(length, dim):
    table = np.zeros((length, dim))
    half = dim // 2
    for t in range(length):
        for k in range(half):
            angle = t * math.exp(-k * math.log(10_000) / (half - 1))
            table[t, k], table[t, half + k] = math.sin(angle), math.cos(angle)
    return table


def transformer(x, module):
    x = x + positions(*x.shape)
    for layer in module.layers:
        x = transformer_layer(x, layer)
    return layer_norm(x, module.layer_norm, 1e-5)


def convolution(x, layer):
    """One item x (T, in) -> (T', out), with zeros around."""
    weight, bias = array(layer.weight), array(layer.bias)
    (stride,), (padding,) = layer.stride, layer.padding
    width = weight.shape[2]
    x = np.pad(x, ((padding, padding), (0, 0)))
    depthwise = layer.groups == x.shape[1] > 1
    out = []
    for start in range(0, len(x) - width + 1, stride):
        seen = x[start : start + width]  # (k, in)
        out.append(np.einsum("ki,ik->i", seen, weight[:, 0]) if depthwise else np.einsum("ki,oik->o", seen, weight))
    return np.stack(out) + bias


def transposed_convolution(x, layer):
    """One item x (T, in) -> ((T - 1) * stride + k, out)."""
    weight, bias = array(layer.weight), array(layer.bias)
    (stride,) = layer.stride
    width = weight.shape[2]
    out = np.zeros(((len(x) - 1) * stride + width, weight.shape[1]))
    for t, row in enumerate(x):
        for j in range(width):
            out[t * stride + j] += row @ weight[:, :, j]
    return out + bias


def inverse_stft(spectrum, hop):
    """Overlap-add of one item's frames (T, 2 * hop + 1), 1.5 hops cut from each end, over the summed window."""
    size = 4 * hop
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / size) for i in range(size)])
    total = np.zeros((len(spectrum) + 3) * hop)
    envelope = np.zeros_like(total)
    for t, frame in enumerate(spectrum):
        total[t * hop : t * hop + size] += np.fft.irfft(frame, size) * window
        envelope[t * hop : t * hop + size] += window**2
    keep = slice(3 * hop // 2, 3 * hop // 2 + len(spectrum) * hop)
    return total[keep] / envelope[keep]


# ---- the quantizer ---------------------------------------------------------------------------------


def nearest(vector, book):
    """Index of the closest row, the first one of equals."""
    best, index = math.inf, -1
    for k, row in enumerate(book):
        distance = ((vector - row) ** 2).sum()
        if distance < best:
            best, index = distance, k
    return index


def quantize(rows, books):
    """rows (N, D) -> codes (n_q, N), every layer's input (n_q, N, D)."""
    codes = np.zeros((len(books), len(rows)), dtype=np.int64)
    inputs = np.zeros((len(books), *rows.shape))
    for n, row in enumerate(rows):
        for layer, book in enumerate(books):
            inputs[layer, n] = row
            codes[layer, n] = nearest(row, book)
            row = row - book[codes[layer, n]]
    return codes, inputs


def moving_average(rows, codes, cluster_size, embed_avg, decay, eps=1e-5):
    """One layer's step without dead codes: the new (codebook, cluster_size, embed_avg)."""
    cluster_size, embed_avg = decay * cluster_size, decay * embed_avg
    for row, code in zip(rows, codes, strict=True):
        cluster_size[code] += 1 - decay
        embed_avg[code] += (1 - decay) * row
    total = cluster_size.sum()
    smoothed = (cluster_size + eps) / (total + len(cluster_size) * eps) * total
    return embed_avg / smoothed[:, None], cluster_size, embed_avg


def k_means(rows, means, iterations):
    """Lloyd's algorithm from `means`: the means, and the counts of the last assignment."""
    means = means.copy()
    for step in range(iterations + 1):
        assigned = np.array([nearest(row, means) for row in rows])
        if step == iterations:
            break
        for k in range(len(means)):
            if (assigned == k).any():
                means[k] = rows[assigned == k].mean(axis=0)
    return means, np.bincount(assigned, minlength=len(means)).astype(np.float64)


# ---- the same model without the trimmed margin -----------------------------------------------------


@torch.no_grad()
def latents_of_full_window(codec, clip, rows):
    """Latents of one clip as published: zeros up to the whole window, every row computed, padding masked."""
    audio = torch.zeros(1, codec.window_samples)
    audio[0, : len(clip)] = clip
    positions = codec.config.tower_positions
    mask = (torch.arange(positions) < rows)[None]
    mel = codec.mel(audio)
    joint = codec.acoustic_encoder(mel, positions, mask)
    if codec.semantic_encoder is not None:
        semantic = codec.semantic_encoder(mel, positions, mask)
        joint = torch.cat([codec.semantic_encoder_adapter(semantic, mask), joint], dim=-1)
    return codec.downsample(codec.pre_rvq_adapter(joint, mask))[:, : rows // 4]


@torch.no_grad()
def spread_codebooks(codec, audio):
    """Take every layer's codes from what the layer meets in `audio` (B, T)."""
    quantizer = codec.quantizer
    latents, *_ = codec.encode_latents(audio, [audio.shape[1]] * len(audio))
    residual = quantizer.input_proj(latents).flatten(0, 1)
    generator = torch.Generator().manual_seed(5)
    for book in quantizer.codebook:
        chosen = torch.randperm(len(residual), generator=generator)[: len(book)]
        # Half-way between two rows, so that no residual becomes zero.
        book.copy_((residual[chosen] + residual[chosen.roll(1)]) / 2)
        residual = residual - book[torch.cdist(residual, book).argmin(dim=1)]


def count_parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())
