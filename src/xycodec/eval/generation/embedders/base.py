"""The interface of embedders, and how their files of weights are read."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xycodec.errors import CheckpointError, reason_of
from xycodec.eval.judges.sources import Source
from xycodec.io.audio import Samples
from xycodec.io.digests import digest_of, file_digest

Vectors = NDArray[np.float32]
State = dict[str, Tensor]
EMBEDDING, LOGITS = "embedding", "logits"


class Embedder(ABC):
    """A network that hears one clip at a time: called with (n,) at `sample_rate`, it gives named vectors.

    `EMBEDDING` are (k, D), one for each clip or for each window or frame of it; `LOGITS`, where it has classes, (1, C).
    """

    name: str
    """Name of the folder that keeps its vectors."""
    metrics: tuple[str, ...]
    """Metrics that its vectors give, names in `xycodec.eval.results`."""
    sample_rate: int
    """Rate of the audio that it hears, Hz."""
    about: str
    """Model, file and settings, for the protocol."""
    weights: str
    """Digest of its weights, 32 hexadecimal digits."""

    @abstractmethod
    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """Vectors of a clip. Raises AudioError if it is too short."""


def read_weights(path: Path) -> State:
    """Tensors of a file of torch or safetensors, under `model` or `state_dict` if it has one; floats are float32.

    Raises CheckpointError, one line, if it is not there or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file: give the published file of weights")
    saved: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            saved = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            saved = saved.get(key, saved)
        state = {str(key): value.float() if value.is_floating_point() else value for key, value in saved.items()}
    # Damaged files make torch raise almost anything.
    except Exception as error:
        raise CheckpointError(f"{path}: holds no weights ({reason_of(error)})") from None
    return state


def load_strictly(model: nn.Module, state: State, path: Path, what: str) -> None:
    """Give a module on `meta` its weights, all of them and no others. Raises CheckpointError, which names `what`."""
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not {what} as published ({reason})") from None
    model.eval()


def source_digest(source: Source) -> str:
    """Digest of a folder of Transformers: its settings and weights."""
    kept = (".json", ".txt", ".safetensors", ".bin")
    files = sorted(path for path in source.folder.iterdir() if path.suffix in kept)
    return digest_of([[path.name, file_digest(path)] for path in files])
