"""Starting a run from a recipe: everything is opened and checked before the first step."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xycodec.checkpoints.training import AVERAGE, checkpoints
from xycodec.data.batch import Batch, Position
from xycodec.data.catalogue import Tell
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import Corpus
from xycodec.data.memory import Memory
from xycodec.data.sources import open_once
from xycodec.data.stream import BatchStream, draw_validation, validation_batches
from xycodec.data.survey import survey
from xycodec.errors import CheckpointError, ConfigError
from xycodec.io.files import os_error_line
from xycodec.train.checkpoint import RunState, load_state, network_state
from xycodec.train.config import RunConfig
from xycodec.train.engine import Engine
from xycodec.train.monitor import Monitor, forget_from, skipped_file
from xycodec.train.recipe_file import save_recipe
from xycodec.train.resume import changes, comparable, told
from xycodec.train.stage import Stage
from xycodec.train.stages import all_stages, stage_of
from xycodec.train.trainer import Trainer, TrainingError
from xycodec.train.validate import validate
from xycodec.train.words import WordJudge


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _no_one(line: str) -> None:
    pass


@dataclass(frozen=True)
class Ended:
    """The end of a run: its last step, and whether it has done all of them."""

    step: int
    finished: bool
    """False if it was stopped, to be resumed."""
    best: float | None


def train(recipe: RunConfig, *, resume: bool = False, quiet: bool = False) -> Ended:
    """Run a recipe to its end, or until SIGTERM, Ctrl-C or its limit of minutes.

    `resume` goes on from the newest checkpoint in the run's folder, or begins where there is none. Raises an
    XycodecError, one line, on anything that does not fit, before the first step where that is possible.
    """
    try:
        return _train(recipe, Path(recipe.output), resume, quiet)
    except torch.OutOfMemoryError:
        raise TrainingError(
            "out of memory on the device: lower data.batch_clips or data.batch_seconds (engine.accumulate makes up "
            "for it), or set engine.checkpoint_activations"
        ) from None
    except OSError as error:
        place = error.filename or recipe.output
        raise TrainingError(f"{place}: {error.strerror or error}: see to the disk, --resume goes on") from None


def _train(recipe: RunConfig, run: Path, resume: bool, quiet: bool) -> Ended:
    data = recipe.data
    state = _state(recipe, run, resume)
    engine = Engine(recipe.engine)
    monitor = None
    try:
        if recipe.anneal == "minutes" and engine.world_size > 1:
            raise ConfigError("anneal: minutes is for one process, whose clock all of the run follows: use steps")
        # Corpora first: they are quickly found to be missing.
        tell = _no_one if quiet else _to_stderr
        corpus = open_cuts(recipe, data.train, tell)
        valid = open_cuts(recipe, data.valid, tell) if data.valid else None
        stage = open_stage(_starting(recipe, run, state), engine)
        memory = _memory(recipe, engine, stage.output_sample_rate)
        batches = _Batches(recipe, engine, stage.output_sample_rate, corpus, valid, memory)
        recogniser = recipe.validation.recogniser
        word_judge = None if recogniser is None else WordJudge(recogniser, run, engine.device)
        trainer = Trainer(recipe, stage, engine, batches.stream, batches.validation, run, word_judge)
        said = list(remarks(recipe, corpus, stage.output_sample_rate))
        if memory is not None:
            said.append(memory.remark)
        if state is not None:
            said += _restore(trainer, state, run, batches)
            state = None  # all its tensors
        # Nothing of an earlier run is touched before all fits.
        if engine.leads:
            monitor = trainer.monitor = _open_run(recipe, run, trainer.step, quiet)
            for line in said:
                monitor.say(line)
        forget_from(skipped_file(run), trainer.step)
        finished = trainer.train()
        return Ended(trainer.step, finished, trainer.best)
    finally:
        if monitor is not None:
            monitor.close()
        engine.close()


def measure(recipe: RunConfig, *, resume: bool = False) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Validate a recipe's initial weights or, with `resume`, those of its run's newest checkpoint: values, weights.

    The weights are the whole model's, on the CPU, averages where the run keeps some. Raises as `train` does, and
    ConfigError if `data.valid` gives no clip.
    """
    run = Path(recipe.output)
    state = _state(recipe, run, resume)
    engine = Engine(recipe.engine)
    try:
        valid = open_cuts(recipe, recipe.data.valid)
        stage = open_stage(_starting(recipe, run, state), engine)
        batches = _Batches(recipe, engine, stage.output_sample_rate, valid, valid)
        if state is not None:
            _restore(Trainer(recipe, stage, engine, batches.stream, batches.validation, run), state, run, batches)
        result = validate(stage, engine, batches.validation(), recipe.validation)
        if result is None:
            raise ConfigError("data.valid: no clip of it can be used: name others")
        weights = network_state(stage.networks["model"], partial(stage.kept, "model"))
        if AVERAGE in stage.networks:
            weights |= network_state(stage.networks[AVERAGE], lambda key: True)
        return result.values, {key: value.clone() for key, value in weights.items()}
    finally:
        engine.close()


def _memory(recipe: RunConfig, engine: Engine, output_sample_rate: int) -> Memory | None:
    if not recipe.data.in_memory:
        return None
    return Memory.load(open_once(recipe.data.train), output_sample_rate=output_sample_rate, device=engine.device)


def _open_run(recipe: RunConfig, run: Path, step: int, quiet: bool) -> Monitor:
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(save_recipe(recipe), encoding="utf-8")
        return Monitor(run, step, recipe.steps, quiet=quiet)
    except OSError as error:
        raise ConfigError(os_error_line(f"output {run}", "written", error)) from None


def _restore(trainer: Trainer, state: RunState, run: Path, batches: "_Batches") -> list[str]:
    """Restore a trainer from a checkpoint; returns one line for each difference from it."""
    try:
        trainer.restore(state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoints(run)[-1]}: {error}") from None
    changed = changes(state, trainer.recipe)
    if not comparable(state, changed, batches.measures_all):
        trainer.best = None
    start = batches.resumed(trainer.position)
    return list(told(state, changed, trainer.engine.world_size, start, trainer.best))


def open_stage(recipe: RunConfig, engine: Engine) -> Stage[Any]:
    """The stage that a recipe names, with its networks on their device."""
    return stage_of(recipe)(recipe, engine)


def open_cuts(recipe: RunConfig, sources: Sequence[SourceConfig], tell: Tell = _to_stderr) -> Corpus:
    """The clips that a stage reads: those that have what it needs.

    Raises ConfigError if nothing can be read, no clip is left, or labels are not those that the recipe names.
    """
    stage = stage_of(recipe)
    corpus = stage.open(recipe, sources, tell)
    if stage.needs is None:
        return corpus
    parts: Sequence[Any] = corpus.catalogues
    having = [np.flatnonzero(part.facts[stage.needs.fact]) for part in parts]
    if not any(map(len, having)):
        raise ConfigError(f"{', '.join(source.path for source in sources)}: no clip has {stage.needs.lacking}")
    for source, part, numbers in zip(sources, parts, having, strict=True):
        if len(numbers):
            stage.check_clip(recipe, part[int(numbers[0])], source.path)
    return corpus


def _state(recipe: RunConfig, run: Path, resume: bool) -> RunState | None:
    found = checkpoints(run)
    if found and not resume:
        raise ConfigError(f"{run}: holds a run already: pass --resume to go on, or choose another output")
    if not found:
        return None
    state = load_state(found[-1])
    if all_stages().get(state.stage) is not stage_of(recipe):
        raise CheckpointError(f"{found[-1]}: a {state.stage} run cannot go on as {recipe.stage}: choose another output")
    return state


def _starting(recipe: RunConfig, run: Path, state: RunState | None) -> RunConfig:
    """The recipe as it starts: a resumed run takes weights from its own checkpoint and from nowhere else."""
    if state is None:
        return recipe
    return recipe.model_copy(update=stage_of(recipe).resumed(recipe, checkpoints(run)[-1], state))


class _Batches:
    """This process's share of the recipe's data."""

    def __init__(
        self,
        recipe: RunConfig,
        engine: Engine,
        output_sample_rate: int,
        train: Corpus,
        valid: Corpus | None,
        memory: Memory | None = None,
    ) -> None:
        self._config, self._valid = recipe.data, valid
        self._share = {
            "output_sample_rate": output_sample_rate, "rank": engine.rank, "world_size": engine.world_size,
        }  # fmt: skip
        self._train = BatchStream(train, recipe.data, seed=recipe.seed, memory=memory, **self._share)
        self.resumed = self._train.resumed
        self.measures_all = True
        """Whether validation takes all clips that it could."""
        if valid is not None:
            drawn = draw_validation(valid, recipe.data, output_sample_rate, recipe.seed)
            self._drawn = drawn[: recipe.validation.clips]
            self.measures_all = len(self._drawn) == len(drawn)

    def stream(self, start: Position) -> Iterator[Batch]:
        """Endless batches of this process."""
        return self._train.batches(start)

    def validation(self) -> Iterator[Batch]:
        """This process's share of the validation clips."""
        if self._valid is None:
            return iter(())
        return validation_batches(self._valid, self._drawn, self._config, **self._share)


def remarks(recipe: RunConfig, corpus: Corpus, output_sample_rate: int) -> Iterator[str]:
    """Remarks on the training data for a person before the first step, a line each.

    Raises ConfigError if the stage can learn nothing from them.
    """
    found = survey(corpus, recipe.data, output_sample_rate)
    own = list(stage_of(recipe).remarks(recipe, found))
    yield f"data: {found.clips:,} clips, {found.hours:,.2f} h, {found.with_text:,} with text"
    for left in found.left_out:
        yield f"left out: {left.clips:,} clips {left.reason}, the first is {left.first_id}"
    yield from own
