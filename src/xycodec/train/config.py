"""Configuration that every stage's recipe has: optimizer, engine, validation, checkpoints, the run."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from xycodec.data.config import DataConfig
from xycodec.io.config import Config, Decay, Probability


class OptimizerConfig(Config):
    """AdamW under a schedule with warm-up (docs/models/xy_tokenizer.md, Pre-training), or ScaledAdam under Eden's."""

    kind: Literal["adamw", "scaled_adam"] = "adamw"
    """`scaled_adam` has its own clipping and no weight decay: `clip: null`, `weight_decay: 0`."""
    lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["cosine", "linear", "inverse_sqrt", "eden"] = "cosine"
    """Decay of the learning rate after warm-up: half a cosine or a line down to `final_lr`, or one over the root of the
    step. Eden's falls with the roots of step and epoch, once they are past `eden_steps` and `eden_epochs`."""
    eden_steps: PositiveInt = 5000
    eden_epochs: PositiveFloat = 4.0
    warmup_steps: NonNegativeInt = 2000
    final_lr: Probability = 0.1
    """Share of `lr` that is left at the last step of a cosine."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient."""

    @model_validator(mode="after")
    def _own_clipping(self) -> "OptimizerConfig":
        if self.kind == "scaled_adam" and (self.clip is not None or self.weight_decay):
            raise ValueError("optimizer: scaled_adam clips by itself and decays nothing: clip: null, weight_decay: 0")
        return self


class EngineConfig(Config):
    """Device, precision and parallelism of a training step (`torchrun` starts several processes)."""

    kind: Literal["auto", "single", "ddp", "fsdp2"] = "auto"
    """`auto`: DDP where there are several processes. `fsdp2` shards gradients and optimizer (ZeRO-2)."""
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "bf16"
    """Autocast of the networks; quantizer, inverse STFT and losses are float32 in either."""
    accumulate: PositiveInt = 1
    """Micro-batches per step."""
    compile: bool = False
    checkpoint_activations: bool = False


class ValidationConfig(Config):
    """Interval and extent of validation on `data.valid`."""

    every: PositiveInt = 5000
    """Steps."""
    clips: PositiveInt = 200
    """Clips at most, drawn by the seed from all of `data.valid`, the same ones all through a run."""
    listen: NonNegativeInt = 4
    """Clips whose audio and spectrograms go to TensorBoard."""
    transcribe: NonNegativeInt = 32
    """Clips the language model transcribes for its word error rate, and `recogniser` for that of the decoded audio."""
    recogniser: str | None = None
    """Hub id or folder of a Whisper or CTC model that hears the decoded audio; not the one that teaches. null: none."""


class CheckpointConfig(Config):
    """Interval at which the whole state is saved, and how many checkpoints are kept beside the best."""

    every: PositiveInt = 1000
    keep: PositiveInt = 2


class RunConfig(Config):
    """Settings that every stage's recipe has."""

    stage: str
    """Name of the stage; each recipe narrows it to its own."""
    output: str
    """The run's folder."""
    seed: NonNegativeInt = 0
    steps: PositiveInt
    minutes: PositiveFloat | None = None
    """Save and stop after so long; `--resume` goes on."""
    anneal: Literal["steps", "minutes"] = "steps"
    """Whether learning rates fall with the steps or with the time: with `minutes`, a run that its limit stops has come
    down to the end of its schedule, whatever the machine's speed. One process only, and never twice the same."""
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
    def _heard_clips(self) -> "RunConfig":
        if self.validation.recogniser is not None and not self.data.valid:
            raise ValueError("validation.recogniser: there is nothing to hear: name clips in data.valid")
        return self

    @model_validator(mode="after")
    def _limited(self) -> "RunConfig":
        if self.anneal == "minutes" and self.minutes is None:
            raise ValueError("anneal: minutes needs a limit: set minutes")
        return self

    @model_validator(mode="after")
    def _whole_parameters(self) -> "RunConfig":
        own = getattr(self, "optimizer", None)
        if self.engine.kind == "fsdp2" and getattr(own, "kind", None) == "scaled_adam":
            raise ValueError("optimizer.kind: scaled_adam is not for sharded parameters: use ddp, or adamw")
        return self

    @model_validator(mode="after")
    def _whole_weights(self) -> "RunConfig":
        if self.ema is not None and self.engine.kind == "fsdp2":
            raise ValueError("ema: fsdp2 shards the weights that it averages: use ddp or single, or set ema to null")
        return self


def require_a_loss(weights: Config) -> None:
    """Raise ValueError where every weight of the losses is 0."""
    if not any(weights.model_dump().values()):
        raise ValueError("loss: every weight is 0: give at least one")


def refuse_listening(recipe: RunConfig) -> None:
    """Raise ValueError where a stage without decoded audio is asked to have it recognised."""
    if recipe.validation.recogniser is not None:
        raise ValueError("validation.recogniser: this stage decodes no audio: leave it out")
