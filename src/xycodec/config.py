"""Model configurations: typed, frozen, with every derived value computed rather than repeated."""

import difflib
from collections.abc import Iterator
from math import log2, prod
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from xycodec.errors import ConfigError, XycodecError

MEL_RATE = 100  # log-mel frames a second: 16 kHz at a hop of 160
TOWER_RATE = 50  # transformer rows a second, after the stride 2 of the convolution stem
SEMANTIC_HOP = 320  # samples of a frame of HuBERT and WavLM


class Config(BaseModel):
    """Base of every configuration: immutable, its numbers finite, and an unknown key is an error."""

    # Older pydantic reserves names that begin with model_.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TowerConfig(Config):
    """Size of one stack of transformer layers (spec section 4.1)."""

    d_model: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ffn_dim: PositiveInt

    @model_validator(mode="after")
    def _whole_heads(self) -> "TowerConfig":
        if self.d_model % self.heads or self.d_model % 2:
            raise ValueError(f"d_model {self.d_model} must be even and a multiple of heads {self.heads}")
        return self


class CodebooksConfig(Config):
    """The codebooks of a residual vector quantizer and how they learn."""

    n_q: PositiveInt = 8
    codebook_size: PositiveInt = 1024
    decay: Annotated[float, Field(ge=0, le=1)] = 0.99
    dead_code_threshold: NonNegativeFloat = 2.0
    kmeans_iterations: PositiveInt = 10
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    commitment: Literal["l1", "l2"] = "l2"
    commit_every_layer: bool = True


class QuantizerConfig(CodebooksConfig):
    """XY-Tokenizer's quantizer, with maps to the codebooks' width and back (spec section 5)."""

    codebook_dim: PositiveInt = 512


class VocosConfig(Config):
    """The vocoder's ConvNeXt backbone (spec section 4.8); its FFT follows from the output rate."""

    dim: PositiveInt = 512
    intermediate_dim: PositiveInt = 4096
    layers: PositiveInt = 30


class XYTokenizerConfig(Config):
    """One XY-Tokenizer. `semantic_encoder` and its adapter may both be None: one tower does both tasks."""

    model_type: Literal["xy-tokenizer"] = "xy-tokenizer"
    model_id: str
    output_sample_rate: Literal[16000, 24000, 32000] = 16000
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
        return 16_000

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
        """Output samples per code frame (1280, 1920 or 2560)."""
        return self.output_sample_rate // TOWER_RATE * self.downsample_factor

    @property
    def latent_dim(self) -> int:
        """Channels on either side of the quantizer: the stacked frames of one code (3072)."""
        return self.pre_rvq_adapter.d_model * self.downsample_factor

    @property
    def tower_positions(self) -> int:
        """Rows of one window at 50 Hz (1500)."""
        return self.window_frames * self.downsample_factor

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks (1000)."""
        return self.frame_rate * self.quantizer.n_q * log2(self.quantizer.codebook_size)


class SelfSupervisedConfig(TowerConfig):
    """Size of a self-supervised model in the form of HuBERT base or WavLM base (X-Codec's spec, section 4.1)."""

    kind: Literal["hubert", "wavlm"] = "hubert"
    d_model: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    ffn_dim: PositiveInt = 3072
    conv_dim: PositiveInt = 512
    """Channels of the convolutions below the transformer."""
    position_kernel: PositiveInt = 128
    position_groups: PositiveInt = 16

    @model_validator(mode="after")
    def _whole_groups(self) -> "SelfSupervisedConfig":
        if self.d_model % self.position_groups:
            raise ValueError(f"d_model {self.d_model} must be a multiple of position_groups {self.position_groups}")
        return self


class SemanticTowerConfig(TowerConfig):
    """Size of a Whisper-style tower in the place of a self-supervised model: of a recogniser or an XY-Tokenizer."""

    kind: Literal["tower"]
    n_mels: PositiveInt = 80
    positions: PositiveInt = 1500
    """Rows of its window, 20 ms each."""


def _semantic_kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "(tower)" if kind == "tower" else "(self-supervised)"


SemanticConfig = Annotated[
    Annotated[SelfSupervisedConfig, Tag("(self-supervised)")] | Annotated[SemanticTowerConfig, Tag("(tower)")],
    Discriminator(_semantic_kind),
]


class XCodecConfig(Config):
    """One X-Codec. `semantic` None is the paper's acoustic baseline: no self-supervised model and no joint latent."""

    model_type: Literal["x-codec"] = "x-codec"
    model_id: str
    window_frames: PositiveInt = 1000
    """Code frames of 20 ms; the published model takes a clip whole."""
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 5, 4, 2)
    """Of the acoustic encoder and, in the same order, of the decoder."""
    encoder_width: PositiveInt = 64
    """Channels before the first stride; each doubles them."""
    decoder_width: PositiveInt = 1024
    """Channels before the first stride; each halves them."""
    acoustic_dim: PositiveInt = 256
    semantic: SemanticConfig | None
    quantizer: CodebooksConfig = CodebooksConfig(kmeans_iterations=50)

    @model_validator(mode="after")
    def _rates(self) -> "XCodecConfig":
        if self.semantic and self.hop_length != SEMANTIC_HOP:
            raise ValueError(f"strides must multiply to {SEMANTIC_HOP}, the semantic model's, got {self.hop_length}")
        if isinstance(self.semantic, SemanticTowerConfig) and self.window_frames > self.semantic.positions:
            raise ValueError(
                f"window_frames must not exceed the semantic tower's {self.semantic.positions} positions, "
                f"got {self.window_frames}"
            )
        if self.decoder_width % 2 ** len(self.strides):
            raise ValueError(f"decoder_width {self.decoder_width} cannot be halved {len(self.strides)} times")
        return self

    @property
    def input_sample_rate(self) -> int:
        """Always 16 kHz: the self-supervised models'."""
        return 16_000

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
    def latent_dim(self) -> int:
        """Channels of the codebooks: the acoustic ones, then the semantic ones (1024)."""
        return self.acoustic_dim + (self.semantic.d_model if self.semantic else 0)

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks (4000)."""
        return self.frame_rate * self.quantizer.n_q * log2(self.quantizer.codebook_size)


CodecConfig = XYTokenizerConfig | XCodecConfig


class RecogniserConfig(Config):
    """A tower that recognises characters, for a codec with windows as long."""

    n_mels: PositiveInt = 80
    window_frames: PositiveInt = 375
    """Code frames of 80 ms."""
    tower: TowerConfig
    characters: Annotated[str, Field(min_length=1)]
    """What may be said, in the order of the output's columns."""

    @property
    def tower_positions(self) -> int:
        """Rows of one window at 50 Hz (1500)."""
        return 4 * self.window_frames


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(cls: type[ConfigT], data: Any, where: str, error: type[XycodecError] = ConfigError) -> ConfigT:
    """Validate `data` (a parsed JSON or YAML mapping) into `cls`.

    Raises `error`: one line with `where`, the offending key, and the nearest known key to an unknown one.
    """
    if not isinstance(data, dict):
        raise error(f"{where}: expected a mapping of settings, found {type(data).__name__}")
    try:
        return cls.model_validate(data)
    except ValidationError as failure:
        first = failure.errors()[0]
        # What stands in brackets tells classes apart and is not in the file.
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("(")) or "settings"
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), list(_field_names(cls)), n=1)
            problem = "unknown key" + (f", did you mean {near[0]!r}?" if near else "")
        raise error(f"{where}: {key}: {problem}") from None


def _field_names(cls: type[BaseModel]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield name
        for part in _models(field.annotation):
            yield from _field_names(part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that an annotation names, inside optional ones and tuples as well."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


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
            quantizer=QuantizerConfig(codebook_dim=64),
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

_WAVLM = SelfSupervisedConfig(kind="wavlm")

XCODEC_CONFIGS: dict[str, XCodecConfig] = {
    name: XCodecConfig(model_id=name, semantic=semantic)
    for name, semantic in (
        ("x-codec-hubert", SelfSupervisedConfig()),
        ("x-codec-wavlm", _WAVLM),
        ("x-codec-wavlm-more", _WAVLM),
        ("x-codec-general", SelfSupervisedConfig()),
        ("x-codec-general-balanced", SelfSupervisedConfig()),
    )
}
"""Beside `CONFIGS`, whose names are presets of XY-Tokenizer's recipes."""

_X_MINI = XCodecConfig(
    model_id="x-mini",
    window_frames=100,
    encoder_width=16,
    decoder_width=192,
    acoustic_dim=64,
    semantic=SemanticTowerConfig(kind="tower", d_model=256, layers=4, heads=4, ffn_dim=1024, positions=100),
    quantizer=CodebooksConfig(codebook_size=256, kmeans_iterations=50),
)

X_MINI_CONFIGS: dict[str, XCodecConfig] = {
    "x-mini": _X_MINI,
    "x-mini-baseline": _X_MINI.model_copy(update={"model_id": "x-mini-baseline", "semantic": None}),
}

NAMED_CONFIGS: dict[str, CodecConfig] = {**CONFIGS, **XCODEC_CONFIGS, **X_MINI_CONFIGS}
