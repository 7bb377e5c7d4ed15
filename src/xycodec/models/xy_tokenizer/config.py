"""Configuration of XY-Tokenizer and of what is trained along with it."""

from math import log2
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from xycodec.io.config import Config
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.config import CodebooksConfig, TowerConfig

MEL_RATE = 100  # log-mel frames a second: 16 kHz at a hop of 160
TOWER_RATE = 50  # transformer frames a second, after the stride 2 of the convolution stem


class QuantizerConfig(CodebooksConfig):
    """XY-Tokenizer's quantizer, with maps to the codebooks' width and back (docs/models/xy_tokenizer.md, Quantizer)."""

    codebook_dim: PositiveInt = 512
    commitment: Literal["l1", "l2"] = "l1"
    """`l1` as the paper, `l2` as the published code (docs/models/differences.md)."""


class VocosConfig(Config):
    """The vocoder's ConvNeXt backbone (docs/models/xy_tokenizer.md, Vocoder); its FFT follows from the output rate."""

    dim: PositiveInt = 512
    intermediate_dim: PositiveInt = 4096
    layers: PositiveInt = 30


class XYTokenizerConfig(Config):
    """One XY-Tokenizer. `semantic_encoder` and its adapter may both be None: one tower does both tasks."""

    model_type: Literal["xy-tokenizer"] = "xy-tokenizer"
    model_id: str
    output_sample_rate: Literal[16000, 24000, 32000, 48000] = 16000
    n_mels: PositiveInt = 80
    window_frames: PositiveInt = 375
    downsample_factor: PositiveInt = 4
    semantic_encoder: TowerConfig | None
    semantic_encoder_adapter: TowerConfig | None
    acoustic_encoder: TowerConfig
    pre_rvq_adapter: TowerConfig
    quantizer: QuantizerConfig = QuantizerConfig()
    post_rvq_adapter: TowerConfig
    acoustic_decoder: TowerConfig
    vocos: VocosConfig = VocosConfig()

    @model_validator(mode="after")
    def _semantic_pair(self) -> "XYTokenizerConfig":
        tower, adapter = self.semantic_encoder, self.semantic_encoder_adapter
        if (tower is None) != (adapter is None):
            raise ValueError("semantic_encoder and semantic_encoder_adapter are given together or not at all")
        if tower and adapter and tower.d_model != adapter.d_model:
            raise ValueError("semantic_encoder and semantic_encoder_adapter must have the same d_model")
        return self

    @property
    def input_sample_rate(self) -> int:
        """Always 16 kHz: the front-end is Whisper's."""
        return SPEECH_RATE

    @property
    def frame_rate(self) -> float:
        """Code frames a second (12.5 for the published models)."""
        return TOWER_RATE / self.downsample_factor

    @property
    def hop_length(self) -> int:
        """Input samples per code frame (1280)."""
        return self.input_sample_rate // TOWER_RATE * self.downsample_factor

    @property
    def output_hop_length(self) -> int:
        """Output samples per code frame (1280, 1920, 2560 or 3840)."""
        return self.output_sample_rate // TOWER_RATE * self.downsample_factor

    @property
    def latent_dim(self) -> int:
        """Channels on either side of the quantizer: the stacked frames of one code (3072)."""
        return self.pre_rvq_adapter.d_model * self.downsample_factor

    @property
    def tower_positions(self) -> int:
        """Frames of one window in the towers, at 50 Hz (1500)."""
        return self.window_frames * self.downsample_factor

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks (1000)."""
        return self.frame_rate * self.quantizer.n_q * log2(self.quantizer.codebook_size)


class RecogniserConfig(Config):
    """A tower that recognises characters, for a codec with windows as long."""

    n_mels: PositiveInt = 80
    window_frames: PositiveInt = 375
    """Code frames of 80 ms."""
    tower: TowerConfig
    characters: Annotated[str, Field(min_length=1)]
    """Characters of the output, in the order of its columns."""

    @property
    def tower_positions(self) -> int:
        """Frames of one window in the towers, at 50 Hz (1500)."""
        return 4 * self.window_frames


_SMALL = TowerConfig(d_model=768, layers=12, heads=12, ffn_dim=3072)
_ADAPTER = TowerConfig(d_model=768, layers=4, heads=12, ffn_dim=3072)
_MINI = TowerConfig(d_model=256, layers=4, heads=4, ffn_dim=1024)
_WHISPER_TINY = TowerConfig(d_model=384, layers=4, heads=6, ffn_dim=1536)
_DEBUG = TowerConfig(d_model=128, layers=2, heads=4, ffn_dim=256)


def _published(model_id: str, output_sample_rate: Literal[16000, 24000, 32000]) -> XYTokenizerConfig:
    return XYTokenizerConfig(
        model_id=model_id,
        output_sample_rate=output_sample_rate,
        semantic_encoder=_SMALL,
        semantic_encoder_adapter=_ADAPTER,
        acoustic_encoder=_SMALL,
        pre_rvq_adapter=_ADAPTER,
        post_rvq_adapter=_ADAPTER,
        acoustic_decoder=_SMALL,
    )


CONFIGS: dict[str, XYTokenizerConfig] = {
    config.model_id: config
    for config in (
        _published("xy-tokenizer", 16000),
        _published("xy-tokenizer-24k", 24000),
        _published("xy-tokenizer-32k", 32000),
        XYTokenizerConfig(
            model_id="xy-mini",
            window_frames=75,
            semantic_encoder=_WHISPER_TINY,
            semantic_encoder_adapter=TowerConfig(d_model=384, layers=1, heads=6, ffn_dim=384),
            acoustic_encoder=_MINI,
            pre_rvq_adapter=TowerConfig(d_model=160, layers=2, heads=4, ffn_dim=512),
            quantizer=QuantizerConfig(codebook_dim=64, decay=0.995, commitment="l2"),
            post_rvq_adapter=TowerConfig(d_model=256, layers=2, heads=4, ffn_dim=1024),
            acoustic_decoder=TowerConfig(d_model=320, layers=4, heads=5, ffn_dim=1024),
            vocos=VocosConfig(dim=384, intermediate_dim=1152, layers=8),
        ),
        XYTokenizerConfig(
            model_id="xy-random",
            semantic_encoder=_DEBUG,
            semantic_encoder_adapter=_DEBUG,
            acoustic_encoder=_DEBUG,
            pre_rvq_adapter=_DEBUG,
            quantizer=QuantizerConfig(codebook_dim=32),
            post_rvq_adapter=_DEBUG,
            acoustic_decoder=_DEBUG,
            vocos=VocosConfig(dim=128, intermediate_dim=256, layers=4),
        ),
    )
}


class LanguageModelConfig(Config):
    """The language model that transcribes, in pre-training only (docs/models/xy_tokenizer.md, Language model)."""

    source: str = "Qwen/Qwen2.5-0.5B"
    """Any causal language model of Transformers, or a Whisper, whose decoder it then is: a hub id or a folder."""
    language: str | None = None
    """A code such as en: what a multilingual Whisper is told to write. A Whisper learns no texts of clips that name
    another language."""
    trainable: bool = False
    adapter: TowerConfig = TowerConfig(d_model=768, layers=4, heads=12, ffn_dim=3072)
    reads: Literal["post_rvq_adapter", "quantizer"] = "post_rvq_adapter"
    """Part whose output the adapter reads."""
    prompt: str = ""
    """Fixed text between the speech and its transcript."""
    like_tokens: bool = False
    """Give what the adapter makes the mean and spread that the causal model's token embeddings have. Not the paper's:
    for short runs, in which a frozen model cannot be shown anything else at a quick learning rate."""
    max_tokens: PositiveInt = 448
    """Longer transcripts are cut."""
