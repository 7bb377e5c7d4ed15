"""X-Codec: a convolutional autoencoder and a self-supervised model's features, fused before one residual quantizer.

Read top-down: audio -> acoustic and semantic halves of the latents (50 Hz) -> codes, and back to audio or features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.errors import CheckpointError
from xycodec.models.base import Codec
from xycodec.models.xcodec.config import SemanticTowerConfig, XCodecConfig
from xycodec.models.xcodec.semantic import SelfSupervisedModel, SemanticTower, frames_of
from xycodec.nn.dac import DacDecoder, DacEncoder
from xycodec.nn.deterministic.linear import Linear
from xycodec.nn.folding import fold_weight_norms
from xycodec.nn.quantize import ResidualVectorQuantizer
from xycodec.nn.semantic_conv import SemanticDecoder, SemanticEncoder

SEMANTIC = "semantic"
"""The branch whose output ABX and probes read."""


class XCodec(Codec):
    """The whole model, or without `config.semantic` the paper's acoustic baseline.

    Silence completes a clip to whole frames, so that both halves see the same samples. `reference` follows the
    published rule instead: a clip of N samples has (N + 240) // 320 frames, and where the two halves disagree on that
    (N % 320 from 80 to 311) the acoustic one hears it 160 samples late.

    Clips longer than a window are an approximation with any overlap: the semantic model attends to a whole clip, and
    its first norm takes the mean over it.
    """

    can_search = True
    decoder_parts = ("semantic_proj.", "semantic_decoder.", "acoustic_proj.", "acoustic_decoder.")

    def __init__(self, config: XCodecConfig) -> None:
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
        self.acoustic_encoder = DacEncoder(
            width=config.encoder_width, strides=config.strides, output_dim=config.acoustic_dim
        )
        if config.semantic:
            dim = config.semantic.d_model
            model = SemanticTower if isinstance(config.semantic, SemanticTowerConfig) else SelfSupervisedModel
            self.semantic_model = model(**config.semantic.model_dump())
            self.semantic_encoder = SemanticEncoder(dim)
            self.fusion = Linear(config.latent_dim, config.latent_dim)
            self.semantic_proj = Linear(config.latent_dim, dim)
            self.semantic_decoder = SemanticDecoder(dim)
            self.acoustic_proj = Linear(config.latent_dim, config.acoustic_dim)
        self.quantizer = ResidualVectorQuantizer(
            input_dim=config.latent_dim, codebook_dim=None, **config.quantizer.model_dump()
        )
        self.acoustic_decoder = DacDecoder(
            input_dim=config.acoustic_dim, width=config.decoder_width, strides=config.strides
        )

    # ---- audio -> latents ----------------------------------------------------------------------

    def semantic_features(self, audio: Tensor) -> Tensor:
        """Audio (B, T) -> the frozen model's features (B, (T + 240) // 320, D), which have no gradient."""
        features: Tensor = self.semantic_model(audio)
        return features

    def encode_latents(self, audio: Tensor, features: Tensor | None = None) -> Tensor:
        """Audio (B, T) -> latents (B, L, latent_dim) float32 before the quantizer.

        `features` are `semantic_features(audio)`, computed here if they are not given; the baseline has none.
        """
        if self.config.semantic is None:
            return self._acoustic_latents(audio)
        if features is None:
            features = self.semantic_features(audio)
        semantic = self.semantic_encoder(features.transpose(1, 2)).transpose(1, 2)
        joint = torch.cat([self._acoustic_latents(audio, semantic.shape[1]), semantic], dim=-1)
        latents: Tensor = self.fusion(joint)
        return latents

    def _acoustic_latents(self, audio: Tensor, frames: int | None = None) -> Tensor:
        """(B, T) -> (B, L, acoustic_dim); the published rule moves the audio where L would not be `frames`."""
        margin = self.hop_length // 2
        if frames not in (None, self.acoustic_encoder.num_frames(audio.shape[1])):
            audio = F.pad(audio, (margin, margin))
        latents: Tensor = self.acoustic_encoder(audio[:, None])
        return latents.transpose(1, 2)

    # ---- quantized latents -> audio and features -----------------------------------------------

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, L, latent_dim) -> audio (B, L * hop_length)."""
        if self.config.semantic:
            quantized = self.acoustic_proj(quantized)
        audio: Tensor = self.acoustic_decoder(quantized.transpose(1, 2))
        return audio[:, 0]

    def decode_semantic(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, L, latent_dim) -> an estimate of `semantic_features` (B, L, D).

        Not of the baseline, which has none.
        """
        features: Tensor = self.semantic_decoder(self.semantic_proj(quantized).transpose(1, 2))
        return features.transpose(1, 2)

    # ---- the codec's interface -----------------------------------------------------------------

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of a clip under the published rule."""
        if self.config.semantic is None:
            return self.acoustic_encoder.num_frames(num_samples)
        return frames_of(num_samples)

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        return [self._encode_one(clip, n_q, search) for clip in clips]

    def _encode_one(self, clip: Tensor, n_q: int, search: int) -> Tensor:
        samples = clip.shape[0]
        frames = self.reference_frames(samples) if self.reference else self.num_frames(samples)
        if frames == 0:
            return torch.zeros(n_q, 0, dtype=torch.int64, device=self.device)
        if not self.reference:
            clip = F.pad(clip, (0, frames * self.hop_length - samples))
        return self.quantizer.encode(self.encode_latents(clip[None].float()), n_q, search)[0]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        return [
            self.decode_latents(self.quantizer.decode(item[None]))[0]
            if item.shape[1]
            else torch.zeros(0, dtype=torch.float32, device=self.device)
            for item in codes
        ]

    def _embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes).transpose(1, 2)

    def _embed_branch(self, codes: Tensor, counts: Sequence[int], branch: str) -> Tensor:
        if branch != SEMANTIC or self.config.semantic is None:
            return super()._embed_branch(codes, counts, branch)
        shape = (len(codes), self.config.semantic.d_model, codes.shape[2])
        out = torch.zeros(shape, dtype=torch.float32, device=self.device)
        for row, item, count in zip(out, codes, counts, strict=True):
            if count:
                row[:, :count] = self.decode_semantic(self.quantizer.decode(item[None, :, :count]))[0].T
        return out

    # ---- inference form ------------------------------------------------------------------------

    def fold_weight_norm(self) -> None:
        """Turn every weight-normed map into a plain one."""
        if self.config.semantic:
            self.semantic_model.fold_weight_norm()
        fold_weight_norms(self)

    def to_compute_dtype(self, dtype: torch.dtype) -> None:
        """Refuse: X-Codec has float32 only. Raises CheckpointError."""
        raise CheckpointError(f"{self.model_id}: an X-Codec runs in float32 only, not {dtype}: leave dtype out")
