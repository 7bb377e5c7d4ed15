"""Probes: one linear layer on a clip's vector, or on frames that are weighed by attention first.

All runs of a task learn side by side, as one batched problem: their sums of gradients never meet. The protocol is
ARCH's: AdamW at 1e-3, batches of 32, warm-up over a tenth of the steps, then linearly down to 0, where each epoch's end
counts as one more step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from xycodec.eval.classify.splits import Run
from xycodec.eval.classify.store import Rows
from xycodec.io.config import Config

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's
WARM_UP = 0.1
FLAT = 1e-5  # a feature that varies less is not brought to variance 1


class ClassifierConfig(Config):
    """Settings of a probe's training; defaults are ARCH's."""

    epochs: PositiveInt = 200
    batch: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    select: Literal["last", "best"] = "last"
    """`last`: the last epoch, which ARCH's code reports in effect; `best`: the one with the lowest validation loss."""
    standardise: bool = False
    """Bring each feature to mean 0 and variance 1 over the training clips: what models give is of unlike size."""
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Fitted:
    """Scores of a run's probe on its test clips, and the epoch that it is of."""

    scores: Tensor
    """(N, classes) float32 logits."""
    epoch: int


class Pooled:
    """One vector a clip: (N, D)."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.width = vectors.shape[1]

    def parameters(self, runs: int) -> dict[str, Tensor]:
        """The parameters that pooling has: none."""
        return {}

    def __call__(self, rows: Tensor, scale: "Scale", parameters: dict[str, Tensor]) -> Tensor:
        """Rows (P, B) of clips -> (P, B, D)."""
        return scale(self.vectors[rows])

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (D,) over clips."""
        chosen = self.vectors[rows].double()
        return chosen.mean(dim=0), chosen.var(dim=0, correction=0)


class Attended:
    """Frames of each clip, whose mean is weighed by the softmax of a linear score."""

    def __init__(self, frames: Sequence[Rows]) -> None:
        self.frames = [torch.from_numpy(one) for one in frames]
        self.width = self.frames[0].shape[1]

    def parameters(self, runs: int) -> dict[str, Tensor]:
        """The linear score's weight for each run; a bias would change nothing."""
        return {"score": torch.zeros(runs, self.width)}

    def __call__(self, rows: Tensor, scale: "Scale", parameters: dict[str, Tensor]) -> Tensor:
        """Rows (P, B) of clips -> (P, B, D)."""
        chosen = [self.frames[row] for row in rows.flatten().tolist()]
        frames = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        inside = torch.arange(frames.shape[1]) < torch.tensor([len(one) for one in chosen])[:, None]
        runs, batch = rows.shape
        frames = scale(frames.reshape(runs, -1, self.width)).view(runs, batch, -1, self.width)
        scores = torch.einsum("pbld,pd->pbl", frames, parameters["score"])
        weights = scores.masked_fill(~inside.view(scores.shape), -math.inf).softmax(dim=-1)
        return torch.einsum("pbl,pbld->pbd", weights, frames)

    def moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (D,) over the frames of clips."""
        chosen = [self.frames[row].double() for row in rows.tolist()]
        count = sum(map(len, chosen))
        mean = torch.stack([one.sum(dim=0) for one in chosen]).sum(dim=0) / count
        squares = torch.stack([(one - mean).square().sum(dim=0) for one in chosen]).sum(dim=0)
        return mean, squares / count


@dataclass(frozen=True)
class Scale:
    """Mean that is taken off each run's features, and the deviation that they are divided by: (P, 1, D) each."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(P, n, D) -> (P, n, D)."""
        return (x - self.mean) / self.deviation


def fit_probes(
    source: Pooled | Attended,
    truth: Tensor,
    runs: Sequence[Run],
    config: ClassifierConfig,
    *,
    several: bool,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Fitted]:
    """Train a probe for each run and score its test clips.

    Args:
        source: the features of all clips.
        truth: (N, classes) float32, 1 where a clip has a label.
        runs: rows of clips to train, choose and test each probe on.
        config: settings.
        several: whether labels are guessed one by one (binary cross-entropy), rather than one of them.
        advance: told the steps that are done, and how many there are.
    """
    if isinstance(source, Attended) and len(runs) > 1:
        # Frames of a batch of all runs at once would take as many times the memory.
        return [
            one for run in runs for one in fit_probes(source, truth, [run], config, several=several, advance=advance)
        ]
    return _Training(source, truth, runs, config, several).fitted(advance)


class _Training:
    """Probes of several runs on their way."""

    def __init__(
        self, source: Pooled | Attended, truth: Tensor, runs: Sequence[Run], config: ClassifierConfig, several: bool
    ) -> None:
        self.source, self.truth, self.config, self.several = source, truth, config, several
        self.runs, self.count = runs, len(runs)
        self.rows = [torch.from_numpy(run.train) for run in runs]
        self.scale = self._scale()
        self.batches = [math.ceil(len(rows) / config.batch) for rows in self.rows]
        self.generators = [torch.Generator().manual_seed(config.seed) for _ in runs]
        bound = 1 / math.sqrt(source.width)

        def drawn(*shape: int) -> Tensor:
            return torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=one) for one in self.generators])

        self.parameters = source.parameters(self.count)
        self.parameters |= {"weight": drawn(source.width, truth.shape[1]), "bias": drawn(1, truth.shape[1])}
        for value in self.parameters.values():
            value.requires_grad_(True)
        self.adam = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.parameters.items()}
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.least = [math.inf] * self.count
        self.epochs = [config.epochs] * self.count

    def _scale(self) -> Scale:
        width = self.source.width
        if not self.config.standardise:
            return Scale(torch.zeros(1, 1, width), torch.ones(1, 1, width))
        means, deviations = [], []
        for rows in self.rows:
            mean, variance = self.source.moments(rows)
            deviation = variance.sqrt()
            means.append(mean.float())
            deviations.append(torch.where(deviation > FLAT * deviation.max(), deviation, 1.0).float())
        return Scale(torch.stack(means)[:, None], torch.stack(deviations)[:, None])

    def fitted(self, advance: Callable[[int, int], None]) -> list[Fitted]:
        """Train to the end, and score."""
        steps = self.config.epochs * max(self.batches)
        taken: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * self.count
        for step in range(steps):
            picked, weights, rates = [], [], []
            for run in range(self.count):
                epoch, place = divmod(step, self.batches[run])
                if place == 0 and epoch < self.config.epochs:
                    rows = self.rows[run]
                    taken[run] = rows[torch.randperm(len(rows), generator=self.generators[run])]
                batch = taken[run][place * self.config.batch :][: self.config.batch]
                rest = self.config.batch - len(batch)
                picked.append(F.pad(batch, (0, rest), value=int(batch[0])))
                weights.append(F.pad(torch.ones(len(batch)), (0, rest)) / len(batch))
                rates.append(self._rate(run, step))
            self._update(torch.stack(picked), torch.stack(weights), torch.tensor(rates), step)
            for run in range(self.count):
                epoch, place = divmod(step + 1, self.batches[run])
                if place == 0 and epoch <= self.config.epochs:
                    self._choose(run, epoch)
            advance(step + 1, steps)
        if self.config.select == "best":
            self.parameters = self.best
        with torch.no_grad():
            tests = [torch.from_numpy(run.test) for run in self.runs]
            return [Fitted(self._logits_of(i, rows), self.epochs[i]) for i, rows in enumerate(tests)]

    def _rate(self, run: int, step: int) -> float:
        """Learning rate of a run's probe, 0 once it has done its epochs."""
        total = self.config.epochs * self.batches[run]
        if step >= total:
            return 0.0
        place = step + step // self.batches[run]  # an epoch's end counts as a step
        warm = WARM_UP * total
        factor = place / warm if place < warm else (total - place) / (total - warm)
        return self.config.lr * max(0.0, factor)

    def _update(self, rows: Tensor, weights: Tensor, rates: Tensor, step: int) -> None:
        """One step of AdamW with a rate of its own for each run, which torch's class has not."""
        loss = (self._losses(self._logits(self.parameters, rows), self.truth[rows]) * weights).sum()
        names = list(self.parameters)
        gradients = torch.autograd.grad(loss, [self.parameters[name] for name in names])
        first, second = (1 - beta ** (step + 1) for beta in BETAS)
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                value, (mean, square) = self.parameters[name], self.adam[name]
                rate = rates.view(-1, *[1] * (value.ndim - 1))
                value.mul_(1 - rate * self.config.weight_decay)
                mean.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square(), 1 - BETAS[1])
                value.sub_(rate * (mean / first) / ((square / second).sqrt() + EPS))

    def _logits(self, parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        pooled = self.source(rows, self.scale, parameters)
        return torch.baddbmm(parameters["bias"], pooled, parameters["weight"])

    def _losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(P, B, classes) twice -> the loss of each clip (P, B)."""
        if self.several:
            return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=-1)
        return -(logits.log_softmax(dim=-1) * truth).sum(dim=-1)

    def _logits_of(self, run: int, rows: Tensor) -> Tensor:
        """Scores (n, classes) of clips by one run's probe."""
        parameters = {name: value[run : run + 1].detach() for name, value in self.parameters.items()}
        shared = len(self.scale.mean) == 1
        scale = self.scale if shared else Scale(self.scale.mean[run : run + 1], self.scale.deviation[run : run + 1])
        parts = []
        for part in torch.split(rows, 512):
            pooled = self.source(part[None], scale, parameters)
            parts.append(torch.baddbmm(parameters["bias"], pooled, parameters["weight"])[0])
        return torch.cat(parts)

    @torch.no_grad()
    def _choose(self, run: int, epoch: int) -> None:
        """Keep a run's probe if none had a lower loss on the validation clips."""
        valid = torch.from_numpy(self.runs[run].valid)
        if self.config.select != "best" or not len(valid):
            return
        loss = float(self._losses(self._logits_of(run, valid)[None], self.truth[valid][None]).mean())
        if loss < self.least[run]:
            self.least[run], self.epochs[run] = loss, epoch
            for name, value in self.parameters.items():
                self.best[name][run] = value[run]


def truth_of(labels: Sequence[tuple[str, ...]], classes: Sequence[str]) -> Tensor:
    """(N, classes) float32, 1 where a clip has the label."""
    places = {name: place for place, name in enumerate(classes)}
    truth = np.zeros((len(labels), len(classes)), np.float32)
    for row, names in zip(truth, labels, strict=True):
        row[[places[name] for name in names]] = 1
    return torch.from_numpy(truth)
