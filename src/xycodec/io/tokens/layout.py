"""Layout of a store of tokens on disk: its files, their rows, and the description of its codes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line

VERSION = 1
FORMAT = "xycodec tokens"

STORE, SHARD_LIST, IDS, FAILURES = "store.json", "shards.jsonl", "ids.bin", "failures.jsonl"
"""Files of a store. The list of shards is written last: a store that has one is finished."""
SHARDS = "shards"
"""Folder of the shards: `000000`, `000001`, ..."""
CODES, INDEX, META, SHARD = "codes.bin", "index.bin", "meta.jsonl", "shard.json"
"""Files of a shard, which may also have FAILURES. `shard.json` is written last."""

ROW = np.dtype(
    [("first", "<u8"), ("meta", "<u8"), ("samples", "<u8"), ("id", "<u8"), ("frames", "<u4"), ("crc", "<u4")]
)
"""A clip's row of the index: its first frame in the shard, the byte where its line of metadata begins, its samples at
the codec's input rate, the hash of its id, its frames, and the CRC-32 of its codes followed by its line."""

Index = NDArray[Any]
"""Rows of ROW, (clips,)."""
Codes = NDArray[np.uint16] | NDArray[np.uint32]

_TELL_APART = (
    "model", "weights", "n_q", "codebook_size", "hop_length", "sample_rate", "window", "precision", "search",
)  # fmt: skip


@dataclass(frozen=True)
class Windowing:
    """Windows of clips of over `frames` frames: they share `overlap`, and each keeps its `middle` or `beginning`."""

    frames: int
    overlap: int
    keeps: str


@dataclass(frozen=True)
class Description:
    """The codec that made the codes of a store, in plain types.

    Attributes:
        model: id of the model.
        weights: hexadecimal digits that tell its weights from others.
        n_q, codebook_size: codebooks of a frame, and codes of each.
        hop_length, sample_rate: input samples of a frame, and their rate in Hz.
        output_sample_rate: rate of what decoding gives, Hz.
        window: how long clips were cut.
        search: width of the search that found the codes; 1 is greedy.
        precision: type that the codec computed in, and `shared batches` where clips shared padded products.
        config: the model's settings.
        versions: the software that made the codes.
    """

    model: str
    weights: str
    n_q: int
    codebook_size: int
    hop_length: int
    sample_rate: int
    output_sample_rate: int
    window: Windowing
    search: int = 1
    precision: str = "float32"
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a code on disk: two bytes, four where a codebook has over 65536 codes."""
        return np.dtype("<u2" if self.codebook_size <= 1 << 16 else "<u4")

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def difference(self, other: "Description") -> str | None:
        """The difference between the codes of two descriptions, in words; None if they are codes of one codec."""
        mine, others = asdict(self), asdict(other)
        found = [f"{key} {mine[key]} and {others[key]}" for key in _TELL_APART if mine[key] != others[key]]
        return ", ".join(found) or None

    def to_json(self) -> str:
        """The text of `store.json`."""
        about = {"format": FORMAT, "version": VERSION, **asdict(self)}
        derived = {"dtype": self.dtype.str, "frame_rate": self.frame_rate}
        return json.dumps(about | derived, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_description(folder: Path) -> Description:
    """The description of a store. Raises StoreError if there is none, or a newer version wrote it."""
    path = folder / STORE
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{folder}: not a store of tokens (no {STORE}): make one with xycodec tokenize") from None
    except OSError as error:
        raise StoreError(os_error_line(str(path), "read", error)) from error
    except ValueError as error:
        raise StoreError(f"{path}: not JSON ({error}): get a whole copy of the store") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise StoreError(f"{path}: does not describe a store of tokens: give the folder of one")
    if about.get("version") != VERSION:
        raise StoreError(f"{folder}: of version {about.get('version')}, this xycodec reads {VERSION}: update xycodec")
    try:
        known = {one.name: about[one.name] for one in fields(Description)}
        made = Description(**known | {"window": Windowing(**about["window"])})
        numbers = (made.n_q, made.codebook_size, made.hop_length, made.sample_rate, made.output_sample_rate)
        if not all(isinstance(number, int) and number > 0 for number in numbers):
            raise TypeError("a number is not positive")
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: lacks or misspells a field ({error}): get a whole copy of the store") from error
    return made


def hash_of(name: str) -> int:
    """The 64 bits that a clip's id is found by."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"{number:06}"
