"""What the recipe of every stage has: data, optimisation, engine, and the run itself."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from xycodec.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if not span[0] <= span[1]:
        raise ValueError(f"{list(span)} is not a range: the first number is the smaller one")
    return span


Span = Annotated[tuple[float, float], AfterValidator(_ordered)]
Factors = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]


# ---- data --------------------------------------------------------------------------------------


class Augmentation(Config):
    """How often a clip is changed, and within what range; every probability is 0 by default."""

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
    """A corpus: Lhotse cuts (`.jsonl`, `.jsonl.gz`), a Lhotse Shar folder, or WebDataset tars (a glob)."""

    path: str
    weight: PositiveFloat | None = None
    """Share of the draws. If one source has a weight, all must, and every source repeats without end."""


def _source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[SourceConfig, BeforeValidator(_source)]


class DataConfig(Config):
    """What is read, and how it becomes batches."""

    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()
    clip_seconds: PositiveFloat = 30.0
    """The longest a clip may be."""
    crop: Literal["first", "random"] = "first"
    """Which part of a longer clip is taken."""
    batch_clips: PositiveInt = 4
    """Clips a process takes per micro-batch, at most."""
    batch_seconds: PositiveFloat | None = None
    """Seconds of audio a process takes per micro-batch, at most, padding included."""
    buckets: NonNegativeInt = 20
    """Clips of a batch come from one of so many ranges of duration; 0 mixes all."""
    shuffle_buffer: PositiveInt = 20_000
    min_seconds: NonNegativeFloat = 0.5
    """Shorter clips are left out."""
    silence_db: float = -60.0
    """A clip whose loudest sample lies below (dB of full scale) is skipped."""
    workers: NonNegativeInt = 4
    augment: Augmentation = Augmentation()

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


# ---- optimisation ------------------------------------------------------------------------------


class OptimizerConfig(Config):
    """AdamW under a schedule with warm-up (spec section 8)."""

    lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """How the rate falls after warm-up: as half a cosine to `final_lr`, or with the root of the step's number."""
    warmup_steps: NonNegativeInt = 2000
    final_lr: Probability = 0.1
    """Share of `lr` that is left at the last step of a cosine."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient."""


class EngineConfig(Config):
    """How a step is computed, on how many processes (`torchrun` starts them)."""

    kind: Literal["auto", "single", "ddp", "fsdp2"] = "auto"
    """`auto`: DDP where there are several processes. `fsdp2` shards gradients and optimizer (ZeRO-2)."""
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "bf16"
    """Autocast of the networks; quantizer, inverse STFT and losses are float32 in either."""
    accumulate: PositiveInt = 1
    """Micro-batches per step."""
    compile: bool = False
    checkpoint_activations: bool = False


# ---- a run -------------------------------------------------------------------------------------


class ValidationConfig(Config):
    """When and on how much of `data.valid` a run is measured."""

    every: PositiveInt = 5000
    """Steps."""
    clips: PositiveInt = 200
    """Clips at most, the first ones."""
    listen: NonNegativeInt = 4
    """Clips whose audio and spectrograms go to TensorBoard."""
    transcribe: NonNegativeInt = 32
    """Clips the language model transcribes for its word error rate."""


class CheckpointConfig(Config):
    """When the whole state is saved, and how many are kept beside the best."""

    every: PositiveInt = 1000
    keep: PositiveInt = 2


class RunConfig(Config):
    """What every stage's recipe has."""

    output: str
    """The run's folder."""
    seed: NonNegativeInt = 0
    steps: PositiveInt
    minutes: PositiveFloat | None = None
    """Save and stop after so long; `--resume` goes on."""
    data: DataConfig
    ema: Decay | None = None
    """Decay of a moving average of the codec's weights (0.999, 0.9999), which is then what is measured, loaded and gone
    on from; it begins with less and reaches this after some nine times `1 / (1 - ema)` steps. null: no average."""
    engine: EngineConfig = EngineConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every: PositiveInt = 10
    """Steps between two lines of progress and TensorBoard scalars; `metrics.jsonl` has every step."""

    @model_validator(mode="after")
    def _whole_weights(self) -> "RunConfig":
        if self.ema is not None and self.engine.kind == "fsdp2":
            raise ValueError("ema: fsdp2 shards the weights that it averages: use ddp or single, or set ema to null")
        return self
