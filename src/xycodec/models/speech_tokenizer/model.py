"""SpeechTokenizer: a convolutional autoencoder whose first codebook learns to tell what a HuBERT hears.

Read top-down: audio -> latents (50 Hz) -> codes, and back to audio, or to features after the first codebook.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from xycodec.errors import CheckpointError
from xycodec.models.base import Codec
from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig
from xycodec.nn.deterministic.linear import Linear
from xycodec.nn.folding import fold_weight_norms
from xycodec.nn.quantize import ResidualVectorQuantizer
from xycodec.nn.seanet import SeanetDecoder, SeanetEncoder

SEMANTIC = "semantic"
"""Branch of `embed`: the first codebook's vectors alone, which carry what was distilled."""


class SpeechTokenizer(Codec):
    """The whole model.

    A clip of N samples has ceil(N / 320) frames, in the published code too. Clips longer than a window are an
    approximation: LSTMs read a clip from end to end.
    """

    can_search = True
    decoder_parts = ("semantic_proj.", "decoder.")

    def __init__(self, config: SpeechTokenizerConfig) -> None:
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
        self.encoder = SeanetEncoder(
            width=config.width,
            strides=config.strides[::-1],
            output_dim=config.dim,
            lstm_layers=config.lstm_layers,
            bidirectional=config.bidirectional,
        )
        self.quantizer = ResidualVectorQuantizer(
            input_dim=config.dim, codebook_dim=None, **config.quantizer.model_dump()
        )
        self.semantic_proj = Linear(config.dim, config.semantic_dim)
        self.decoder = SeanetDecoder(
            input_dim=config.dim, width=config.width, strides=config.strides, lstm_layers=config.lstm_layers
        )

    def encode_latents(self, audio: Tensor) -> Tensor:
        """Audio (B, T) -> latents (B, ceil(T / hop_length), dim) before the quantizer."""
        latents: Tensor = self.encoder(audio[:, None])
        return latents.transpose(1, 2)

    def decode_latents(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, L, dim) -> audio (B, L * hop_length)."""
        audio: Tensor = self.decoder(quantized.transpose(1, 2))
        return audio[:, 0]

    # ---- the codec's interface -----------------------------------------------------------------

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of a clip under the published rule: the last part of one counts."""
        return self.num_frames(num_samples)

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        nothing = torch.zeros(n_q, 0, dtype=torch.int64, device=self.device)
        return [
            self.quantizer.encode(self.encode_latents(clip[None].float()), n_q, search)[0] if len(clip) else nothing
            for clip in clips
        ]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        nothing = torch.zeros(0, dtype=torch.float32, device=self.device)
        return [
            self.decode_latents(self.quantizer.decode(item[None]))[0] if item.shape[1] else nothing for item in codes
        ]

    def _embed(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes).transpose(1, 2)

    def _embed_branch(self, codes: Tensor, counts: Sequence[int], branch: str) -> Tensor:
        if branch != SEMANTIC:
            return super()._embed_branch(codes, counts, branch)
        places = torch.arange(codes.shape[2], device=codes.device)
        inside = places < torch.tensor(counts, device=codes.device)[:, None]
        return self._embed(codes[:, :1]) * inside[:, None]

    # ---- inference form ------------------------------------------------------------------------

    def fold_weight_norm(self) -> None:
        """Turn every weight-normed map into a plain one."""
        fold_weight_norms(self)

    def to_compute_dtype(self, dtype: torch.dtype) -> None:
        """Refuse: it has float32 only. Raises CheckpointError."""
        raise CheckpointError(f"{self.model_id}: a SpeechTokenizer runs in float32 only, not {dtype}: leave dtype out")
