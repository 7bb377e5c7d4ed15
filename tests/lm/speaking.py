"""Stores of random codes with texts, tiny models, and how they are trained in a test."""

import numpy as np
import torch
from tests.io.tokens.stores import description

from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.io.tokens.write import write_store
from xycodec.lm.config import CodecIdentity
from xycodec.train import run
from xycodec.train.recipe_file import parse_recipe

TEXTS = ("red, green", "up and down", "a bird")
FRAMES = (9, 12, 11)
TINY = {"d_model": 32, "layers": 2, "heads": 2, "ffn_dim": 64}
GREEDY = {"temperature": 0}
ABOUT = CodecIdentity.of(description())


def write_speech(folder, **about):
    """Three clips of one speaker, of codes that nothing tells but the text."""
    made = description(**about)
    draw = np.random.default_rng(1)
    clips = [
        StoredClip(
            f"clip {number}",
            draw.integers(0, made.codebook_size, (made.n_q, frames)).astype(np.uint16),
            frames * made.hop_length,
            {"text": text, "speaker": "one", "language": "en"},
        )
        for number, (text, frames) in enumerate(zip(TEXTS, FRAMES, strict=True))
    ]
    write_store(folder, made, clips)
    return TokenStore(folder)


def codes_of(store, number):
    return torch.from_numpy(store[number].codes.astype(np.int64))


def recipe(stage, folder, store, **changes):
    settings = {
        "stage": stage,
        "output": str(folder),
        "steps": 140,
        "data": {"train": [str(store.folder)], "batch_clips": 4, "buckets": 0, "workers": 0, "min_seconds": 0},
        "engine": {"device": "cpu", "precision": "float32"},
        "optimizer": {"lr": 1e-2, "warmup_steps": 10},
        "validation": {"every": 1000},
    }
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = settings[name] | value if both else value
    return parse_recipe(settings, "the test's recipe")


def trained(stage, folder, store, **changes):
    """The folder of a run that has learned a store by heart."""
    run.train(recipe(stage, folder, store, **changes), quiet=True)
    return folder


def values_of(means):
    return {name: float(mean.value()) for name, mean in means.items()}
