"""Recipes as YAML files: read, with bases, presets and overrides, and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xycodec.errors import ConfigError
from xycodec.io.config import Config, parse_config
from xycodec.train.config import RunConfig
from xycodec.train.stages import all_stages

BUNDLED = Path(__file__).parents[1] / "configs"
"""Recipes that come with the package, named by their paths in here: `xy_tokenizer/pretrain.yaml`."""
RENAMED = {"hear_seconds": "segment_seconds"}
"""Keys of recipes by the names they once had, which are still read."""


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML recipe, apply `key.key=value` overrides, and validate the whole.

    `path` is a file, or the name of a recipe in `BUNDLED`. `base: FILE` (relative to the recipe, or in `BUNDLED`) takes
    everything from another recipe first; mappings are merged, all else is replaced. `model.preset: NAME` does the same
    from a published configuration. Raises ConfigError, one line, on a missing file, a wrong type or an unknown key, for
    which it names the nearest known one.
    """
    data = _read(_found(Path(path)))
    for text in overrides:
        data = _merge(data, _renamed(_override(text)))
    return parse_recipe(data, str(path))


def parse_recipe(data: dict[str, Any], where: str) -> RunConfig:
    """Validate the settings of a recipe into the class of its stage. Raises ConfigError, one line."""
    data, stages = _renamed(data), all_stages()
    named = data.get("stage")
    if not isinstance(named, str) or named not in stages:
        known = sorted({stage.name for stage in stages.values()})
        raise ConfigError(f"{where}: stage is {named!r}, must be one of {', '.join(known)}")
    stage = stages[named]
    data = _with_preset(data, stage.presets, where)
    return parse_config(stage.recipe_class, data | {"stage": stage.name}, where)


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(key, key): value for key, value in data.items()}


def save_recipe(recipe: RunConfig) -> str:
    """The recipe as YAML, with nothing left to default."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _found(path: Path, name: str | None = None) -> Path:
    """The file, or the bundled recipe of its name where there is no such file."""
    bundled = BUNDLED / (name or path)
    return bundled if not path.exists() and bundled.is_file() else path


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    data = _renamed(data)
    base = data.pop("base", None)
    if base is None:
        return data
    place = _found(path.parent / str(base), str(base)).resolve()
    if place in (path.resolve(), *seen):
        raise ConfigError(f"{path}: base {base} leads back to itself")
    return _merge(_read(place, (*seen, path.resolve())), data)


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{text!r} is not key=value, such as optimizer.lr=3e-4")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{text!r}: the value is not YAML") from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    result: dict[str, Any] = tree
    return result


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _with_preset(data: dict[str, Any], presets: Mapping[str, Config], where: str) -> dict[str, Any]:
    model = data.get("model")
    if not presets or not isinstance(model, dict) or "preset" not in model:
        return data
    own = {key: value for key, value in model.items() if key != "preset"}
    if not isinstance(model["preset"], str) or model["preset"] not in presets:
        raise ConfigError(f"{where}: model.preset: {model['preset']!r} is not one of {', '.join(presets)}")
    return data | {"model": _merge(presets[model["preset"]].model_dump(), own)}
