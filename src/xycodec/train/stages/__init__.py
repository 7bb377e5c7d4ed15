"""Training stages, one file each, which registers itself: add a file, and recipes may name its stage."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from xycodec.train.config import RunConfig
from xycodec.train.stage import STAGES, Stage


def all_stages() -> dict[str, type[Stage[Any]]]:
    """Every stage by its name, and by the names it once had."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return STAGES


def stage_of(recipe: RunConfig) -> type[Stage[Any]]:
    """The stage that a recipe is of."""
    return all_stages()[recipe.stage]
