"""What the trainer asks of a stage, and how losses of uneven batches become one loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xycodec.data.batch import Batch
from xycodec.distributed import all_reduce_, world_size
from xycodec.eval.metrics.wer import WordErrors
from xycodec.nn.mean import Mean
from xycodec.train.optimize import Updater


@dataclass(frozen=True)
class StepReport:
    """What one step tells. Every tensor stays on the device, so that nothing waits for it."""

    values: dict[str, Tensor]
    """Scalars whose average over processes is the value: losses, accuracies."""
    norms: dict[str, Tensor]
    """Gradient norm of each network before clipping, equal on all processes."""
    counts: Tensor | None = None
    """(n_q, codebook_size) uses of every code on this process."""


@dataclass(frozen=True)
class Measured:
    """What one validation batch tells; it adds up over batches and processes."""

    means: dict[str, Mean]
    counts: Tensor | None = None
    """(n_q, codebook_size) uses of every code; None where there are no codes."""
    audio: Tensor | None = None
    """(B, T) decoded, zero past each clip's end; None where there is none."""
    words: WordErrors = field(default_factory=lambda: WordErrors(0, 0))
    texts: tuple[str, ...] = ()


class Stage(ABC):
    """One kind of training: networks, their updates, and what a batch teaches them."""

    name: str
    networks: dict[str, nn.Module]
    """As the engine wrapped them. `model` holds the codec as `codec`, a recogniser as `recogniser`, or a HuBERT as
    `hubert`; `ema` holds the codec's average, if there is one."""
    updaters: dict[str, Updater]
    output_sample_rate: int
    words_name = "wer"
    """What `Measured.words` are called."""

    @abstractmethod
    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """Learn from the micro-batches of one step, which lie on the device."""

    @abstractmethod
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Compute a validation batch, without gradients and in eval mode."""

    @abstractmethod
    def loss(self, values: Mapping[str, float]) -> float:
        """The loss that validation compares, from the values of `measure`'s means."""

    def codec_config(self) -> dict[str, Any] | None:
        """The configuration of the codec that is trained, if it is one."""
        return None

    def recogniser_config(self) -> dict[str, Any] | None:
        """The configuration of the recogniser that is trained, if it is one."""
        return None

    def self_supervised_config(self) -> dict[str, Any] | None:
        """The configuration of the self-supervised model that is trained, if it is one."""
        return None

    def kept(self, network: str, key: str) -> bool:
        """Whether a checkpoint holds this tensor; what is frozen and comes from elsewhere need not be in it."""
        return True


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
