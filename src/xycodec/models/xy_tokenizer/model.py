"""XY-Tokenizer: two Whisper-style towers, one residual quantizer, an acoustic decoder and Vocos.

Read top-down: audio -> log-mel -> semantic and acoustic tower frames (50 Hz) -> latents (12.5 Hz) -> codes, and back.
"""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.models.base import Codec
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import MEL_RATE, XYTokenizerConfig
from xycodec.nn.mel import LogMel
from xycodec.nn.quantize import ResidualVectorQuantizer
from xycodec.nn.resample import GatedDownsample, Upsample
from xycodec.nn.transformer import Adapter, TransformerLayer, frame_mask
from xycodec.nn.vocos import ConvNeXtBlock, Vocos
from xycodec.nn.whisper import AcousticDecoder, WhisperEncoder

# Mel frames after a clip that make it exact: one that the stride-2 convolution sees, and one whose STFT
# window may still hold the clip's last samples (the floor follows the maximum over all frames).
MARGIN = 2
# Added to log-mels, which are about -0.5 to 1.5. With 1, a fast run ended at the distance that silence of the decoder's
# last GELU would have, and stayed there.
RAISE = 2.0


class Encoded(NamedTuple):
    """Latents of a batch of clips before the quantizer, and the semantic tower's states."""

    latents: Tensor
    """(B, L, latent_dim) float32 before the quantizer."""
    mask: Tensor | None
    """(B, L) bool on the CPU, so that the quantizer picks valid frames without waiting for the device; None where
    every item fills all L frames."""
    semantic: Tensor | None
    """(B, factor * L, D) output of the semantic tower, zero on padded frames; None without that tower."""


class XYTokenizer(Codec):
    """The whole model. Parts carry the names of the published checkpoint (docs/models/xy_tokenizer.md, Overview)."""

    can_search = True
    decoder_parts = ("post_rvq_adapter.", "upsample.", "acoustic_decoder.", "vocos.")

    def __init__(self, config: XYTokenizerConfig) -> None:
        super().__init__(
            model_id=config.model_id,
            input_sample_rate=config.input_sample_rate,
            output_sample_rate=config.output_sample_rate,
            n_q=config.quantizer.n_q,
            codebook_size=config.quantizer.codebook_size,
            hop_length=config.hop_length,
            window_frames=config.window_frames,
        )
        self.config = config
        positions, frames, latent = config.tower_positions, config.window_frames, config.latent_dim
        acoustic = config.acoustic_encoder
        joint_dim = acoustic.d_model + (config.semantic_encoder.d_model if config.semantic_encoder else 0)

        self.mel = LogMel(config.n_mels, config.input_sample_rate)
        self.semantic_encoder: WhisperEncoder | None = None
        self.semantic_encoder_adapter: Adapter | None = None
        if config.semantic_encoder and config.semantic_encoder_adapter:
            dim = config.semantic_encoder.d_model
            self.semantic_encoder = _encoder(config.semantic_encoder, config.n_mels, positions)
            self.semantic_encoder_adapter = _adapter(config.semantic_encoder_adapter, dim, dim, positions)
        self.acoustic_encoder = _encoder(acoustic, config.n_mels, positions)
        self.pre_rvq_adapter = _adapter(config.pre_rvq_adapter, joint_dim, config.pre_rvq_adapter.d_model, positions)
        self.downsample = GatedDownsample(d_model=config.pre_rvq_adapter.d_model, factor=config.downsample_factor)
        self.quantizer = ResidualVectorQuantizer(input_dim=latent, **config.quantizer.model_dump())
        self.post_rvq_adapter = _adapter(config.post_rvq_adapter, latent, latent, frames)
        self.upsample = Upsample(
            input_dim=latent, output_dim=config.acoustic_decoder.d_model, factor=config.downsample_factor
        )
        self.acoustic_decoder = AcousticDecoder(
            n_mels=config.n_mels, max_positions=positions, **config.acoustic_decoder.model_dump()
        )
        self.vocos = Vocos(
            input_dim=config.n_mels,
            hop_length=config.output_sample_rate // MEL_RATE,
            **config.vocos.model_dump(),
        )

    # ---- audio -> latents ----------------------------------------------------------------------

    def encode_latents(self, audio: Tensor, lengths: Sequence[int], first_frame: int = 0) -> Encoded:
        """Audio (B, T) -> latents (B, L, latent_dim) before the quantizer, their mask, and the semantic tower's states.

        `lengths` counts each item's valid samples. Code frame 0 has position `first_frame` of the window: training
        draws it, so that clips shorter than the window teach every position.
        """
        first = first_frame * self.downsample.factor
        frames = [self._tower_frames(n) for n in lengths]
        longest = max(frames)
        mel = self.mel(self._with_margin(audio, lengths))
        mask = frame_mask(frames, longest)
        device_mask = None if mask is None else mask.to(audio.device, non_blocking=True)
        latents, semantic = self.latents_of(mel, longest, device_mask, first)
        code_frames = [count // self.downsample.factor for count in frames]
        return Encoded(latents, frame_mask(code_frames, latents.shape[1]), semantic)

    def latents_of(
        self, mel: Tensor, frames: int, mask: Tensor | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Log-mel (B, n_mels, M) -> latents (B, frames // factor, latent_dim), and the semantic tower's states.

        `frames`, `mask` (B, frames) and the position `first` are those of the towers, at 50 Hz.
        """
        joint = self.acoustic_encoder(mel, frames, mask, first)
        semantic = None
        if self.semantic_encoder is not None and self.semantic_encoder_adapter is not None:
            semantic = self.semantic_encoder(mel, frames, mask, first)
            joint = torch.cat([self.semantic_encoder_adapter(semantic, mask, first), joint], dim=-1)
        return self.downsample(self.pre_rvq_adapter(joint, mask, first)), semantic

    def _tower_frames(self, num_samples: int) -> int:
        """Frames of a clip in the towers, at 50 Hz: those of whole code frames, or (reference) of its mel frames."""
        if self.reference:
            return ceil(num_samples / self.mel.hop_length) // 2
        return self.num_frames(num_samples) * self.downsample.factor

    def _with_margin(self, audio: Tensor, lengths: Sequence[int]) -> Tensor:
        """Silence past each item's end, and just enough of it: what 30 s of zeros would give, exactly.

        A window that is full has no room for a margin; the published model has none there either.
        """
        longest = max(ceil(n / self.mel.hop_length) if self.reference else 2 * self._tower_frames(n) for n in lengths)
        padded = min((longest + MARGIN) * self.mel.hop_length, self.window_samples)
        clean = all(n == audio.shape[1] for n in lengths)
        audio = F.pad(audio, (0, padded - audio.shape[1]))
        if clean:
            return audio
        valid = torch.arange(padded, device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
        return audio.where(valid.to(audio.device, non_blocking=True), 0.0)

    # ---- latents -> audio ----------------------------------------------------------------------

    def decode_latents(self, quantized: Tensor, mask: Tensor | None = None) -> Tensor:
        """Quantized latents (B, L, latent_dim) -> audio (B, L * output hop); zero where `mask` is False."""
        return self.synthesise(self.acoustic_features(self.post_rvq_adapter(quantized, mask), mask), mask)

    def acoustic_features(self, hidden: Tensor, mask: Tensor | None = None, first_frame: int = 0) -> Tensor:
        """Output of the adapter after the quantizer (B, L, latent_dim) -> what the vocoder reads, 100 frames a second.

        (B, n_mels, 2 * factor * L), nowhere below -0.17 because a GELU is its last step.
        """
        factor = self.upsample.factor
        features: Tensor = self.acoustic_decoder(self.upsample(hidden), _stretch(mask, factor), first_frame * factor)
        return features

    def synthesise(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Acoustic features (B, n_mels, 2 * factor * L) and the mask (B, L) of codes -> audio (B, L * output hop)."""
        audio: Tensor = self.vocos(features, _stretch(mask, 2 * self.upsample.factor))
        return audio

    def ideal_features(self, audio: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features (B, n_mels, 2 * factor * L) of audio (B, T): its log-mel, raised to where a GELU is nearly linear.

        Where decoder and vocoder can meet when each learns alone (ours; the paper lets them find their own).
        """
        frames = 2 * max(self._tower_frames(n) for n in lengths)
        log_mel: Tensor = self.mel(self._with_margin(audio, lengths))
        return (log_mel[..., :frames] + RAISE).clamp_min(0)

    # ---- the codec's interface -----------------------------------------------------------------

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        lengths = [clip.shape[0] for clip in clips]
        frames = [self._tower_frames(n) // self.downsample.factor for n in lengths]
        if max(frames) == 0:
            return [torch.zeros(n_q, 0, dtype=torch.int64, device=self.device) for _ in clips]
        audio = torch.zeros(len(clips), max(lengths), dtype=torch.float32, device=self.device)
        for row, clip in zip(audio, clips, strict=True):
            row[: clip.shape[0]] = clip
        codes = self.quantizer.encode(self.encode_latents(audio, lengths).latents, n_q, search)
        return [item[:, :count] for item, count in zip(codes, frames, strict=True)]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        frames = [item.shape[1] for item in codes]
        if max(frames) == 0:
            return [torch.zeros(0, dtype=torch.float32, device=self.device) for _ in codes]
        batch = torch.zeros(len(codes), codes[0].shape[0], max(frames), dtype=torch.int64, device=self.device)
        for row, item in zip(batch, codes, strict=True):
            row[:, : item.shape[1]] = item
        mask = frame_mask(frames, max(frames))
        audio = self.decode_latents(self.quantizer.decode(batch), None if mask is None else mask.to(self.device))
        hop = self.config.output_hop_length
        return [item[: count * hop] for item, count in zip(audio, frames, strict=True)]

    def _embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes).transpose(1, 2)

    # ---- inference form ------------------------------------------------------------------------

    def fold_weight_norm(self) -> None:
        """Turn the quantizer's weight-normed maps into plain ones."""
        self.quantizer.fold_weight_norm()

    def to_compute_dtype(self, dtype: torch.dtype) -> None:
        """Keep the matrices of transformer layers and ConvNeXt blocks in `dtype` (torch.bfloat16).

        They do 95 % of the arithmetic. The residual stream, norms, stems, quantizer and ISTFT stay float32.
        """
        for module in self.modules():
            if isinstance(module, TransformerLayer):
                for part in (module.self_attn, module.fc1, module.fc2):
                    part.to(dtype)
            elif isinstance(module, ConvNeXtBlock):
                module.pwconv1.to(dtype)
                module.pwconv2.to(dtype)


def _encoder(size: TowerConfig, n_mels: int, positions: int) -> WhisperEncoder:
    return WhisperEncoder(n_mels=n_mels, max_positions=positions, **size.model_dump())


def _adapter(size: TowerConfig, input_dim: int, output_dim: int, positions: int) -> Adapter:
    return Adapter(input_dim=input_dim, output_dim=output_dim, max_positions=positions, **size.model_dump())


def _stretch(mask: Tensor | None, factor: int) -> Tensor | None:
    return None if mask is None else mask.repeat_interleave(factor, dim=1)
