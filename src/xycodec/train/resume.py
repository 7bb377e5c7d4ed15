"""Differences between a resumed run and its checkpoint, one line each."""

from collections.abc import Iterator
from typing import Any

from xycodec.data.batch import Position
from xycodec.errors import ConfigError
from xycodec.train.checkpoint import RunState
from xycodec.train.config import RunConfig
from xycodec.train.recipe_file import parse_recipe

_MEASURED_BY = ("loss", "seed", "data.valid", "data.clip_seconds", "data.min_seconds", "validation.clips")
"""Settings that decide what a validation loss is of."""


def changes(state: RunState, recipe: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between checkpoint and recipe: (before, now) by dotted name."""
    try:
        before = parse_recipe(state.recipe, "the checkpoint").model_dump(mode="json")
    except ConfigError:  # of another version, whose settings can still be compared as they are
        before = state.recipe
    old, new = dict(_leaves(before)), dict(_leaves(recipe.model_dump(mode="json")))
    names = [*new, *(name for name in old if name not in new)]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def comparable(state: RunState, changed: dict[str, tuple[Any, Any]], whole: bool) -> bool:
    """Whether the checkpoint's best validation loss can be compared with those to come.

    `whole`: whether every clip of `data.valid` is measured; of others, earlier versions measured the first ones.
    """
    same = not any(f"{name}.".startswith(f"{key}.") for name in changed for key in _MEASURED_BY)
    return same and (whole or bool(state.order))


def told(
    state: RunState, changed: dict[str, tuple[Any, Any]], processes: int, start: Position, best: float | None
) -> Iterator[str]:
    """Yield one line for each difference between a run, which starts with `start` and `best`, and its checkpoint."""
    for name, (before, now) in changed.items():
        yield f"resumed: {name} is {now!r}, was {before!r}"
    if state.processes not in (None, processes):
        yield f"resumed: on {processes} processes, were {state.processes}: the clips that are left are theirs"
    if start.epoch != state.epoch:
        yield (
            f"resumed: epoch {start.epoch} begins, as the clips of epoch {state.epoch} are no longer in the order that "
            "the checkpoint knows: other sources or seed, or an earlier version"
        )
    if state.best is not None and best is None:
        yield "resumed: the best validation loss is measured anew, on other clips or by other settings"


def _leaves(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value
