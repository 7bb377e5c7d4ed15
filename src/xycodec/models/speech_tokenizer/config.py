"""Configuration of SpeechTokenizer."""

from math import log2, prod
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from xycodec.io.config import Config
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.config import CodebooksConfig


class SpeechTokenizerConfig(Config):
    """One SpeechTokenizer; the defaults are the published size."""

    model_type: Literal["speech-tokenizer"] = "speech-tokenizer"
    model_id: str
    window_frames: PositiveInt = 3000
    """Code frames of 20 ms; the published model takes a clip whole."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 5, 4, 2)
    """Strides of the decoder; the encoder has them in the opposite order."""
    width: PositiveInt = 64
    """Channels before the first stride; each doubles them."""
    dim: PositiveInt = 1024
    """Channels of the codebooks."""
    semantic_dim: PositiveInt = 768
    """Channels of the features that the first codebook learns from."""
    lstm_layers: PositiveInt = 2
    bidirectional: bool = True
    """Whether the encoder's LSTM reads both ways; the decoder's never does."""
    quantizer: CodebooksConfig = CodebooksConfig(kmeans_iterations=50)

    @property
    def input_sample_rate(self) -> int:
        """Always 16 kHz."""
        return SPEECH_RATE

    @property
    def output_sample_rate(self) -> int:
        """The input's."""
        return self.input_sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per code frame (320)."""
        return prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Code frames a second (50)."""
        return self.input_sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks (4000)."""
        return self.frame_rate * self.quantizer.n_q * log2(self.quantizer.codebook_size)


SPEECH_TOKENIZER_CONFIGS = {"speech-tokenizer": SpeechTokenizerConfig(model_id="speech-tokenizer")}
"""Presets of recipes."""
