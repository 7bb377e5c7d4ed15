"""Tokens as one memory map [N, context] of int32, as recipes for LLaSA-like models read it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from xycodec.errors import StoreError
from xycodec.io.files import write_whole
from xycodec.io.tokens.layout import Description
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.lm.patterns import Flattened


def shape_file(path: Path) -> Path:
    """The `.npy` beside a map that holds its shape."""
    return path.with_name(f"{path.stem}_shape.npy")


def write_memmap(store: TokenStore, target: Path, context: int = 2048, first: int = 0) -> None:
    """Write every clip's flattened codes, one clip after the other, as rows of `context` tokens.

    Code c of codebook q is the token `first + q * codebook_size + c`; after a clip comes the token that follows those
    of codes, and the one after it fills the last row. Raises StoreError if it cannot be written.
    """
    pattern = Flattened(store.description.n_q, store.description.codebook_size)
    end = first + pattern.pad
    if end + 1 >= 1 << 31:
        raise StoreError(f"tokens up to {end + 1} do not fit int32")
    tokens = sum(store.lengths().tolist()) * store.description.n_q + len(store)
    rows = -(-tokens // context)

    def write(scratch: Path) -> None:
        written = 0
        with open(scratch, "wb") as file:
            for clip in store:
                codes = torch.from_numpy(clip.codes.astype(np.int64))
                ids = np.append(pattern.apply(codes).flatten().numpy() + first, end).astype("<i4")
                file.write(ids.tobytes())
                written += len(ids)
            file.write(np.full(rows * context - written, end + 1, "<i4").tobytes())

    write_whole(target, write, StoreError)
    write_whole(shape_file(target), lambda scratch: np.save(scratch, np.array([rows, context])), StoreError)


def read_memmap(source: Path, about: Description, first: int = 0) -> Iterator[StoredClip]:
    """Yield the clips of such a map, called by their numbers; of whole frames, since a map does not tell samples.

    Raises StoreError if a file lacks or a clip is not of whole frames.
    """
    try:
        shape = np.load(shape_file(source))
        tokens = np.memmap(source, "<i4", "r", shape=tuple(shape)).reshape(-1)
    except (OSError, ValueError) as error:
        raise StoreError(f"{source}: no map with its shape ({error})") from error
    pattern = Flattened(about.n_q, about.codebook_size)
    begin = 0
    for number, end in enumerate(np.flatnonzero(tokens == first + pattern.pad).tolist()):
        ids = torch.from_numpy(tokens[begin:end].astype(np.int64))[:, None] - first
        codes = pattern.revert(ids).numpy()
        yield StoredClip(f"{number:09}", codes, codes.shape[1] * about.hop_length, {})
        begin = end + 1
