"""BigCodec (arXiv 2409.05377) for comparison, from its checkpoint: 80 codes of 13 bits a second, 1.04 kbit/s."""

import math
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.training import read_entries
from xycodec.errors import CheckpointError, last_reason_of
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec
from xycodec.models.xcodec.convert import fold_weight_norms
from xycodec.nn.nearest import nearest

WINDOW_S = 60.0
"""The longest clip computed in one pass."""
DILATIONS = (1, 3, 9)
_CODEBOOK = "quantizer.layers.0."
_TAPS = 12  # of the filters around an activation
_RENAMED = (
    (r"\.act\.(alpha|beta)$", r".\1"),
    (r"\.upsample\.filter$", ".up"),
    (r"\.downsample\.lowpass\.filter$", ".down"),
)


class BigCodec(Codec):
    """The published model, or one of its architecture, for one clip at a time.

    The published script adds silence up to the next frame, and a whole frame where there is no part of one; codes are
    those of that rule, without the surplus frame. `encoder` and `decoder` are the parts of the checkpoint.
    """

    def __init__(
        self,
        name: str,
        encoder: nn.Module,
        decoder: nn.Module,
        codebook: "FactorizedCodebook",
        strides: Sequence[int],
    ) -> None:
        hop = math.prod(strides)
        super().__init__(
            model_id=name,
            input_sample_rate=SPEECH_RATE,
            output_sample_rate=SPEECH_RATE,
            n_q=1,
            codebook_size=len(codebook.vectors),
            hop_length=hop,
            window_frames=math.ceil(WINDOW_S * SPEECH_RATE / hop),
        )
        self.encoder, self.decoder, self.codebook = encoder, decoder, codebook

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        return [self._encode_one(clip) for clip in clips]

    def _encode_one(self, clip: Tensor) -> Tensor:
        frames, samples = self.num_frames(len(clip)), len(clip)
        if frames == 0:
            return torch.zeros(1, 0, dtype=torch.int64, device=self.device)
        audio = F.pad(clip.float(), (0, self.hop_length - samples % self.hop_length))
        latents: Tensor = self.encoder(audio[None, None])
        return self.codebook.nearest(latents[0].T)[None, :frames]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        nothing = torch.zeros(0, device=self.device)
        return [self.decoder(self._embed(item[None]))[0, 0] if item.shape[1] else nothing for item in codes]

    def _embed(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.codebook(codes[:, 0])
        return vectors.transpose(1, 2)


# ---- the parts, numbered as in the checkpoint --------------------------------------------------


class AntiAliasedSnake(nn.Module):
    """x + sin(alpha x)^2 / beta at twice the rate, between low-pass filters; alpha and beta are kept as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        self.register_buffer("up", torch.zeros(1, 1, _TAPS))
        self.register_buffer("down", torch.zeros(1, 1, _TAPS))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        channels = x.shape[1]
        up, down = (cast(Tensor, kernel).expand(channels, -1, -1) for kernel in (self.up, self.down))
        x = 2 * F.conv_transpose1d(F.pad(x, (5, 5), "replicate"), up, stride=2, groups=channels)[..., 15:-15]
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        x = x + (1.0 / (beta + 1e-9)) * (x * alpha).sin().square()
        return F.conv1d(F.pad(x, (5, 6), "replicate"), down, stride=2, groups=channels)


class Unit(nn.Module):
    """A dilated convolution of 7 taps and one of a single tap around their input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            AntiAliasedSnake(channels),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            AntiAliasedSnake(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        out: Tensor = x + self.block(x)
        return out


class Block(nn.Module):
    """Parts in a row."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T')."""
        out: Tensor = self.block(x)
        return out


class ForwardLstm(nn.Module):
    """LSTM layers around their input, (B, C, T)."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        steps = x.transpose(1, 2)
        out: Tensor = self.lstm(steps)[0] + steps
        return out.transpose(1, 2)


class FactorizedCodebook(nn.Module):
    """A codebook of few dimensions, compared by angle, between two linear maps."""

    def __init__(self, dim: int, size: int, width: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(dim, width), nn.Linear(width, dim)
        self.vectors = nn.Parameter(torch.zeros(size, width))

    def nearest(self, latents: Tensor) -> Tensor:
        """(L, dim) -> codes (L,)."""
        return nearest(F.normalize(self.in_proj(latents)), F.normalize(self.vectors))

    def forward(self, codes: Tensor) -> Tensor:
        """(B, L) -> (B, L, dim)."""
        out: Tensor = self.out_proj(F.embedding(codes, self.vectors))
        return out


def _encoder(width: int, strides: Sequence[int], dim: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
    for stride in strides:
        units = [Unit(width, dilation) for dilation in DILATIONS]
        conv = nn.Conv1d(width, 2 * width, 2 * stride, stride, math.ceil(stride / 2))
        parts.append(Block(*units, AntiAliasedSnake(width), conv))
        width *= 2
    return nn.Sequential(
        *parts, ForwardLstm(width, layers), AntiAliasedSnake(width), nn.Conv1d(width, dim, 3, padding=1)
    )


def _decoder(width: int, strides: Sequence[int], dim: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Conv1d(dim, width, 7, padding=3), ForwardLstm(width, layers)]
    for stride in strides:
        margin, odd = math.ceil(stride / 2), stride % 2
        conv = nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, margin, output_padding=odd)
        parts.append(Block(AntiAliasedSnake(width), conv, *(Unit(width // 2, dilation) for dilation in DILATIONS)))
        width //= 2
    return nn.Sequential(*parts, AntiAliasedSnake(width), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh())


# ---- the checkpoint ----------------------------------------------------------------------------


def load_bigcodec(path: Path, name: str) -> BigCodec:
    """The codec of a published `bigcodec.pt`, on the CPU; sizes follow from its shapes.

    Raises CheckpointError, one line, on anything else.
    """
    entries = read_entries(path, ("CodecEnc", "generator"))
    encoder, generator = (_renamed(entries[entry]) for entry in ("CodecEnc", "generator"))
    own = [key for key in generator if key.startswith(_CODEBOOK)]
    codebook = _inside({key: generator.pop(key) for key in own}, _CODEBOOK)
    try:
        codebook["vectors"] = codebook.pop("_codebook.weight")
        parts = _parts(encoder, generator, codebook)
        states = (_inside(encoder, "block."), _inside(generator, "model."), codebook)
        for part, state in zip(parts[:3], states, strict=True):
            part.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = last_reason_of(error)
        raise CheckpointError(f"{path}: not a whole BigCodec checkpoint ({reason})") from None
    return BigCodec(name, *parts).requires_grad_(False).eval()


def _inside(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    fold_weight_norms(state)
    for pattern, name in _RENAMED:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    return state


def _parts(encoder: dict[str, Tensor], decoder: dict[str, Tensor], codebook: dict[str, Tensor]) -> Any:
    """Encoder, decoder and codebook of the shapes, and the encoder's strides."""
    strides = []
    for number in count(1):
        if (weight := encoder.get(f"block.{number}.block.4.weight")) is None:
            break
        strides.append(weight.shape[2] // 2)
    lstm = len(strides) + 1
    layers = sum(bool(re.fullmatch(rf"block\.{lstm}\.lstm\.weight_ih_l\d+", key)) for key in encoder)
    width, dim = encoder["block.0.weight"].shape[0], encoder[f"block.{lstm + 2}.weight"].shape[0]
    size, narrow = codebook["vectors"].shape
    return (
        _encoder(width, strides, dim, layers),
        _decoder(decoder["model.0.weight"].shape[0], strides[::-1], dim, layers),
        FactorizedCodebook(dim, size, narrow),
        strides,
    )
