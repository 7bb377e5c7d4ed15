"""Linear initialisation: before its first step, a codec quantizes principal components of log-mels.

Not in the paper, whose towers are Whisper's. A transformer at random takes hours to learn what least squares gives in
a minute: eight stacked log-mel frames, their principal components, k-means on the residuals, and the way back.
Whatever is not linear begins silent, and training goes on from there.

Two devices carry values through what is not linear. A pair of channels +x and -x gives x = GELU(x) - GELU(-x). And an
eighth of a layer's channels are constant and large, so that the norm at its end divides by almost the same each time.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.model import RAISE, XYTokenizer
from xycodec.nn.transformer import Transformer, TransformerLayer
from xycodec.train.init.weights import centre_vocoder

SIGNAL = 0.3  # standard deviation of what is carried
_TOWER_CONSTANT, _ADAPTER_CONSTANT = 8.0, 3.0
_RIDGE = 1e-3
"""Share of the mean variance. With 1e-5 the maps answer to the faintest components, so that Adam's first steps double
the distance of features; with 1e-2 they begin at 1.6 times the distance (docs/models/xy-mini-diary.md)."""
_TOGETHER = 16  # clips that are computed at once, at one position of the window


@torch.no_grad()
def start_linear(codec: XYTokenizer, audio: Tensor, *, batch_frames: float) -> None:
    """Set the weights of `codec` but the semantic branch and the vocoder's, from clips (N, T) of whole code frames.

    The semantic tower stays as it is, and is listened to. `batch_frames` is the number of code frames in one step's
    batch, which the counts of the codebooks start from. Raises ConfigError if the codec's parts are too narrow, or
    there are fewer code frames than codes.
    """
    bins, factor = codec.config.n_mels, codec.downsample.factor
    frames = audio.shape[1] // codec.hop_length
    _require(codec, len(audio) * frames)
    clips = torch.split(audio, _TOGETHER)
    firsts = _positions(codec, frames, len(clips))
    log_mels = torch.cat([codec.ideal_features(part, [audio.shape[1]] * len(part)) for part in clips]) - RAISE
    rows = log_mels.transpose(1, 2).reshape(-1, 2 * bins)  # two frames a row
    mean = rows.view(-1, bins).mean(dim=0)
    centred = rows - mean.repeat(2)
    width = codec.config.acoustic_encoder.d_model
    basis = _components(centred, min(2 * bins, (width - width // 8) // 2))
    carried = centred @ basis
    basis = basis * (SIGNAL / carried.std(dim=0).clamp_min(1e-6))
    carried = centred @ basis
    patches = centred.view(-1, factor * 2 * bins)
    patch_basis = _components(patches, codec.config.quantizer.codebook_dim)
    codes = patches @ patch_basis
    codes = codes / codes.square().mean().sqrt()

    _silence(codec)
    _fill_stem(codec, basis, mean)
    _fill_adapter(codec, clips, firsts, carried)
    latents = torch.cat(list(_latents(codec, clips, firsts)))
    weight, bias = _least_squares(latents.flatten(0, 1), codes)
    codec.quantizer.input_proj.weight = weight
    codec.quantizer.input_proj.bias.copy_(bias)
    quantized = _fill_codebooks(codec, latents, batch_frames)
    hidden = _fill_after_quantizer(codec, quantized, codes, firsts)
    _fill_upsample(codec, hidden, carried)
    _fill_decoder(codec, hidden, _before_gelu(rows + RAISE), firsts)
    centre_vocoder(codec)


def _positions(codec: XYTokenizer, frames: int, count: int) -> list[int]:
    """First code frame of each of `count` groups of clips, spread over the window so that all positions are fitted."""
    room = codec.window_frames - frames
    return [round(room * index / max(count - 1, 1)) for index in range(count)]


def _latents(codec: XYTokenizer, clips: Sequence[Tensor], firsts: Sequence[int]) -> Iterator[Tensor]:
    for part, first in zip(clips, firsts, strict=True):
        yield codec.encode_latents(part, [part.shape[1]] * len(part), first).latents


def _require(codec: XYTokenizer, frames: int) -> None:
    config = codec.config
    narrow = min(config.acoustic_encoder.d_model, config.acoustic_decoder.d_model)
    if narrow < 2 * config.n_mels or config.latent_dim <= config.quantizer.codebook_dim:
        raise ConfigError("start: linear needs towers of 2 x n_mels channels and latents wider than codebook_dim")
    if frames < config.quantizer.codebook_size:
        raise ConfigError(f"start: linear found {frames} code frames, fewer than codes: add data")


def _silence(codec: XYTokenizer) -> None:
    """Set the branches of all transformers but the semantic ones to zero, and shrink their positions."""
    for name in ("acoustic_encoder", "pre_rvq_adapter", "post_rvq_adapter", "acoustic_decoder"):
        part: Transformer = getattr(codec, name)
        part.positional_embedding.mul_(0.1)
        for layer in part.layers:
            assert isinstance(layer, TransformerLayer)
            for last in (layer.self_attn.out_proj, layer.fc2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    nn.init.zeros_(codec.downsample.down_proj.weight)


def _fill_stem(codec: XYTokenizer, basis: Tensor, mean: Tensor) -> None:
    """Set the acoustic tower's convolutions to the components `basis` (2 * bins, K) of two mel frames, as pairs."""
    stem, bins, count = codec.acoustic_encoder, len(mean), basis.shape[1]
    for sign, first in ((1, 0), (-1, 1)):
        chosen = slice(first, 2 * bins, 2)
        stem.conv1.weight[chosen] = 0
        stem.conv1.weight[chosen, :, 1] = sign * torch.eye(bins)
        _bias(stem.conv1)[chosen] = -sign * mean
    nn.init.zeros_(stem.conv2.weight)
    nn.init.zeros_(_bias(stem.conv2))
    for sign, first in ((1, 0), (-1, 1)):
        for frame, tap in ((0, 1), (1, 2)):
            weight = sign * basis[frame * bins : (frame + 1) * bins].t()
            stem.conv2.weight[first : 2 * count : 2, 0 : 2 * bins : 2, tap] = weight
            stem.conv2.weight[first : 2 * count : 2, 1 : 2 * bins : 2, tap] = -weight
    _bias(stem.conv2)[2 * count :] = _TOWER_CONSTANT


def _fill_adapter(codec: XYTokenizer, clips: Sequence[Tensor], firsts: Sequence[int], carried: Tensor) -> None:
    """Let the adapter before the quantizer pass on as many components as it has channels for."""
    adapter = codec.pre_rvq_adapter
    seen: list[Tensor] = []
    hook = adapter.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    deque(_latents(codec, clips, firsts), maxlen=0)
    hook.remove()
    _fill_linear(adapter.proj, torch.cat(seen), carried, _ADAPTER_CONSTANT)


def _fill_codebooks(codec: XYTokenizer, latents: Tensor, batch_frames: float) -> Tensor:
    """Fit the codebooks by k-means on all latents (N, L, D), and return what the quantizer gives for them."""
    codec.quantizer.inited.fill_(False)
    codec.quantizer.train()
    with torch.enable_grad():
        codec.quantizer(latents)
    # As many as one batch has. Counts of all these frames would hold the codes where they are for hundreds of steps;
    # with a tenth of a batch's, the first steps moved them far (distance of features on dev 0.10 to 0.29 and back).
    share = batch_frames / latents.shape[:2].numel()
    codec.quantizer.embed_avg.mul_(share)
    codec.quantizer.cluster_size.mul_(share)
    codec.quantizer.eval()
    quantized: Tensor = codec.quantizer(latents).quantized
    return quantized


def _fill_after_quantizer(codec: XYTokenizer, quantized: Tensor, codes: Tensor, firsts: Sequence[int]) -> Tensor:
    """Let the adapter after the quantizer restore a patch's components, with a constant as its last channel."""
    adapter = codec.post_rvq_adapter
    inner = adapter.proj(quantized)
    if isinstance(adapter.proj, nn.Linear):
        constant = inner.shape[-1] // 8
        scale = SIGNAL / inner.std()
        adapter.proj.weight.mul_(scale)
        adapter.proj.bias.sub_(inner.flatten(0, 1).mean(dim=0)).mul_(scale)
        adapter.proj.weight[-constant:] = 0
        adapter.proj.bias[-constant:] = _ADAPTER_CONSTANT
    out = adapter.out_proj
    if isinstance(out, nn.Linear):
        weight, bias = _least_squares(_by_position(adapter.transform, adapter.proj(quantized), firsts), codes)
        out.weight[: len(weight)] = weight
        out.bias[: len(bias)] = bias
        out.weight[-1] = 0
        out.bias[-1] = 1
    hidden = _by_position(adapter, quantized, firsts)
    return hidden.view(*quantized.shape[:2], -1)


def _fill_upsample(codec: XYTokenizer, hidden: Tensor, carried: Tensor) -> None:
    """Set the up-sampling to four frames of components and constants a code; it has no bias, but a constant input."""
    factor, width = codec.upsample.factor, codec.config.acoustic_decoder.d_model
    constant = width // 8
    count = min(carried.shape[1], width - constant)
    rows = carried.view(-1, factor, carried.shape[1])[..., -count:]
    wanted = torch.zeros(len(rows), factor, width)
    wanted[..., :count] = rows
    wanted[..., width - constant :] = _ADAPTER_CONSTANT
    weight, _ = _least_squares(hidden.flatten(0, 1), wanted.flatten(1), intercept=False)
    codec.upsample.proj.weight.copy_(weight)


def _fill_decoder(codec: XYTokenizer, hidden: Tensor, wanted: Tensor, firsts: Sequence[int]) -> None:
    """Set the decoder to turn each frame into two; `wanted` (N, 2 * bins) are the inputs of its last GELU."""
    decoder, bins = codec.acoustic_decoder, wanted.shape[1] // 2
    mean = wanted.view(-1, bins).mean(dim=0)
    rows = _by_position(decoder.transform, codec.upsample(hidden), [codec.upsample.factor * first for first in firsts])
    weight, _ = _least_squares(rows, wanted - mean.repeat(2), intercept=False)
    for sign, first in ((1, 0), (-1, 1)):
        chosen = slice(first, 2 * bins, 2)
        decoder.deconv1.weight[:, chosen] = 0
        decoder.deconv1.weight[:, chosen, 0] = sign * weight[:bins].t()
        decoder.deconv1.weight[:, chosen, 1] = sign * weight[bins:].t()
        _bias(decoder.deconv1)[chosen] = 0
    nn.init.zeros_(decoder.deconv2.weight)
    decoder.deconv2.weight[0 : 2 * bins : 2, :, 0] = torch.eye(bins)
    decoder.deconv2.weight[1 : 2 * bins : 2, :, 0] = -torch.eye(bins)
    _bias(decoder.deconv2).copy_(mean)


def _by_position(part: Callable[[Tensor, None, int], Tensor], x: Tensor, firsts: Sequence[int]) -> Tensor:
    """Rows (N * T, D) of what `part` makes of x (N, T, D), each group of clips at its position."""
    groups = zip(torch.split(x, _TOGETHER), firsts, strict=True)
    return torch.cat([part(group, None, first) for group, first in groups]).flatten(0, 1)


# ---- arithmetic --------------------------------------------------------------------------------


def _before_gelu(values: Tensor) -> Tensor:
    """x >= -0.5 for which GELU(x) is `values`; a table, since GELU has no inverse in closed form."""
    x = torch.linspace(-0.5, 10, 100_001)
    found = torch.from_numpy(np.interp(values.numpy(), F.gelu(x).numpy(), x.numpy()))
    return found.to(values.dtype)


def _components(centred: Tensor, count: int) -> Tensor:
    """Principal components (D, count) of rows (N, D), the largest last."""
    covariance = centred.double().t() @ centred.double() / len(centred)
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -count:].float()


def _fill_linear(linear: nn.Module, x: Tensor, wanted: Tensor, constant: float) -> None:
    """Make `linear` output the last columns of `wanted`, and keep an eighth of its outputs constant."""
    if not isinstance(linear, nn.Linear):
        raise ConfigError("start: linear needs an adapter before the quantizer that changes the width")
    constants = linear.out_features // 8
    count = min(wanted.shape[1], linear.out_features - constants)
    weight, bias = _least_squares(x, wanted[:, -count:])
    linear.weight[:count], linear.bias[:count] = weight, bias
    linear.weight[-constants:], linear.bias[-constants:] = 0, constant


def _least_squares(x: Tensor, wanted: Tensor, *, intercept: bool = True) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) that map rows of `x` to rows of `wanted`, with a little ridge, in float64."""
    a, b = x.double(), wanted.double()
    shift, aim = a.mean(dim=0) * intercept, b.mean(dim=0) * intercept
    a, b = a - shift, b - aim
    gram = a.t() @ a
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, a.t() @ b).t()
    return weight.float(), (aim - weight @ shift).float()


def _bias(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
