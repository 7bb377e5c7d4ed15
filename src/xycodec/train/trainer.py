"""The training loop: steps, records, validation, checkpoints, and an orderly end."""

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xycodec.checkpoints.training import checkpoints
from xycodec.data.batch import BEGINNING, Batch, Position
from xycodec.distributed import all_reduce_, rank, world_size
from xycodec.errors import CheckpointError, XycodecError
from xycodec.nn.quantize import codebook_perplexity, codebook_usage
from xycodec.train.checkpoint import (
    GO_ON,
    RunState,
    load_network,
    load_optimizer,
    network_state,
    optimizer_state,
    save_state,
)
from xycodec.train.config import RunConfig
from xycodec.train.engine import Engine
from xycodec.train.monitor import Monitor, record_skipped, skipped_file
from xycodec.train.stage import Stage
from xycodec.train.validate import validate
from xycodec.train.words import WordJudge


class TrainingError(XycodecError):
    """A run that cannot go on."""


@dataclass(frozen=True)
class _Pending:
    """A step that the device may still be computing."""

    step: int
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor
    """On the host once `ready`: averages over processes, then sums of audio seconds, skipped clips, wishes to stop."""
    ready: Any
    waited: float
    """Seconds spent waiting for data."""


class Trainer:
    """Runs a stage from where it stands to `recipe.steps`.

    The host never waits for the step it has just issued: numbers of a step are read while the next one computes, and
    with them whether they are finite and whether a process was told to stop.
    """

    def __init__(
        self,
        recipe: RunConfig,
        stage: Stage[Any],
        engine: Engine,
        stream: Callable[[Position], Iterator[Batch]],
        validation: Callable[[], Iterator[Batch]],
        run: Path,
        word_judge: WordJudge | None = None,
    ) -> None:
        self.recipe, self.stage, self.engine, self.run = recipe, stage, engine, run
        self._word_judge = word_judge
        self._stream, self._validation = stream, validation
        self.monitor: Monitor | None = None
        self.step = 0
        self.best: float | None = None
        """Lowest validation loss so far."""
        self.position = BEGINNING
        """Position of the stream of batches."""
        self._pending: deque[_Pending] = deque()
        self._window = _Window()
        self._stop_wished = self._stopping = False
        self._saved_at = -1
        self._from = 0  # the step at which this process began

    # ---- state ---------------------------------------------------------------------------------

    def restore(self, state: RunState) -> None:
        """Continue where a checkpoint stands. Raises CheckpointError if it is of another architecture."""
        for name in sorted(self.stage.networks.keys() ^ state.networks.keys()):
            verb = "lacks" if name in self.stage.networks else "has"
            raise CheckpointError(f"of a run that {verb} the network {name!r}, unlike the recipe: {GO_ON}")
        for name, network in self.stage.networks.items():
            load_network(network, state.networks[name], partial(self.stage.kept, name))
        for name, updater in self.stage.updaters.items():
            load_optimizer(updater.network, updater.optimizer, state.optimizers[name])
        self.step, self.best = state.step, state.best
        self.position = Position(state.epoch, state.batch, tuple(state.taken), state.order)
        self._saved_at = self._from = state.step

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint of the steps that are done. Every process takes part, process 0 writes."""
        if self._saved_at == self.step and not best:
            return
        state = RunState(
            stage=self.stage.name,
            step=self.step,
            epoch=self.position.epoch,
            batch=self.position.batch,
            taken=self.position.taken,
            order=self.position.order,
            processes=self.engine.world_size,
            best=self.best,
            recipe=self.recipe.model_dump(mode="json"),
            networks={
                name: network_state(network, partial(self.stage.kept, name))
                for name, network in self.stage.networks.items()
            },
            optimizers={
                name: optimizer_state(updater.network, updater.optimizer)
                for name, updater in self.stage.updaters.items()
            },
            **({"codec": None} | {self.stage.trains: self.stage.model_config()}),
        )
        if self.monitor is not None:
            self.monitor.flush()
        if self.engine.leads:
            self._require_whole(state)
            save_state(self.run, state, self.recipe.checkpoint.keep, best)
        self._saved_at = self.step

    # ---- the loop ------------------------------------------------------------------------------

    def train(self) -> bool:
        """Run to the last step; False if the run was stopped before it, to be resumed.

        Raises TrainingError at a loss or gradient that is not finite, CheckpointError if none can be written.
        """
        batches = self._stream(self.position)
        started = time.monotonic()
        before = _on_signals(self._wish_to_stop)
        try:
            while self.step < self.recipe.steps and not self._stopping:
                self._one_step(batches)
                if self.recipe.minutes is not None:
                    share = (time.monotonic() - started) / (60 * self.recipe.minutes)
                    self._stop_wished |= share > 1
                    if self.recipe.anneal == "minutes":
                        self._expect(share)
                self._after_step()
            self._settle(0)
            self.save()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.step >= self.recipe.steps

    def _expect(self, share: float) -> None:
        """Make schedules end where the run will, of whose time `share` is spent; earlier processes' steps took none."""
        last = self._from + round((self.step - self._from) / max(share, 1e-9))
        for updater in self.stage.updaters.values():
            updater.steps = min(self.recipe.steps, max(self.step, last))

    def _wish_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_wished = True

    def _one_step(self, batches: Iterator[Batch]) -> None:
        began = time.perf_counter()
        taken = [next(batches) for _ in range(self.recipe.engine.accumulate)]
        waited = time.perf_counter() - began
        seed_step(self.recipe.seed, self.step)
        report = self.stage.step([batch.to(self.engine.device) for batch in taken], self.step)
        self.step += 1
        self.position = taken[-1].position
        values = report.values | report.norms
        # Gradient norms are equal on all processes already; so is their average.
        skipped = [clip for batch in taken for clip in batch.skipped]
        sums = [float(sum(batch.seconds for batch in taken)), float(len(skipped)), float(self._stop_wished)]
        packed = torch.cat(
            [
                torch.stack([value.detach().float() for value in values.values()]) / world_size(),
                torch.tensor(sums, pin_memory=self._on_cuda).to(self.engine.device, non_blocking=True),
            ]
        )
        all_reduce_(packed)
        ids = tuple(id for batch in taken for id in batch.ids)
        self._pending.append(_Pending(self.step, ids, tuple(values), *self._to_host(packed), waited))
        if report.counts is not None:
            self._window.count(report.counts)
        if skipped:
            record_skipped(self.run, self.step, skipped)

    @property
    def _on_cuda(self) -> bool:
        return self.engine.device.type == "cuda"

    def _to_host(self, values: Tensor) -> tuple[Tensor, Any]:
        """A copy that is under way, and the event that says when it has arrived."""
        if not self._on_cuda:
            return values, None
        copy = torch.empty_like(values, device="cpu", pin_memory=True)
        copy.copy_(values, non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return copy, event

    def _after_step(self) -> None:
        recipe, step = self.recipe, self.step
        last = step == recipe.steps
        self._settle(0 if last else 1)
        if last or step % recipe.log_every == 0:
            self._log()
        if last or step % recipe.validation.every == 0:
            self._settle(0)
            began = time.perf_counter()
            self._validate()
            # The clock of the window must not count what was no training.
            self._window.pause(time.perf_counter() - began)
        elif step % recipe.checkpoint.every == 0:
            self._settle(0)
            self.save()

    # ---- reading what has been computed --------------------------------------------------------

    def _settle(self, leave: int) -> None:
        """Read losses of all steps but the last `leave`; one that is not finite ends the run before a checkpoint."""
        while len(self._pending) > leave:
            pending = self._pending.popleft()
            if pending.ready is not None:
                pending.ready.synchronize()
            *numbers, seconds, skipped, stop = pending.values.tolist()
            values = dict(zip(pending.names, numbers, strict=True))
            self._require_finite(pending, values)
            self._stopping |= stop > 0
            self._window.add(values, seconds, int(skipped), pending.waited)
            if self.monitor is not None:
                self.monitor.record(pending.step, values)

    def _require_finite(self, pending: _Pending, values: dict[str, float]) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            return
        place = self.run / f"not_finite_step{pending.step}_rank{rank()}.json"
        # JSON has no word for NaN.
        told = {name: str(value) if name in broken else value for name, value in values.items()}
        place.write_text(json.dumps({"step": pending.step, "values": told, "clips": pending.ids}, indent=2) + "\n")
        raise TrainingError(
            f"step {pending.step}: {', '.join(broken)} not finite, {place} names the batch's clips: "
            f"leave them out or lower the learning rate{self._way_back()}"
        )

    def _require_whole(self, state: RunState) -> None:
        """Raise TrainingError unless the weights are finite: losses are computed before the step that changed them."""
        for name, tensors in state.networks.items():
            for key, value in tensors.items():
                if value.is_floating_point() and not value.isfinite().all():
                    raise TrainingError(
                        f"step {self.step}: {key} of the {name} is not finite, and not saved: "
                        f"lower the learning rate{self._way_back()}"
                    )

    def _way_back(self) -> str:
        last = checkpoints(self.run)
        return f"; the run can resume from {last[-1]}" if last else "; no checkpoint had been written"

    def _log(self) -> None:
        counts = self._window.counts
        if counts is not None:
            counts = all_reduce_(counts.clone())
        if self._window.silent:
            raise TrainingError(
                f"step {self.step}: no clip of the last {self._window.steps} steps could be read, "
                f"{skipped_file(self.run)} says why"
            )
        if self.monitor is not None and self._window.steps:
            values = self._window.summary()
            if counts is not None:
                values["codes_used"] = float(codebook_usage(counts).mean())
                values["perplexity"] = float(codebook_perplexity(counts).mean())
            values["lr"] = self.stage.updaters["model"].optimizer.param_groups[0]["lr"]
            self.monitor.record(self.step, values, kind="window")
            self.monitor.progress(self.step, values)
        self._window = _Window()

    # ---- validation and checkpoints ------------------------------------------------------------

    def _validate(self) -> None:
        result = validate(self.stage, self.engine, self._validation(), self.recipe.validation, self._word_judge)
        if result is None:
            self.save()
            return
        loss = result.values["loss"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the validation loss is {loss}: lower the learning rate{self._way_back()}"
            )
        # Before the checkpoint: a run that is killed between the two records it again.
        if self.monitor is not None:
            self.monitor.validation(self.step, result.values)
            if result.counts is not None:
                self.monitor.histogram(self.step, result.counts)
            rate = self.stage.output_sample_rate
            for name, original, decoded in result.clips:
                self.monitor.listen(self.step, name, original, decoded, rate)
            if result.transcripts:
                self.monitor.text(self.step, result.transcripts)
            if result.decoded_transcripts:
                self.monitor.text(self.step, result.decoded_transcripts, "decoded transcripts")
        best = self.best is None or loss < self.best
        if best:
            self.best = loss
        self.save(best=best)


class _Window:
    """Sums over the steps since the last line of progress."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.steps = 0
        self._totals: dict[str, float] = {}
        self._seconds = self._waited = 0.0
        self._skipped = 0
        self.counts: Tensor | None = None

    def add(self, values: dict[str, float], seconds: float, skipped: int, waited: float) -> None:
        self.steps += 1
        self._skipped += skipped
        self._seconds += seconds
        self._waited += waited
        for name, value in values.items():
            self._totals[name] = self._totals.get(name, 0.0) + value

    def count(self, counts: Tensor) -> None:
        self.counts = counts if self.counts is None else self.counts + counts

    @property
    def silent(self) -> bool:
        """Whether there were steps but no audio in them."""
        return self.steps > 0 and self._seconds == 0

    def pause(self, seconds: float) -> None:
        self._began += seconds

    def summary(self) -> dict[str, float]:
        """Averages over steps, seconds of audio a second, share of time spent waiting for data, clips left out."""
        passed = max(time.perf_counter() - self._began, 1e-9)
        averages = {name: total / self.steps for name, total in self._totals.items()}
        speed = {"audio_s_per_s": self._seconds / passed, "waiting": self._waited / passed}
        return averages | speed | ({"skipped": float(self._skipped)} if self._skipped else {})


def seed_step(seed: int, step: int) -> None:
    """Seed the random numbers of a step from the run's seed, the step and the process, so that none need be saved."""
    state = np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let SIGTERM and Ctrl-C end the run in order; returns the handlers that were there."""
    return {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
