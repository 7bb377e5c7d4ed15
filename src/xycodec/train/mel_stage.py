"""Shared base of the stages whose network gives audio, and whose only loss is its mel distance to the clip's."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from xycodec.data.batch import Batch
from xycodec.io.config import Config
from xycodec.nn.mean import Mean
from xycodec.train.config import RunConfig
from xycodec.train.engine import Engine
from xycodec.train.stage import Measured, Stage, StepReport, joint_values

RecipeT = TypeVar("RecipeT", bound=RunConfig)


class MelStage(Stage[RecipeT], Generic[RecipeT]):
    """A stage that trains one network by its mel distance.

    The network gives, of a batch, total and count of the distance's `Mean`, and the audio (B, T).
    """

    engine: Engine
    config: Config
    model: nn.Module
    """The network that is trained, as the engine wrapped it."""
    measured: nn.Module
    """The network that validations hear: the same, or its average."""

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update of the network from all micro-batches."""
        self.model.train()
        mel = torch.zeros((), device=self.engine.device)
        for index, batch in enumerate(batches):
            with self.engine.joining(self.model, last=index == len(batches) - 1):
                with self.engine.autocast():
                    total, count, _ = self.model(batch)
                value = joint_values({"mel": Mean(total, count)})["mel"] / len(batches)
                torch.autograd.backward(value)
            mel = mel + value.detach()
        return StepReport({"mel": mel, "loss": mel}, {"grad_norm": self.updaters["model"].update(step)})

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure the mel distance; there are no codes to count."""
        self.measured.eval()
        with self.engine.autocast():
            total, count, audio = self.measured(batch)
        return Measured({"mel": Mean(total, count)}, audio=audio)

    def loss(self, values: Mapping[str, float]) -> float:
        """The mel distance of a validation."""
        return values["mel"]

    def model_config(self) -> dict[str, Any]:
        """The configuration of what is trained."""
        return self.config.model_dump(mode="json")
