"""From a recipe to a run: everything is opened and checked before the first step."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from xycodec.data.batch import Batch, Position
from xycodec.data.sources import Cuts, open_sources
from xycodec.data.stream import BatchStream, validation_batches
from xycodec.data.survey import Survey, survey
from xycodec.errors import CheckpointError, ConfigError
from xycodec.recipe import PosttrainRecipe, PretrainRecipe, Recipe, SourceConfig, save_recipe
from xycodec.train.checkpoint import RunState, checkpoints, load_state
from xycodec.train.engine import Engine
from xycodec.train.monitor import Monitor
from xycodec.train.posttrain import PosttrainStage
from xycodec.train.pretrain import PretrainStage
from xycodec.train.stage import Stage
from xycodec.train.trainer import Trainer, TrainingError


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    step: int
    finished: bool
    """False if it was stopped, to be resumed."""
    best: float | None


def train(recipe: Recipe, *, resume: bool = False, quiet: bool = False) -> Ended:
    """Run a recipe to its end, or until SIGTERM, Ctrl-C or its limit of minutes.

    `resume` goes on from the newest checkpoint in the run's folder, or begins where there is none. Raises an
    XycodecError, one line, on anything that does not fit, before the first step where that is possible.
    """
    run, data = Path(recipe.output), recipe.data
    state = _state(recipe, run, resume)
    engine = Engine(recipe.engine)
    monitor = None
    try:
        # Corpora first: they are quickly found to be missing.
        cuts = [open_sources(sources, recipe.seed) if sources else None for sources in (data.train, data.valid)]
        stage = open_stage(_starting(recipe, run, state), engine)
        corpus = _Corpus(recipe, engine, stage.output_sample_rate, *cuts)
        if engine.leads:
            run.mkdir(parents=True, exist_ok=True)
            (run / "recipe.yaml").write_text(save_recipe(recipe), encoding="utf-8")
            monitor = Monitor(run, state.step if state else 0, recipe.steps, quiet=quiet)
            for line in remarks(recipe, stage.output_sample_rate):
                monitor.say(line)
        trainer = Trainer(recipe, stage, engine, corpus.stream, corpus.validation, run, monitor)
        if state is not None:
            trainer.restore(state)
        finished = trainer.train()
        return Ended(trainer.step, finished, trainer.best)
    except torch.OutOfMemoryError:
        raise TrainingError(
            "out of memory on the device: lower data.batch_clips or data.batch_seconds (engine.accumulate makes up "
            "for it), or set engine.checkpoint_activations"
        ) from None
    finally:
        if monitor is not None:
            monitor.close()
        engine.close()


def open_stage(recipe: Recipe, engine: Engine) -> Stage:
    """The stage that a recipe names, with its networks on their device."""
    return PretrainStage(recipe, engine) if isinstance(recipe, PretrainRecipe) else PosttrainStage(recipe, engine)


def _state(recipe: Recipe, run: Path, resume: bool) -> RunState | None:
    found = checkpoints(run)
    if found and not resume:
        raise ConfigError(f"{run}: holds a run already: pass --resume to go on, or choose another output")
    if not found:
        return None
    state = load_state(found[-1])
    if state.stage != recipe.stage:
        raise CheckpointError(f"{found[-1]}: a {state.stage} run cannot go on as {recipe.stage}: choose another output")
    return state


def _starting(recipe: Recipe, run: Path, state: RunState | None) -> Recipe:
    """The recipe, but a run that goes on takes its weights from its own checkpoint and from nowhere else."""
    if state is None:
        return recipe
    if isinstance(recipe, PosttrainRecipe):
        return recipe.model_copy(update={"weights": str(checkpoints(run)[-1])})
    return recipe.model_copy(update={"weights": None, "towers": None})


class _Corpus:
    """The recipe's data as this process reads them."""

    def __init__(
        self, recipe: Recipe, engine: Engine, output_sample_rate: int, train: Cuts | None, valid: Cuts | None
    ) -> None:
        self._config, self._clips, self._seed = recipe.data, recipe.validation.clips, recipe.seed
        self._train, self._valid = () if train is None else train, () if valid is None else valid
        self._share = {
            "output_sample_rate": output_sample_rate, "rank": engine.rank, "world_size": engine.world_size,
        }  # fmt: skip

    def stream(self, start: Position) -> Iterator[Batch]:
        """Endless batches of this process."""
        return BatchStream(self._train, self._config, seed=self._seed, **self._share).batches(start)

    def validation(self) -> Iterator[Batch]:
        """This process's share of the validation clips."""
        return validation_batches(self._valid, self._config, clips=self._clips, **self._share)


def remarks(recipe: Recipe, output_sample_rate: int) -> Iterator[str]:
    """What a person should know of the data before the first step, a line each."""
    found = survey_sources(recipe, output_sample_rate)
    if found is None:
        return
    yield f"data: {found.clips:,} clips, {found.hours:,.2f} h, {found.with_text:,} with text"
    for left in found.left_out:
        yield f"left out: {left.clips:,} clips {left.reason}, the first is {left.first_id}"
    if isinstance(recipe, PretrainRecipe) and recipe.loss.asr and found.with_text < found.clips:
        yield f"without text: {found.clips - found.with_text:,} clips, which train reconstruction only"


def survey_sources(recipe: Recipe, output_sample_rate: int) -> Survey | None:
    """Counts of the training data; None where only reading whole tars would tell."""
    if not all(_is_manifest(source) for source in recipe.data.train):
        return None
    plain = tuple(source.model_copy(update={"weight": None}) for source in recipe.data.train)
    return survey(open_sources(plain, recipe.seed), recipe.data, output_sample_rate)


def _is_manifest(source: SourceConfig) -> bool:
    return source.path.endswith((".jsonl", ".jsonl.gz"))
