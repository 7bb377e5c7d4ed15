"""Small stores of random codes for the tests."""

import numpy as np

from xycodec.io.tokens.layout import Description, Windowing
from xycodec.io.tokens.read import StoredClip
from xycodec.io.tokens.write import write_store


def description(**changes):
    known = {
        "model": "tiny", "weights": "0f", "n_q": 3, "codebook_size": 50, "hop_length": 160, "sample_rate": 16_000,
        "output_sample_rate": 16_000, "window": Windowing(100, 33, "middle"),
    }  # fmt: skip
    return Description(**known | changes)


def clip(number, about=None, frames=None, name=None, **meta):
    """A clip whose number decides its codes and its length."""
    about = about or description()
    frames = 1 + 7 * number % 23 if frames is None else frames
    codes = np.random.default_rng(number).integers(about.codebook_size, size=(about.n_q, frames)).astype(about.dtype)
    name = name or f"clip {number}"
    return StoredClip(name, codes, max(0, frames * about.hop_length - number % 160), {"text": f"words {number}"} | meta)


def store_of(folder, count, about=None, shard_clips=4):
    about = about or description()
    write_store(folder, about, (clip(number, about) for number in range(count)), shard_clips)
    return folder
