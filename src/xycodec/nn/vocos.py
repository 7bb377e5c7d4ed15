"""Vocos: a ConvNeXt backbone at the frame rate, and an inverse STFT as its head.

See docs/models/xy_tokenizer.md, Vocoder.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import Linear, gelu
from xycodec.nn.transformer import zero_padding

MAX_LOG_MAGNITUDE = math.log(100)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two linear layers, a scale per channel, and the residual sum."""

    def __init__(self, dim: int, intermediate_dim: int, scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = Linear(dim, intermediate_dim)
        self.pwconv2 = Linear(intermediate_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) float32 -> (B, T, D) float32."""
        # Zeroed here and not once before the stack: a clip alone meets zeros beyond its end in every layer.
        h = self._mix_frames(zero_padding(x, mask))
        h = self.norm(h).to(self.pwconv1.weight.dtype)
        out: Tensor = x + self.gamma * self.pwconv2(gelu(self.pwconv1(h)))
        return out

    def _mix_frames(self, x: Tensor) -> Tensor:
        # As a flat picture with channels last, x keeps its layout and oneDNN several times its speed.
        # A view, not unsqueeze, whose gradient would have other strides than the weight: DDP would have to copy it.
        weight = self.dwconv.weight.view(-1, 1, 1, 7).contiguous(memory_format=torch.channels_last)
        picture = x.transpose(1, 2).unsqueeze(2)
        mixed = F.conv2d(picture, weight, self.dwconv.bias, padding=(0, 3), groups=self.dwconv.groups)
        return mixed.squeeze(2).transpose(1, 2)


class VocosBackbone(nn.Module):
    """Embedding convolution and ConvNeXt blocks; reach 3 frames a convolution on either side."""

    def __init__(self, *, input_dim: int, dim: int, intermediate_dim: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(input_dim, dim, 7, padding=3)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, intermediate_dim, 1 / layers) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, input_dim, T) -> (B, T, dim). `features` are zero where `mask` (B, T) is False."""
        x = self.norm(self.embed(features).transpose(1, 2))
        for block in self.convnext:
            x = block(x, mask)
        out: Tensor = self.final_layer_norm(x)
        return out


class InverseSTFT(nn.Module):
    """Overlap-add of windowed frames with n_fft = 4 hops, cut so that T frames give T hops of audio."""

    window: Tensor

    def __init__(self, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        # On the CPU first: on torch's meta device it imports torch's compiler, which takes a second.
        window = torch.hann_window(4 * hop_length, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window.to(torch.get_default_device()))

    def forward(self, spectrum: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, 2 * hop + 1) complex -> (B, T * hop); padded frames add neither signal nor window."""
        frames = torch.fft.irfft(spectrum, 4 * self.hop_length) * self.window
        squares = self.window.square().expand_as(frames[:1])
        if mask is not None:
            frames, squares = frames * mask[..., None], squares * mask[..., None]
        trim = 3 * self.hop_length // 2
        length = frames.shape[1] * self.hop_length
        audio = self._overlap_add(frames)[:, trim : trim + length]
        envelope = self._overlap_add(squares)[:, trim : trim + length]
        if mask is None:
            return audio / envelope
        # Past an item's end the envelope fades to zero, and so would the tail of its last frames.
        valid = mask.repeat_interleave(self.hop_length, dim=1)
        return torch.where(valid, audio / envelope.where(valid, 1.0), 0.0)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        b, t, _ = frames.shape
        quarters = frames.view(b, t, 4, self.hop_length).unbind(2)
        # Frame t starts at hop t; its quarter j lands on hop t + j.
        shifted = [F.pad(part, (0, 0, j, 3 - j)) for j, part in enumerate(quarters)]
        return (shifted[0] + shifted[1] + shifted[2] + shifted[3]).flatten(1)


class ISTFTHead(nn.Module):
    """Magnitude and phase per frame, then the inverse STFT, in float32."""

    def __init__(self, dim: int, hop_length: int) -> None:
        super().__init__()
        self.out = Linear(dim, 4 * hop_length + 2)
        self.istft = InverseSTFT(hop_length)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, dim) -> (B, T * hop)."""
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = self.out(x.float()).chunk(2, dim=-1)
            # Cut before the exponential: an overflow cut afterwards would still give NaN gradients.
            magnitude = log_magnitude.clamp_max(MAX_LOG_MAGNITUDE).exp()
            audio: Tensor = self.istft(torch.polar(magnitude, phase), mask)
            return audio


class Vocos(nn.Module):
    """Vocoder from frame features to audio: `hop_length` samples a frame."""

    def __init__(self, *, input_dim: int, dim: int, intermediate_dim: int, layers: int, hop_length: int) -> None:
        super().__init__()
        self.backbone = VocosBackbone(input_dim=input_dim, dim=dim, intermediate_dim=intermediate_dim, layers=layers)
        self.head = ISTFTHead(dim, hop_length)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, input_dim, T) -> (B, T * hop_length); past an item's end the audio is zero."""
        if mask is not None:
            features = features * mask[:, None]
        audio: Tensor = self.head(self.backbone(features, mask), mask)
        return audio
