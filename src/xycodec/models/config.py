"""Configuration that models are made of."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from xycodec.io.config import Config


class TowerConfig(Config):
    """Size of one stack of transformer layers (docs/models/xy_tokenizer.md, Transformer)."""

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
    """Distance of vectors from their codes: absolute or squared, a mean over frames and channels in either case."""
    commit_every_layer: bool = True
