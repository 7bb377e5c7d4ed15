"""Values that a published table is said to have, to set beside measured ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from xycodec.errors import ConfigError
from xycodec.eval.coding import CodecSpec
from xycodec.io.files import os_error_line


@dataclass(frozen=True)
class ExpectedTable:
    """A table, and where it is from."""

    source: str
    values: dict[str, dict[str, float]]
    """Values by name of the codec in the evaluation, then by metric."""


def read_expected(path: Path, codecs: Sequence[str], metrics: Sequence[str]) -> ExpectedTable:
    """Read YAML: `source`, one line, and `expected`, which has for each codec, as `evaluate` takes it, its values.

    Raises ConfigError, one line, if it cannot be read, is of another form, or expects anything of a codec or metric
    that is not among those that are going to be evaluated.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        source = TypeAdapter(str).validate_python(data["source"])
        values = TypeAdapter(dict[str, dict[str, float]]).validate_python(data["expected"])
    except OSError as error:
        raise ConfigError(os_error_line(str(path), "read", error)) from error
    except (yaml.YAMLError, ValidationError, KeyError, TypeError, UnicodeDecodeError):
        form = "source: a line, expected: {codec: {metric: number}}"
        raise ConfigError(f"{path}: not a table of expected values: it is YAML of {form}") from None
    for codec, of_codec in values.items():
        if codec not in codecs:
            raise ConfigError(f"{path}: expects something of {codec}, which is not evaluated: add --codec {codec}")
        if unknown := sorted(set(of_codec) - set(metrics)):
            raise ConfigError(f"{path}: expects {unknown[0]} of {codec}, which is not measured: ask for it")
    return ExpectedTable(source, {CodecSpec(codec).folder: of_codec for codec, of_codec in values.items()})
