"""Configuration of X-Codec and of the frozen model that it reads."""

from math import log2, prod
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from xycodec.io.config import Config
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.config import CodebooksConfig, TowerConfig

SEMANTIC_HOP = 320  # samples of a frame of HuBERT and WavLM


class SelfSupervisedConfig(TowerConfig):
    """Size of a self-supervised model in the form of HuBERT base or WavLM base.

    See docs/models/x_codec.md, Semantic model.
    """

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
    """Strides of the acoustic encoder and, in the same order, of the decoder."""
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
    def latent_dim(self) -> int:
        """Channels of the codebooks: the acoustic ones, then the semantic ones (1024)."""
        return self.acoustic_dim + (self.semantic.d_model if self.semantic else 0)

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks (4000)."""
        return self.frame_rate * self.quantizer.n_q * log2(self.quantizer.codebook_size)


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
    semantic=SemanticTowerConfig(kind="tower", d_model=384, layers=4, heads=6, ffn_dim=1536, positions=100),
    quantizer=CodebooksConfig(codebook_size=256, kmeans_iterations=50),
)

X_MINI_CONFIGS: dict[str, XCodecConfig] = {
    "x-mini": _X_MINI,
    "x-mini-baseline": _X_MINI.model_copy(update={"model_id": "x-mini-baseline", "semantic": None}),
}
"""Presets of the recipes `x_mini/`: a small X-Codec over Whisper tiny.en's tower, and the same without it."""
