"""A frozen speech encoder, and a decoder that turns its features back into audio: no quantizer (XY-Tokenizer, 2.1).

Read top-down: audio -> features at 50 Hz -> the decoder's width -> acoustic features at 100 Hz -> audio.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.io.rate import SPEECH_RATE
from xycodec.models.autoencoder.config import AutoencoderConfig, FrozenSpeechModelConfig, FrozenWhisperConfig
from xycodec.models.xcodec.semantic import HOP, MARGIN, FrozenModel, transformers_model
from xycodec.models.xy_tokenizer.model import MARGIN as MEL_MARGIN
from xycodec.nn.deterministic.linear import Linear
from xycodec.nn.mel import LogMel
from xycodec.nn.transformer import frame_mask
from xycodec.nn.vocos import Vocos
from xycodec.nn.whisper import AcousticDecoder, WhisperEncoder

N_MELS = 80
"""Channels between decoder and vocoder, as XY-Tokenizer has them."""
LEAST_VARIANCE = 1e-7  # of audio that is normed, as Transformers' feature extractor has it


class FrozenWhisper(FrozenModel):
    """The encoder of a Whisper, without a gradient."""

    def __init__(self, config: FrozenWhisperConfig, window_frames: int) -> None:
        super().__init__()
        size = config.model_dump(include={"d_model", "layers", "heads", "ffn_dim", "n_mels", "stem_gelu"})
        self.window_samples, self.use_positions = window_frames * HOP, config.use_positions
        self.mel = LogMel(config.n_mels, SPEECH_RATE)
        self.tower = WhisperEncoder(max_positions=window_frames, **size)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, audio: Tensor, frames: Sequence[int]) -> Tensor:
        """Audio (B, T) of clips that are zero past their ends -> (B, L, D), zero past each clip's `frames`."""
        longest = max(frames)
        padded = min(longest * HOP + MEL_MARGIN * self.mel.hop_length, self.window_samples)
        mask = frame_mask(frames, longest)
        mel = self.mel(F.pad(audio, (0, padded - audio.shape[1])))
        tower = self.tower
        known = None if mask is None else mask.to(audio.device, non_blocking=True)
        features: Tensor = tower(mel, longest, known)
        return features

    def drop_positions(self) -> None:
        """Set the positions to zero where the configuration wants none; to be called once weights are there."""
        if not self.use_positions:
            self.tower.positional_embedding.zero_()


class FrozenSpeechModel(FrozenModel):
    """The last layer of a HuBERT or a WavLM, without a gradient."""

    model: Any

    def __init__(self, config: FrozenSpeechModelConfig) -> None:
        super().__init__()
        sizes = config.model_dump(exclude={"form", "conv_bias"})
        self.normed = config.form == "large"
        self.model = transformers_model(**sizes, **config.more)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, audio: Tensor, frames: Sequence[int]) -> Tensor:
        """Audio (B, T) of clips that are zero past their ends -> (B, L, D), zero past each clip's `frames`.

        A clip is computed at its own length, since the first norm of a base model is over time.
        """
        features = [self._features(clip[: count * HOP]) for clip, count in zip(audio, frames, strict=True)]
        longest = max(frames)
        return torch.stack([F.pad(item, (0, 0, 0, longest - len(item))) for item in features])

    def _features(self, clip: Tensor) -> Tensor:
        if self.normed:
            clip = (clip - clip.mean()) / (clip.var(correction=0) + LEAST_VARIANCE).sqrt()
        out: Tensor = self.model(F.pad(clip, (MARGIN, MARGIN))[None]).last_hidden_state[0]
        return out


class Autoencoder(torch.nn.Module):
    """The whole model. Only the parts after the encoder learn. `decode` of `encode` is as long as whole frames are."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(config.encoder, FrozenWhisperConfig):
            self.encoder: FrozenWhisper | FrozenSpeechModel = FrozenWhisper(config.encoder, config.window_frames)
        else:
            self.encoder = FrozenSpeechModel(config.encoder)
        self.adapter = Linear(config.encoder.d_model, config.decoder.d_model)
        self.decoder = AcousticDecoder(n_mels=N_MELS, max_positions=config.window_frames, **config.decoder.model_dump())
        self.vocos = Vocos(input_dim=N_MELS, hop_length=HOP // 2, **config.vocos.model_dump())

    @staticmethod
    def num_frames(num_samples: int) -> int:
        """Frames of 20 ms of a clip: the last partial one counts, and there is one at least."""
        return max(1, ceil(num_samples / HOP))

    def encode(self, audio: Tensor, lengths: Sequence[int]) -> Tensor:
        """Audio (B, T), `lengths` samples of each item at 16 kHz -> features (B, L, D) at 50 Hz, without a gradient."""
        frames = [self.num_frames(n) for n in lengths]
        audio = F.pad(audio, (0, max(frames) * HOP - audio.shape[1]))
        valid = torch.arange(audio.shape[1]) < torch.tensor(lengths)[:, None]
        features: Tensor = self.encoder(audio.where(valid.to(audio.device, non_blocking=True), 0.0), frames)
        return features

    def decode(self, features: Tensor, frames: Sequence[int]) -> Tensor:
        """Features (B, L, D) of items of `frames` frames -> audio (B, 320 * L), zero past each item's last frame."""
        mask = frame_mask(frames, features.shape[1])
        known = None if mask is None else mask.to(features.device, non_blocking=True)
        acoustic = self.decoder(self.adapter(features), known)
        audio: Tensor = self.vocos(acoustic, None if known is None else known.repeat_interleave(2, dim=1))
        return audio

    def forward(self, audio: Tensor, lengths: Sequence[int]) -> Tensor:
        """Audio (B, T), `lengths` samples of each item -> its reconstruction (B, whole frames)."""
        return self.decode(self.encode(audio, lengths), [self.num_frames(n) for n in lengths])
