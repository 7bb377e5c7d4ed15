"""The interface of a training stage, the table of stages, and one loss out of those of uneven batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from lhotse.cut import Cut
from torch import Tensor, nn

from xycodec.data.batch import Batch, Position, collate
from xycodec.data.catalogue import Tell
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import Corpus, Fact, open_corpus
from xycodec.data.survey import Survey
from xycodec.distributed import all_reduce_, world_size
from xycodec.eval.metrics.wer import WordErrors
from xycodec.io.config import Config
from xycodec.nn.mean import Mean
from xycodec.train.checkpoint import RunState
from xycodec.train.config import RunConfig
from xycodec.train.engine import Engine
from xycodec.train.optimize import Updater


@dataclass(frozen=True)
class StepReport:
    """Losses, gradient norms and code counts of one step, on the device, so that nothing waits for them."""

    values: dict[str, Tensor]
    """Scalars whose average over processes is the value: losses, accuracies."""
    norms: dict[str, Tensor]
    """Gradient norm of each network before clipping, equal on all processes."""
    counts: Tensor | None = None
    """(n_q, codebook_size) uses of every code on this process."""


@dataclass(frozen=True)
class Sound:
    """Audio of the first items of a batch, (B, T) at the stage's output rate, and the samples that belong to each."""

    samples: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """Measures of one validation batch; they add up over batches and processes."""

    means: dict[str, Mean]
    counts: Tensor | None = None
    """(n_q, codebook_size) uses of every code; None where there are no codes."""
    audio: Tensor | None = None
    """(B, T) decoded, zero past each clip's end; None where there is none."""
    words: WordErrors = field(default_factory=lambda: WordErrors(0, 0))
    texts: tuple[str, ...] = ()
    sounds: tuple[Sound, Sound] | None = None
    """Original and decoded audio where a batch has no target to compare with; `audio` is None then."""


@dataclass(frozen=True)
class Networks:
    """The networks of a recipe before an engine has wrapped them."""

    model: Any
    """The module that the stage trains."""
    output_sample_rate: int
    """Rate of the audio that the stage compares with, Hz."""
    discriminators: nn.Module | None = None


@dataclass(frozen=True)
class Needs:
    """A condition on clips: those that do not meet it cannot be learned from, and are passed over."""

    fact: Fact
    lacking: str
    """The rest of the message "no clip has ...", with what to do about it."""


RecipeT = TypeVar("RecipeT", bound=RunConfig)


class Stage(ABC, Generic[RecipeT]):
    """One kind of training: its recipe, its networks and their updates, and what a batch teaches them.

    A stage is one file in `train/stages`, whose class is decorated with `register`. The class methods are asked before
    there is a run, on a recipe alone; an instance is a run's stage, with its networks on their device.
    """

    name: ClassVar[str]
    """Value of a recipe's `stage`."""
    once: ClassVar[tuple[str, ...]] = ()
    """Earlier names, which recipes and checkpoints may still have."""
    recipe_class: ClassVar[type[RunConfig]]
    presets: ClassVar[Mapping[str, Config]] = {}
    """Configurations that `model.preset` of a recipe may name."""
    trains: ClassVar[str] = "codec"
    """Field of a checkpoint that holds `model_config`: `codec`, `recogniser`, `self_supervised`, `autoencoder` or
    `language_model`."""
    needs: ClassVar[Needs | None] = None
    """Condition on the clips that are read; None: all are."""

    recipe: RecipeT
    networks: dict[str, nn.Module]
    """Networks as the engine wrapped them. `model` holds the codec as `codec`, a recogniser as `recogniser`, a HuBERT
    as `hubert`, or an autoencoder as `autoencoder`; `ema` holds the codec's average, if there is one."""
    updaters: dict[str, Updater]
    output_sample_rate: int
    words_name = "wer"
    """Name of `Measured.words` in the metrics."""

    # ---- before the run ------------------------------------------------------------------------

    @abstractmethod
    def __init__(self, recipe: RecipeT, engine: Engine) -> None: ...

    @classmethod
    @abstractmethod
    def build(cls, recipe: RecipeT, *, meta: bool = False) -> Networks:
        """The networks of a recipe with their starting weights; `meta` builds them without any, to count them."""

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run the forward passes of a step once, for a plan to measure the memory that they take."""
        networks.model.train()(batch)

    @classmethod
    def open(cls, recipe: RecipeT, sources: Sequence[SourceConfig], tell: Tell) -> Corpus:
        """Open the clips that the stage reads; `tell` gets a line now and then. Raises ConfigError."""
        return open_corpus(sources, None if cls.needs is None else cls.needs.fact, tell)

    @classmethod
    def silence(cls, recipe: RecipeT, output_sample_rate: int) -> Batch:
        """A batch of nothing, for a process that has no clip left while others do."""
        return collate((), (), Position(0, 0), output_sample_rate=output_sample_rate)

    @classmethod
    def check_clip(cls, recipe: RecipeT, cut: Cut, source: str) -> None:
        """Raise ConfigError if the first clip of `source` that has what the stage needs is not what the recipe says."""

    @classmethod
    def resumed(cls, recipe: RecipeT, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Settings that change when a run goes on from its own checkpoint: sources of weights, above all."""
        return {}

    @classmethod
    def remarks(cls, recipe: RecipeT, found: Survey) -> Iterator[str]:
        """Yield remarks on the data for a person before the first step, a line each. Raises ConfigError."""
        yield from ()

    # ---- the run -------------------------------------------------------------------------------

    @abstractmethod
    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """Learn from the micro-batches of one step, which lie on the device."""

    @abstractmethod
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Compute a validation batch, without gradients and in eval mode."""

    @abstractmethod
    def loss(self, values: Mapping[str, float]) -> float:
        """The loss that validation compares, from the values of `measure`'s means."""

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """The configuration of what is trained, as a checkpoint keeps it under the name `trains`."""

    def kept(self, network: str, key: str) -> bool:
        """Whether a checkpoint holds this tensor; what is frozen and comes from elsewhere need not be in it."""
        return True


STAGES: dict[str, type[Stage[Any]]] = {}
"""Every registered stage by its name and its earlier ones."""
StageT = TypeVar("StageT", bound=Stage[Any])


def register(stage: type[StageT]) -> type[StageT]:
    """Class decorator: put a stage into the table. Raises ValueError if a name is taken."""
    for name in (stage.name, *stage.once):
        if STAGES.setdefault(name, stage) is not stage:
            raise ValueError(f"stage {name!r} is registered already")
    return stage


def joint_values(means: Mapping[str, Mean]) -> dict[str, Tensor]:
    """Close means over all processes, in one collective.

    The average of a result over processes is the mean over all their elements, and so are its gradients.
    """
    counts = all_reduce_(torch.cat([mean.count for mean in means.values()]).clone())
    shares = torch.split(counts, [len(mean.count) for mean in means.values()])
    return {
        name: mean.share(count, parts=world_size()) for (name, mean), count in zip(means.items(), shares, strict=True)
    }


def weighted(values: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """The sum of `values` times their `weights`; a value without a weight is only reported."""
    return sum(weight * values[name] for name, weight in weights.items() if weight)
