"""A vector for each clip of a store, such as the text embedding that a model of sounds is conditioned on.

`vectors.npy` (N, D) float16 lies beside the shards, in the order of the clips; `vectors.json` says what made it.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line, write_whole
from xycodec.io.tokens.read import TokenStore

VECTORS, ABOUT = "vectors.npy", "vectors.json"


def has_vectors(store: TokenStore) -> bool:
    """Whether a store has vectors."""
    return (store.folder / VECTORS).is_file()


def write_vectors(store: TokenStore, rows: NDArray[Any], about: Mapping[str, Any]) -> None:
    """Keep a vector (N, D) for each clip of a store, in float16; `about` says what made them.

    Raises StoreError if there are not as many as clips, one is not finite, or they cannot be written.
    """
    if rows.ndim != 2 or len(rows) != len(store):
        raise StoreError(f"{store.folder}: vectors of shape {rows.shape} for {len(store)} clips: give one for each")
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        raise StoreError(f"{store.folder}: a vector is not finite in float16: see to what made it")
    write_whole(store.folder / VECTORS, lambda scratch: np.save(scratch, half), StoreError)
    text = json.dumps(dict(about), indent=1, sort_keys=True) + "\n"
    write_whole(store.folder / ABOUT, lambda scratch: scratch.write_text(text, encoding="utf-8"), StoreError)


def read_vectors(store: TokenStore) -> NDArray[np.float16]:
    """The vectors (N, D) of a store, mapped. Raises StoreError if there are none or they are not of its clips."""
    path = store.folder / VECTORS
    try:
        rows: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"{store.folder}: has no vectors: make them with xycodec tokens describe") from None
    except (OSError, ValueError) as error:
        raise StoreError(os_error_line(str(path), "read", error)) from error
    if rows.ndim != 2 or len(rows) != len(store) or rows.dtype != np.float16:
        raise StoreError(f"{path}: holds {rows.shape} of {rows.dtype} for {len(store)} clips: make them again")
    return rows


def read_about(store: TokenStore) -> dict[str, Any]:
    """Read what made the vectors of a store. Raises StoreError."""
    path = store.folder / ABOUT
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(os_error_line(str(path), "read", error)) from error
    return dict(found)
