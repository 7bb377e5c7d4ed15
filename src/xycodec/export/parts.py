"""The parts of a codec that are computed in another way where they are exported.

Other runtimes have no FFT and no complex numbers, so spectra are products with a Fourier basis. The weights are the
codec's own, and so is everything that has no twin here.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.models.xcodec.semantic import SemanticTower, frames_of
from xycodec.nn.mel import LogMel
from xycodec.nn.quantize import ResidualVectorQuantizer
from xycodec.nn.vocos import MAX_LOG_MAGNITUDE, ISTFTHead

MARGIN = 2  # log-mel frames after a clip, as the models have them


def twin(module: nn.Module) -> nn.Module:
    """A copy of `module` with the same tensors in which the parts that have a twin here are replaced by it."""
    make = _TWINS.get(type(module))
    if make is not None:
        return make(module)
    if not any(type(part) in _TWINS for part in module.modules()):
        return module
    made = copy.copy(module)
    made._modules = {name: part and twin(part) for name, part in module._modules.items()}
    return made


class LogMelProducts(nn.Module):
    """`LogMel` whose Fourier transform is a matrix product."""

    basis: Tensor
    filters: Tensor

    def __init__(self, mel: LogMel) -> None:
        super().__init__()
        self.n_fft, self.hop_length = mel.n_fft, mel.hop_length
        bins = self.n_fft // 2 + 1
        angles = _angles(self.n_fft, bins)
        # In float64: beside loud bins, the logarithm of a faint one would show the rounding of a float32 sum.
        basis = torch.cat([angles.cos(), -angles.sin()], dim=1) * mel.window.double()[:, None]
        self.register_buffer("basis", basis)
        self.register_buffer("filters", mel.filters)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) float32, T a multiple of 160 -> (B, n_mels, T // 160)."""
        hop, half = self.hop_length, self.n_fft // 2
        frames = audio.shape[1] // hop
        # A frame is two hops and a half, and there is half a hop of padding more than the frames need.
        padded = F.pad(F.pad(audio, (half, half), mode="reflect"), (0, 3 * hop - self.n_fft))
        hops = padded.view(-1, frames + 3, hop)
        windows = torch.cat([hops.narrow(1, i, frames) for i in range(3)], dim=2)[..., : self.n_fft]
        real, imaginary = (windows.double() @ self.basis).chunk(2, dim=-1)
        power = (real.square() + imaginary.square()).float()
        mel = (power @ self.filters).clamp_min(1e-10).log10()
        mel = mel.maximum(mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        return ((mel + 4.0) / 4.0).transpose(1, 2)


class SemanticTowerProducts(nn.Module):
    """`SemanticTower` for audio of any length up to its window."""

    def __init__(self, model: SemanticTower) -> None:
        super().__init__()
        self.mel, self.tower = LogMelProducts(model.mel), model.tower

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, frames_of(T), d_model)."""
        frames = frames_of(audio.shape[1])
        positions = len(self.tower.positional_embedding)
        hops = torch.sym_min(2 * frames + MARGIN, 2 * positions)  # type: ignore[no-untyped-call]
        padded = hops * self.mel.hop_length
        mel = self.mel(F.pad(audio, (0, padded - audio.shape[1])))
        states = self.tower.states(self.tower.stem(mel, frames))
        return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in states]).mean(dim=0)


class Quantizer(nn.Module):
    """`ResidualVectorQuantizer` without what only training reads, for codes of any number of layers."""

    codebook: Tensor

    def __init__(self, quantizer: ResidualVectorQuantizer) -> None:
        super().__init__()
        self.input_proj, self.output_proj = quantizer.input_proj, quantizer.output_proj
        self.n_q, self.codebook_size = quantizer.n_q, quantizer.codebook_size
        self.register_buffer("codebook", quantizer.codebook)

    def encode(self, x: Tensor) -> Tensor:
        """(B, L, input_dim) -> codes (B, n_q, L) of all layers."""
        residual = self.input_proj(x)
        codes = []
        for codebook in self.codebook:
            distances = residual.square().sum(dim=-1, keepdim=True) - 2 * F.linear(residual, codebook)
            codes.append((distances + codebook.square().sum(dim=1)).argmin(dim=-1))
            residual = residual - F.embedding(codes[-1], codebook)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, k, L) of the first k layers, k from 1 to n_q -> (B, L, input_dim)."""
        first = torch.arange(codes.shape[1], device=codes.device) * self.codebook_size
        vectors = F.embedding(codes + first[:, None], self.codebook.flatten(0, 1))
        quantized: Tensor = self.output_proj(vectors.sum(dim=1))
        return quantized


class ISTFTHeadProducts(nn.Module):
    """`ISTFTHead` whose inverse Fourier transform, window and overlap-add are one transposed convolution."""

    basis: Tensor
    squares: Tensor

    def __init__(self, head: ISTFTHead) -> None:
        super().__init__()
        self.out, self.hop_length = head.out, head.istft.hop_length
        size = 4 * self.hop_length
        bins = size // 2 + 1
        window = head.istft.window.double()
        # Every bin but the first and the last stands for its mirror image too.
        weight = torch.full((bins,), 2 / size, dtype=torch.float64)
        weight[[0, -1]] /= 2
        angles = _angles(size, bins).t()
        basis = torch.cat([angles.cos() * weight[:, None], -angles.sin() * weight[:, None]]) * window
        self.register_buffer("basis", basis.float()[:, None])
        self.register_buffer("squares", window.square().float()[None, None])

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        """(B, T, dim) -> (B, T * hop)."""
        log_magnitude, phase = self.out(x).chunk(2, dim=-1)
        magnitude = log_magnitude.clamp_max(MAX_LOG_MAGNITUDE).exp()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1).transpose(1, 2)
        audio = F.conv_transpose1d(spectrum, self.basis, stride=self.hop_length)
        # Of as many frames as there are, so no table caps the length.
        envelope = F.conv_transpose1d(torch.ones_like(spectrum[:1, :1]), self.squares, stride=self.hop_length)
        trim, length = 3 * self.hop_length // 2, x.shape[1] * self.hop_length
        return audio[:, 0, trim : trim + length] / envelope[:, 0, trim : trim + length]


def _angles(size: int, bins: int) -> Tensor:
    """2 pi k n / size of sample n and bin k: (size, bins) float64, with exact zeros where they are whole turns."""
    turns = torch.arange(size)[:, None] * torch.arange(bins) % size
    return turns.double() * (2 * math.pi / size)


_TWINS: Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]] = cast(
    Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]],
    {
        LogMel: LogMelProducts,
        SemanticTower: SemanticTowerProducts,
        ResidualVectorQuantizer: Quantizer,
        ISTFTHead: ISTFTHeadProducts,
    },
)
