"""Stage `hubert`: a HuBERT learns to predict the labels of hidden frames, for X-Codec to read its features.

See docs/models/x_codec.md, HuBERT.

Labels are codes of another codec (`data targets`), where HuBERT's authors clustered features (Hsu 2021).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from lhotse.cut import Cut
from numpy.random import Generator
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.data.batch import Batch
from xycodec.data.clip import generator_of
from xycodec.data.survey import Survey
from xycodec.data.targets import NO_LABEL, TARGETS_OF, targets_of
from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import ConfigError
from xycodec.io.config import Config, Decay, Probability
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.xcodec.config import SEMANTIC_HOP, SelfSupervisedConfig
from xycodec.models.xcodec.semantic import FIELD, transformers_model
from xycodec.nn.mean import Mean, masked_mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.config import OptimizerConfig, RunConfig, refuse_listening
from xycodec.train.engine import Engine
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Needs, Networks, Stage, StepReport, register, weighted

VALIDATION = "validation"  # in the place of a step's number: the same frames are hidden each time


# ---- the recipe ----------------------------------------------------------------------------------


class SpanMaskingConfig(Config):
    """Span masking: the frames of 20 ms that are hidden in training."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Share of a clip's frames that begin a span, one at least; spans may overlap."""
    frames: PositiveInt = 10
    """Length of a span in frames."""


class HubertLoss(Config):
    """Weights of the losses; 0 leaves one out."""

    masked: NonNegativeFloat = 1.0
    """Weight of the cross-entropy on hidden frames."""
    unmasked: NonNegativeFloat = 0.0
    """Weight of the cross-entropy on the other frames."""
    features: NonNegativeFloat = 10.0
    """Mean square of what the convolutions give."""


class HubertOptimizerConfig(OptimizerConfig):
    """X-Codec's paper's rate and schedule (docs/models/x_codec.md, HuBERT); the rest is HuBERT's."""

    lr: PositiveFloat = 3e-4
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    schedule: Literal["cosine", "inverse_sqrt"] = "inverse_sqrt"
    warmup_steps: NonNegativeInt = 32_000
    clip: PositiveFloat | None = 10.0


class HubertRecipe(RunConfig):
    """Recipe of a HuBERT that predicts codes of hidden frames, for X-Codec to read (docs/models/x_codec.md, HuBERT)."""

    stage: Literal["hubert"]
    model: SelfSupervisedConfig = SelfSupervisedConfig()
    codebook_size: PositiveInt = 1024
    """Labels of a layer, as `xycodec data targets` printed."""
    codebooks: PositiveInt = 1
    """Number of label layers to learn, the first ones."""
    masking: SpanMaskingConfig = SpanMaskingConfig()
    dropout: Probability = 0.1
    """Dropout of the transformer's input, its attention, and its layers' outputs."""
    layer_drop: Probability = 0.05
    """Probability that a layer is skipped."""
    feature_gradient: Probability = 0.1
    """Share of the gradient that reaches the convolutions."""
    label_dim: PositiveInt = 256
    """Width in which a frame is compared with the labels."""
    temperature: PositiveFloat = 0.1
    """Softmax temperature for the cosine logits."""
    loss: HubertLoss = HubertLoss()
    optimizer: HubertOptimizerConfig = HubertOptimizerConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "HubertRecipe":
        if self.model.kind != "hubert":
            raise ValueError(f"model.kind: {self.model.kind} is not trained here: set it to hubert")
        if self.data.in_memory:
            raise ValueError("data.in_memory: labels are not kept in the device's memory: set it to false")
        if self.data.augment.speed:
            raise ValueError("data.augment.speed: it would move the audio away from its labels: set it to 0")
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        refuse_listening(self)
        if self.engine.kind == "fsdp2":
            raise ValueError("engine.kind: HuBERT's layers are Transformers', which are not sharded: use ddp or single")
        if self.engine.compile:
            raise ValueError(
                "engine.compile: HuBERT's layers, which are Transformers', are not compiled: set it to false"
            )
        if not (self.loss.masked or self.loss.unmasked):
            raise ValueError("loss: nothing is guessed: give masked or unmasked a weight")
        return self


# ---- what can be guessed -------------------------------------------------------------------------


def frames_within(samples: int) -> int:
    """Frames that see nothing but the `samples` of a clip at 16 kHz."""
    return max(0, (samples - FIELD) // SEMANTIC_HOP + 1)


def require_labels(recipe: HubertRecipe, cut: Cut, source: str) -> None:
    """Raise ConfigError unless the labels of `cut` are those that the recipe learns."""
    targets, of = targets_of(cut), (cut.custom or {}).get(TARGETS_OF) or {}
    layers = 0 if targets is None else targets.shape[1]
    if layers < recipe.codebooks:
        raise ConfigError(
            f"{source}: {layers} layers of labels, the recipe asks for {recipe.codebooks}: lower codebooks"
        )
    if of.get("size") != recipe.codebook_size:
        raise ConfigError(
            f"{source}: labels out of {of.get('size')}, the recipe has {recipe.codebook_size}: change codebook_size"
        )


# ---- what is hidden ----------------------------------------------------------------------------


def draw_spans(config: SpanMaskingConfig, frames: int, generator: Generator) -> Tensor:
    """(frames,) bool, True in the spans that are hidden; in none if `frames` are fewer than a span has."""
    hidden = torch.zeros(frames, dtype=torch.bool)
    places = frames - config.frames + 1
    if places < 1:
        return hidden
    # Between two whole numbers chance decides, so that the share is right on average.
    count = min(places, max(1, math.floor(config.share * frames + generator.random())))
    for start in generator.choice(places, count, replace=False):
        hidden[start : start + config.frames] = True
    return hidden


class Task(NamedTuple):
    """Labels and masks of a batch. All are (B, L) bool, but for the labels."""

    labels: Tensor
    """(B, L, codebooks) int64; where there is no label, any."""
    hidden: Tensor
    masked: Tensor
    """Hidden frames with a label, which is guessed."""
    unmasked: Tensor
    """The others with a label."""
    inside: Tensor
    """Frames of the clips."""

    @property
    def counts(self) -> Tensor:
        """(3,) float32: how many frames are masked, unmasked, inside."""
        return torch.stack([part.sum() for part in (self.masked, self.unmasked, self.inside)]).float()


COUNTED = {"masked": 0, "masked_accuracy": 0, "unmasked": 1, "unmasked_accuracy": 1, "features": 2}
"""The place in a task's `counts` of the frames over which each measure is a mean."""


def measures(logits: Tensor, features: Tensor, task: Task) -> dict[str, Mean]:
    """Losses and accuracies of logits (B, L, codebooks, labels) and of features (B, L, C), as means over frames."""
    loss = -logits.log_softmax(dim=-1).gather(-1, task.labels[..., None]).squeeze(-1).mean(dim=-1)
    right = (logits.detach().argmax(dim=-1) == task.labels).float().mean(dim=-1)
    return {
        "masked": masked_mean(loss, task.masked),
        "masked_accuracy": masked_mean(right, task.masked),
        "unmasked": masked_mean(loss, task.unmasked),
        "unmasked_accuracy": masked_mean(right, task.unmasked),
        "features": masked_mean(features.float().square().mean(dim=-1), task.inside),
    }


# ---- the networks ------------------------------------------------------------------------------


class LabelHead(nn.Module):
    """Scaled cosine similarity of each frame to each label's embedding, in a projected space."""

    def __init__(self, d_model: int, recipe: HubertRecipe) -> None:
        super().__init__()
        self.codebooks, self.temperature = recipe.codebooks, recipe.temperature
        self.proj = nn.Linear(d_model, recipe.codebooks * recipe.label_dim)
        self.labels = nn.Parameter(torch.randn(recipe.codebooks, recipe.codebook_size, recipe.label_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d_model) -> logits (B, L, codebooks, labels) float32."""
        with torch.autocast(x.device.type, enabled=False):
            frames = F.normalize(self.proj(x.float()).unflatten(-1, (self.codebooks, -1)), dim=-1)
            return torch.einsum("blqd,qkd->blqk", frames, F.normalize(self.labels, dim=-1)) / self.temperature


class MaskedPrediction(nn.Module):
    """HuBERT and its head. Silence completes every clip to `samples`, so that none depends on its neighbours.

    Otherwise it would: the first norm is over time. Nothing attends to frames past a clip's end.
    """

    hubert: Any

    def __init__(self, hubert: nn.Module, head: LabelHead, recipe: HubertRecipe) -> None:
        super().__init__()
        self.hubert = hubert
        self.head = head
        self.feature_gradient = recipe.feature_gradient
        self.samples = max(FIELD, round(recipe.data.clip_seconds * SPEECH_RATE))
        for layer in self.hubert.encoder.layers:
            layer.register_forward_hook(_LayerDrop(recipe.layer_drop))

    @property
    def frames(self) -> int:
        """Frames of every clip, silence included."""
        return frames_within(self.samples)

    def forward(self, batch: Batch, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, L, codebooks, labels), and features (B, L, C): what the convolutions give.

        `hidden` (B, L) bool: frames that the transformer is not to see (None: it sees all).
        """
        audio = F.pad(batch.audio, (0, self.samples - batch.audio.shape[1]))
        features = self.hubert.feature_extractor(audio).transpose(1, 2)
        if features.requires_grad:
            features.register_hook(lambda gradient: gradient * self.feature_gradient)
        x = self.hubert.feature_projection(features)
        if hidden is not None:
            x = torch.where(hidden[..., None], self.hubert.masked_spec_embed.to(x.dtype), x)
        # Softmax over no frame at all is NaN: a clip without one looks at its first.
        mask = frame_mask([max(1, frames_within(n)) for n in batch.lengths], self.frames)
        known = None if mask is None else mask.to(audio.device, non_blocking=True)
        return self.head(self.hubert.encoder(x, attention_mask=known)[0]), features


class _LayerDrop:
    """Forward hook that undoes a layer at random. Its weights then have gradients of zero, which processes can join."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
        if not (layer.training and self.share):
            return made
        dropped = torch.rand(()) < self.share
        return torch.where(dropped.to(made.device, non_blocking=True), given[0], made)


@register
class HubertStage(Stage[HubertRecipe]):
    """The stage that trains a HuBERT by masked prediction."""

    name = "hubert"
    recipe_class = HubertRecipe
    trains = "self_supervised"
    needs = Needs("labels", "labels, which a HuBERT learns from: make them with xycodec data targets")

    def __init__(self, recipe: HubertRecipe, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.output_sample_rate = SPEECH_RATE
        self.weights = recipe.loss.model_dump()
        self.plain = build(recipe)
        self.model = engine.wrap(self.plain)
        self.networks = {"model": self.model}
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}

    @classmethod
    def build(cls, recipe: HubertRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        return Networks(build(recipe, meta=meta), SPEECH_RATE)

    @classmethod
    def check_clip(cls, recipe: HubertRecipe, cut: Cut, source: str) -> None:
        """Raise ConfigError unless a clip's labels are those that the recipe names."""
        require_labels(recipe, cut, source)

    @classmethod
    def remarks(cls, recipe: HubertRecipe, found: Survey) -> Iterator[str]:
        """Remark on clips without labels."""
        if found.with_labels < found.clips:
            yield f"without labels: {found.clips - found.with_labels:,} clips, which are passed over"

    def task(self, batch: Batch, step: int | str) -> Task:
        """Draw a batch's masks: the run's seed, the step and a clip's id alone decide them."""
        frames = self.plain.frames
        hidden = torch.zeros(len(batch.ids), frames, dtype=torch.bool)
        inside = torch.zeros_like(hidden)
        for row, (name, samples) in enumerate(zip(batch.ids, batch.lengths, strict=True)):
            count = frames_within(samples)
            inside[row, :count] = True
            drawn = generator_of("spans", self.recipe.seed, step, name)
            hidden[row, :count] = draw_spans(self.recipe.masking, count, drawn)
        hidden, inside = (part.to(self.engine.device, non_blocking=True) for part in (hidden, inside))
        labels = self._labels(batch, frames)
        known = inside & (labels != NO_LABEL).all(dim=-1)
        return Task(labels.clamp_min(0), hidden, known & hidden, known & ~hidden, inside)

    def _labels(self, batch: Batch, frames: int) -> Tensor:
        if batch.labels is None:
            return torch.full((len(batch.ids), frames, self.recipe.codebooks), NO_LABEL, device=self.engine.device)
        labels = batch.labels[:, :frames, : self.recipe.codebooks]
        return F.pad(labels, (0, 0, 0, frames - labels.shape[1]), value=NO_LABEL)

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update on means over the frames of all micro-batches and processes, counted before the first pass."""
        self.model.train()
        tasks = [self.task(batch, step) for batch in batches]
        counts = all_reduce_(torch.stack([task.counts for task in tasks]).sum(dim=0))
        values: dict[str, Tensor] = {}
        for index, (batch, task) in enumerate(zip(batches, tasks, strict=True)):
            with self.engine.joining(self.model, last=index == len(batches) - 1):
                means = self._compute(batch, task)
                shares = {
                    name: mean.share(counts[COUNTED[name], None], parts=world_size()) for name, mean in means.items()
                }
                shares["loss"] = weighted(shares, self.weights)
                shares["loss"].backward()  # type: ignore[no-untyped-call]
            values = {name: values.get(name, 0.0) + share.detach() for name, share in shares.items()}
        return StepReport(values, {"grad_norm": self.updaters["model"].update(step)})

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure a batch, with the same frames hidden every time."""
        self.model.eval()
        return Measured(self._compute(batch, self.task(batch, VALIDATION)))

    def loss(self, values: Mapping[str, float]) -> float:
        """The weighted sum of losses that training minimises."""
        return float(weighted(values, self.weights))

    def model_config(self) -> dict[str, Any]:
        """The HuBERT's configuration."""
        return self.recipe.model.model_dump(mode="json")

    def _compute(self, batch: Batch, task: Task) -> dict[str, Mean]:
        with self.engine.autocast():
            logits, features = self.model(batch, task.hidden)
        return measures(logits, features, task)


def build(recipe: HubertRecipe, *, meta: bool = False) -> MaskedPrediction:
    """The networks of a recipe with random weights; `meta` builds them without any, to count them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        hubert: Any = transformers_model(
            **recipe.model.model_dump(),
            hidden_dropout=recipe.dropout,
            attention_dropout=recipe.dropout,
            feat_proj_dropout=recipe.dropout,
            activation_dropout=0.0,
            layerdrop=0.0,  # drops a layer's gradients too, for which processes would wait
        )
        head = LabelHead(recipe.model.d_model, recipe)
    if recipe.engine.checkpoint_activations:
        hubert.activation_checkpointing_enable({"use_reentrant": False})
    return MaskedPrediction(hubert, head, recipe)
