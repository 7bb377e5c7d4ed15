"""Configuration of training data: sources, batches and augmentation."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from xycodec.io.config import Config, Probability


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not span[0] <= span[1]:
        raise ValueError(f"{list(span)} is not a range: the first number is the smaller one")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
Factors = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]


class Augmentation(Config):
    """Probabilities and ranges of changes to a clip; every probability is 0 by default."""

    speed: Probability = 0.0
    speed_range: Factors = (0.9, 1.1)
    """Factor on the speed: duration and pitch change together."""
    pitch: Probability = 0.0
    pitch_range: Span = (-2.0, 2.0)
    """Semitones, at the same duration."""
    formant: Probability = 0.0
    formant_range: Factors = (0.87, 1.15)
    """Factor on the resonances, as of another speaker's mouth, at the same pitch and duration."""
    gain: Probability = 0.0
    gain_range: Span = (-12.0, 3.0)
    """Decibels; a clip is never pushed beyond full scale."""
    eq: Probability = 0.0
    eq_range: Span = (-6.0, 6.0)
    """Decibels of each of three peaking filters at random frequencies."""


class SourceConfig(Config):
    """A corpus: Lhotse cuts (`.jsonl`, `.jsonl.gz`), a Lhotse Shar folder, or WebDataset tars (a glob).

    Stages that train language models read stores of tokens instead, each a folder that `xycodec tokenize` made.
    """

    path: str
    weight: PositiveFloat | None = None
    """Share of the draws. If one source has a weight, all must, and every source repeats without end."""


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[SourceConfig, BeforeValidator(_source)]


class DataConfig(Config):
    """Sources of clips, and their way into batches."""

    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()
    clip_seconds: PositiveFloat = 30.0
    """The longest a clip may be."""
    crop: Literal["first", "random"] = "first"
    """Part of a longer clip that is taken."""
    batch_clips: PositiveInt = 4
    """Clips a process takes per micro-batch, at most."""
    batch_seconds: PositiveFloat | None = None
    """Seconds of audio a process takes per micro-batch, at most, padding included."""
    batch_places: PositiveInt | None = None
    """Frames and characters of text that a process takes of stores per micro-batch, at most, padding included."""
    buckets: NonNegativeInt = 20
    """Clips of a batch come from one of so many ranges of duration; 0 mixes all."""
    min_seconds: NonNegativeFloat = 0.5
    """Shorter clips are left out."""
    silence_db: float = -60.0
    """A clip whose loudest sample lies below (dB of full scale) is skipped."""
    workers: NonNegativeInt = 4
    in_memory: bool = False
    """Decode every training recording once into the memory of the device, and cut clips out of it there: for a GPU
    that loaders would starve. For mono recordings at 16 kHz (`xycodec data pack`); of `augment`, speed and gain."""
    augment: Augmentation = Augmentation()

    @model_validator(mode="before")
    @classmethod
    def _without_a_buffer(cls, data: Any) -> Any:
        # The recipes of earlier runs have this setting; clips are shuffled over the whole corpus now.
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if key != "shuffle_buffer"}
        return data

    @model_validator(mode="after")
    def _on_the_device(self) -> "DataConfig":
        changes = [name for name in ("pitch", "formant", "eq") if getattr(self.augment, name)]
        if self.in_memory and changes:
            raise ValueError(f"data.in_memory: augment.{changes[0]} is not computed on the device: set it to 0")
        return self

    @model_validator(mode="after")
    def _weights_for_all(self) -> "DataConfig":
        given = [source.weight is not None for source in self.train]
        if any(given) and not all(given):
            raise ValueError("data.train: give every source a weight, or none")
        if not self.train:
            raise ValueError("data.train: name at least one source")
        if any(source.weight is not None for source in self.valid):
            raise ValueError("data.valid: sources are read once and have no weights")
        return self
