"""A clip to tokenize, as a plan keeps it: where its audio lies, not the audio."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

from xycodec.errors import AudioError, XycodecError
from xycodec.io.files import open_input


@dataclass(frozen=True)
class Item:
    """A clip: its id, the place of its audio in JSON types, and what is known of it; or why it cannot be one."""

    id: str
    place: Mapping[str, Any] = field(default_factory=dict)
    """`kind` and what the reader of that kind needs (`xycodec.tokenize.inputs.audio`)."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Fields in JSON types; `audio` is its file as the input names it."""
    error: str | None = None

    def to_row(self) -> dict[str, Any]:
        """The item in JSON types."""
        return {"id": self.id, "place": self.place, "meta": self.meta, "error": self.error}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Item":
        """The item that `to_row` gave."""
        return cls(row["id"], row["place"], row["meta"], row["error"])


def is_url(path: str) -> bool:
    """Whether a name is an address for fsspec, such as `s3://bucket/a.wav`."""
    return "://" in path


def open_binary(path: str) -> BinaryIO:
    """Open a file or an address of fsspec to read its bytes. Raises AudioError if that is not possible."""
    if not is_url(path):
        return open_input(path, AudioError)
    import fsspec

    try:
        return cast(BinaryIO, fsspec.open(path, "rb").open())
    except Exception as error:  # each file system has its own, ImportError where its package is missing
        raise AudioError(f"{path}: cannot be opened ({type(error).__name__}: {error})") from error


def plain(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The fields that JSON can say and that say anything."""
    return {str(key): value for key, value in fields if value is not None and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, float):
        return value - value == 0  # JSON has no NaN and no infinity
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | bool | None)


def require_package(package: str, extra: str) -> None:
    """Raise XycodecError, which names the extra to install, if a package is not there."""
    if find_spec(package) is None:
        raise XycodecError(f"{package} is not installed: pip install 'xycodec[{extra}]'")


def stem_of(path: str) -> str:
    """The name of a file or an address without its folder and its last suffix."""
    return Path(path.rsplit("/", 1)[-1]).stem
