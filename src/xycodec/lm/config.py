"""Settings that language models share: the codec they are of, the size of a transformer, how they draw codes."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from xycodec.io.config import Config, Probability
from xycodec.io.tokens.layout import Description
from xycodec.models.config import TowerConfig

SOURCE_RATE = 75
"""Frames a second of the codec that VALL-E's constants were written for."""


class CodecIdentity(Config):
    """The codec whose codes a language model is of: its name, the hash of its weights, and its numbers."""

    name: str
    weights: str
    n_q: PositiveInt
    codebook_size: PositiveInt
    hop_length: PositiveInt
    sample_rate: PositiveInt

    @classmethod
    def of(cls, about: Description) -> "CodecIdentity":
        """The codec that made the codes of a store."""
        return cls(
            name=about.model,
            weights=about.weights,
            n_q=about.n_q,
            codebook_size=about.codebook_size,
            hop_length=about.hop_length,
            sample_rate=about.sample_rate,
        )

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def frames(self, seconds: float) -> int:
        """Whole frames of so many seconds: 225 of 3 s at 75 a second, 37 at 12.5."""
        return int(seconds * self.frame_rate)


class OfCodec:
    """A trained language model, as far as it names the codec whose codes it makes."""

    codec: CodecIdentity

    @property
    def codec_name(self) -> str:
        """Name of the codec."""
        return self.codec.name

    @property
    def codec_hash(self) -> str:
        """Hash of what made the codes, as `xycodec.models.base.codes_fingerprint` computes it."""
        return self.codec.weights

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.codec.frame_rate


class TransformerConfig(TowerConfig):
    """Size and kind of the transformer of a language model of ours."""

    dropout: Probability = 0.0
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = True
    """Whether linear maps and norms have biases."""


class SamplingConfig(Config):
    """Rules by which codes are drawn from a model's probabilities."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 takes the likeliest code each time."""
    top_k: NonNegativeInt = 0
    """Draw from so many of the likeliest codes; 0: from all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the fewest likeliest codes that have this probability together."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides the odds of codes among the last `repetition_window` of the same codebook; 1: none."""
    repetition_window: NonNegativeInt = 25
