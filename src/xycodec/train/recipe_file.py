"""Recipes as YAML files: read, with bases, presets and overrides, and written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xycodec.errors import ConfigError
from xycodec.io.config import parse_config
from xycodec.models.presets import CodecConfig
from xycodec.models.xcodec.config import X_MINI_CONFIGS, XCODEC_CONFIGS
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.train.recipe import STAGES, Recipe


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a YAML recipe, apply `key.key=value` overrides, and validate the whole.

    `base: FILE` (relative to the recipe) takes everything from another recipe first; mappings are merged, all
    else is replaced. `model.preset: NAME` does the same from a published configuration. Raises ConfigError,
    one line, on a missing file, a wrong type or an unknown key, for which it names the nearest known one.
    """
    data = _read(Path(path))
    for text in overrides:
        data = _merge(data, _override(text))
    data = _with_preset(data, str(path))
    stage = data.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise ConfigError(f"{path}: stage is {stage!r}, must be one of {', '.join(STAGES)}")
    return parse_config(STAGES[stage], data, str(path))


def save_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with nothing left to default."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
    base = data.pop("base", None)
    if base is None:
        return data
    place = (path.parent / str(base)).resolve()
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


def _with_preset(data: dict[str, Any], where: str) -> dict[str, Any]:
    model = data.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return data
    own = {key: value for key, value in model.items() if key != "preset"}
    of_xcodec = data.get("stage") == "xcodec"
    presets: Mapping[str, CodecConfig] = XCODEC_CONFIGS | X_MINI_CONFIGS if of_xcodec else CONFIGS
    if not isinstance(model["preset"], str) or model["preset"] not in presets:
        raise ConfigError(f"{where}: model.preset: {model['preset']!r} is not one of {', '.join(presets)}")
    return data | {"model": _merge(presets[model["preset"]].model_dump(), own)}
