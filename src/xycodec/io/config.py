"""Typed settings, and how a parsed JSON or YAML mapping becomes them."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from xycodec.errors import ConfigError, XycodecError


class Config(BaseModel):
    """Base of every configuration: immutable, its numbers finite, and an unknown key is an error."""

    # Older pydantic reserves names that begin with model_.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(cls: type[ConfigT], data: Any, where: str, error: type[XycodecError] = ConfigError) -> ConfigT:
    """Validate `data` (a parsed JSON or YAML mapping) into `cls`.

    Raises `error`: one line with `where`, the offending key, and the nearest known key to an unknown one.
    """
    if not isinstance(data, dict):
        raise error(f"{where}: expected a mapping of settings, found {type(data).__name__}")
    try:
        return cls.model_validate(data)
    except ValidationError as failure:
        first = failure.errors()[0]
        # What stands in brackets tells classes apart and is not in the file.
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("(")) or "settings"
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), list(_field_names(cls)), n=1)
            problem = "unknown key" + (f", did you mean {near[0]!r}?" if near else "")
        raise error(f"{where}: {key}: {problem}") from None


def _field_names(cls: type[BaseModel]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield name
        for part in _models(field.annotation):
            yield from _field_names(part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that an annotation names, inside optional ones and tuples as well."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)


Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
