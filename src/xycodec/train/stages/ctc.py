"""Stage `ctc`: a tower learns to recognise characters, as a start for a codec's semantic tower."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from lhotse.cut import Cut
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.data.batch import Batch
from xycodec.data.sources import open_once
from xycodec.data.survey import Survey
from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import ConfigError
from xycodec.eval.metrics.wer import WordErrors, character_errors, normalise, word_error_rate
from xycodec.io.config import Config, Probability
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import CONFIGS, RecogniserConfig
from xycodec.models.xy_tokenizer.ctc import BLANK, Recogniser, frames_needed, tower_frames
from xycodec.nn.mean import Mean
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, RunConfig, refuse_listening
from xycodec.train.engine import Engine
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Needs, Networks, Stage, StepReport, register

# ---- the recipe ----------------------------------------------------------------------------------


class MaskingConfig(Config):
    """Stretches of time and of frequency that are hidden from a recogniser in training (SpecAugment, Park 2019)."""

    time_masks: NonNegativeInt = 2
    time_frames: PositiveInt = 40
    """The longest one, in log-mel frames of 10 ms."""
    time_share: Probability = 0.1
    """The longest one as a share of its clip: one that takes a whole word teaches guessing."""
    frequency_masks: NonNegativeInt = 2
    frequency_bins: PositiveInt = 15
    """The widest one, in mel bins."""


class CtcRecipe(RunConfig):
    """A tower learns to recognise characters (CTC), for a codec's semantic tower to start from."""

    stage: Literal["ctc"]
    tower: TowerConfig
    n_mels: PositiveInt = 80
    window_frames: PositiveInt = 375
    """Code frames of 80 ms, as many as the codec's window has."""
    characters: Annotated[str, Field(min_length=1)] | None = None
    """Output characters in lower case, with the space; null: those of the training texts. Others are left out."""
    masking: MaskingConfig = MaskingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _no_average(self) -> "CtcRecipe":
        refuse_listening(self)
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        return self


def normalised(text: str | None) -> str:
    """The one form in which texts are learned and compared: as in word error rates, but with apostrophes."""
    return normalise(text or "", apostrophe="'")


# ---- what is learned ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets:
    """Target characters of a batch; all of it lies on the CPU."""

    columns: Tensor
    """(B, N) int64, N >= 1: characters of each item, followed by zeros."""
    lengths: tuple[int, ...]
    """Characters of each item; 0 where it has no text, or more of it than its frames can spell."""

    @property
    def count(self) -> Tensor:
        """(1,) float32 characters in all."""
        return torch.tensor([float(sum(self.lengths))])


def targets_of(batch: Batch, recogniser: Recogniser) -> Targets:
    """The texts of a batch as columns of the recogniser's output."""
    spelt = [recogniser.alphabet.spell(normalised(text)) for text in batch.texts]
    frames = tower_frames(batch.lengths)
    kept = [text if frames_needed(text) <= count else [] for text, count in zip(spelt, frames, strict=True)]
    width = max(1, *map(len, kept))
    columns = torch.tensor([text + [BLANK] * (width - len(text)) for text in kept])
    return Targets(columns, tuple(map(len, kept)))


def ctc(log_probs: Tensor, lengths: Sequence[int], targets: Targets) -> Mean:
    """CTC loss, nats a character: minus the log-probability that the frames (B, L, C) of clips spell the targets.

    `lengths` are the clips' samples.
    """
    device = log_probs.device
    with torch.autocast(device.type, enabled=False):
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            targets.columns.to(device, non_blocking=True),
            torch.tensor(tower_frames(lengths)),
            torch.tensor(targets.lengths),
            blank=BLANK,
            reduction="none",
        )
    # An item without a target would learn to be silent, which no one said.
    counted = torch.tensor([count > 0 for count in targets.lengths]).to(device, non_blocking=True)
    return Mean(losses.where(counted, 0.0).sum()[None], targets.count.to(device, non_blocking=True))


def draw_masks(config: MaskingConfig, lengths: Sequence[int], n_mels: int, width: int) -> Tensor:
    """(B, n_mels, width) bool on the CPU, True where log-mels of clips of `lengths` samples are hidden."""
    frames = 2 * torch.tensor(tower_frames(lengths))
    bins = torch.full_like(frames, n_mels)
    longest = (config.time_share * frames).floor().clamp_max(config.time_frames)
    widest = bins.clamp_max(config.frequency_bins)
    time = _stretches(frames, longest, config.time_masks, width)
    frequency = _stretches(bins, widest, config.frequency_masks, n_mels)
    return time[:, None, :] | frequency[:, :, None]


def _stretches(sizes: Tensor, longest: Tensor, count: int, width: int) -> Tensor:
    """(B, width): `count` stretches of 0 to `longest` (B,) places anywhere in the first `sizes` (B,)."""
    draws = torch.rand(2, len(sizes), count)
    lengths = (draws[0] * (longest[:, None] + 1)).floor()
    starts = (draws[1] * (sizes[:, None] - lengths + 1)).floor()
    place = torch.arange(width)
    return ((place >= starts[..., None]) & (place < (starts + lengths)[..., None])).any(dim=1)


# ---- the networks and the stage ----------------------------------------------------------------


class Recognition(nn.Module):
    """The recogniser with SpecAugment in training, which hides parts of its log-mels."""

    def __init__(self, recogniser: Recogniser, masking: MaskingConfig) -> None:
        super().__init__()
        self.recogniser, self.masking = recogniser, masking

    def forward(self, batch: Batch) -> Tensor:
        """Log-probabilities (B, L, 1 + characters) of every row."""
        mel = self.recogniser.log_mel(batch.audio, batch.lengths)
        if self.training:
            hidden = draw_masks(self.masking, batch.lengths, mel.shape[1], mel.shape[2])
            # About the middle of a log-mel's range.
            mel = mel.masked_fill(hidden.to(mel.device, non_blocking=True), 0.0)
        log_probs: Tensor = self.recogniser(mel, batch.lengths)
        return log_probs


@register
class CtcStage(Stage[CtcRecipe]):
    """The stage that trains a recogniser of characters."""

    name = "ctc"
    once = ("recognise",)
    recipe_class = CtcRecipe
    presets: ClassVar[Mapping[str, Config]] = CONFIGS
    trains = "recogniser"
    needs = Needs("text", "a text, which a recogniser learns from: add texts, or other sources")

    def __init__(self, recipe: CtcRecipe, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.output_sample_rate = SPEECH_RATE
        model = build(recipe)
        self.recogniser = model.recogniser
        self.model = engine.wrap(model)
        self.networks = {"model": self.model}
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}

    @classmethod
    def build(cls, recipe: CtcRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        return Networks(build(recipe, meta=meta), SPEECH_RATE)

    @classmethod
    def resumed(cls, recipe: CtcRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Take the characters of the outputs from the checkpoint: the corpus's texts may have changed."""
        return {} if state.recogniser is None else {"characters": state.recogniser["characters"]}

    @classmethod
    def remarks(cls, recipe: CtcRecipe, found: Survey) -> Iterator[str]:
        """Remark on clips without text."""
        if found.with_text < found.clips:
            yield f"without text: {found.clips - found.with_text:,} clips, which are passed over"

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update on the mean over all characters of micro-batches and processes, counted before the first pass."""
        self.model.train()
        targets = [targets_of(batch, self.recogniser) for batch in batches]
        count = all_reduce_(torch.stack([target.count for target in targets]).sum(dim=0).to(self.engine.device))
        loss = torch.zeros((), device=self.engine.device)
        for index, (batch, target) in enumerate(zip(batches, targets, strict=True)):
            with self.engine.joining(self.model, last=index == len(batches) - 1):
                share = ctc(self._compute(batch), batch.lengths, target).share(count, parts=world_size())
                share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        return StepReport({"loss": loss}, {"grad_norm": self.updaters["model"].update(step)})

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Loss, and errors of characters and words over all clips with text: reading costs nothing here."""
        self.model.eval()
        log_probs = self._compute(batch)
        heard = self.recogniser.read(log_probs, batch.lengths)
        pairs = [(said, got) for text, got in zip(batch.texts, heard, strict=True) if (said := normalised(text))]
        loss = ctc(log_probs, batch.lengths, targets_of(batch, self.recogniser))
        words = word_error_rate([said for said, _ in pairs], [got for _, got in pairs]) if pairs else WordErrors(0, 0)
        means = {"loss": loss, "cer": _character_errors(pairs, self.engine.device)}
        return Measured(means, words=words, texts=tuple(heard) if transcribe else ())

    def loss(self, values: Mapping[str, float]) -> float:
        """The CTC loss per character."""
        return values["loss"]

    def model_config(self) -> dict[str, Any]:
        """The recogniser's configuration: sizes and characters."""
        return self.recogniser.config.model_dump(mode="json")

    def _compute(self, batch: Batch) -> Tensor:
        with self.engine.autocast():
            log_probs: Tensor = self.model(batch)
        return log_probs


def _character_errors(pairs: Sequence[tuple[str, str]], device: torch.device) -> Mean:
    """Character error rate of the transcripts."""
    counts = character_errors([said for said, _ in pairs], [heard for _, heard in pairs], str)
    return Mean(*torch.tensor([[counts.errors], [counts.characters]], dtype=torch.float32, device=device))


# ---- building ----------------------------------------------------------------------------------


def build(recipe: CtcRecipe, *, meta: bool = False) -> Recognition:
    """The networks of a recipe with random weights; `meta` builds them without any, to count them.

    Raises ConfigError if there are no characters to learn, or clips may be longer than the window.
    """
    config = RecogniserConfig(
        n_mels=recipe.n_mels,
        window_frames=recipe.window_frames,
        tower=recipe.tower,
        characters=_characters(recipe),
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        recogniser = Recogniser(config)
    window = recogniser.window_samples / SPEECH_RATE
    if recipe.data.clip_seconds > window:
        raise ConfigError(
            f"data.clip_seconds: {recipe.data.clip_seconds:g} s is longer than the window of {window:g} s: "
            "lower it, or raise window_frames"
        )
    return Recognition(recogniser, recipe.masking)


def _characters(recipe: CtcRecipe) -> str:
    if recipe.characters is None:
        return collect_characters(open_once(recipe.data.train))
    for character in recipe.characters:
        if character != " " and normalised(character) != character:
            raise ConfigError(
                f"characters: {character!r} is in no text once it is normalised: "
                "give lower case, and of punctuation the apostrophe alone"
            )
    if len(set(recipe.characters)) < len(recipe.characters):
        raise ConfigError("characters: one is given twice: give each once")
    return recipe.characters


def collect_characters(cuts: Iterable[Cut]) -> str:
    """Characters of the normalised texts, sorted. Raises ConfigError if there is no text."""
    found = {character for cut in cuts for words in cut.supervisions for character in normalised(words.text)}
    if not found - {" "}:
        raise ConfigError("data.train: no clip has a text, from which characters are learned: add texts")
    return "".join(sorted(found | {" "}))
