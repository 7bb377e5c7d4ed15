"""Reading what training wrote: this package's checkpoints with their settings, and files of plain tensors."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from xycodec.checkpoints.weights import damaged, load_tensors, read_safetensors
from xycodec.errors import CheckpointError, reason_of

CHECKPOINT_FORMAT = 1  # of training checkpoints
CHECKPOINTS = "checkpoints"  # where a run keeps them
AVERAGE = "ema"  # the average of the codec's weights, beside the network `model`
EXPORT_FILE, EXPORT_STEM = "weights.json", "weights"  # of a run's weights without its optimizers


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file (mapped, not copied) or of a torch checkpoint, on the CPU.

    A checkpoint's `generator` or `codec_model` entry is taken where there is one. Nothing but tensors, plain containers
    and buffers of bytes, which are left out, is unpickled. Raises CheckpointError.
    """
    data = read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    for entry in ("generator", "codec_model"):
        if isinstance(data, dict) and isinstance(data.get(entry), dict):
            data = data[entry]
    if isinstance(data, dict):
        # X-Codec's authors left such ones in their files.
        data = {key: value for key, value in data.items() if not isinstance(value, io.BytesIO)}
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise CheckpointError(f"{path}: holds something other than named tensors")
    return dict(data)


def read_entries(path: Path, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Entries `names` of a torch checkpoint, each of named tensors, on the CPU. Nothing but tensors is unpickled.

    Raises CheckpointError.
    """
    data = _unpickle(path)
    for name in names:
        entry = data.get(name) if isinstance(data, dict) else None
        if not isinstance(entry, dict) or not all(isinstance(value, Tensor) for value in entry.values()):
            raise CheckpointError(f"{path}: has no tensors under {name!r}: it is another model's checkpoint")
    return {name: data[name] for name in names}


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of a training run: by its place in one, or its contents; tensors stay unread."""
    if path.suffix != ".pt" or path.parent.name == CHECKPOINTS:
        return path.suffix == ".pt"
    try:
        with zipfile.ZipFile(path) as archive:
            contents = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return b"optimizers" in archive.read(contents)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step_*.pt"))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint, or a folder exported from one, which has no optimizers.

    Tensors of a checkpoint are mapped, not copied. Raises CheckpointError.
    """
    data = _read_export(path) if path.is_dir() else _unpickle(path, mmap=True)
    parts = {"format", "codec", "networks"}
    if not isinstance(data, dict) or not parts <= data.keys() or "model" not in data["networks"]:
        raise CheckpointError(f"{path}: not a checkpoint of a training run")
    if data["format"] != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path}: format {data['format']!r} is not one this xycodec reads, upgrade it")
    return data


_HELD = {
    "language_model": "a language model and no codec: speak with xycodec say --model, or use xycodec.lm.load",
    "autoencoder": "an autoencoder and no codec: it has no codes",
    "self_supervised": "a HuBERT and no codec: name it in semantic_weights, and an X-Codec reads it",
    "recogniser": "a recogniser and no codec: name it in towers, and pre-training starts from it",
}
"""Field of a checkpoint that holds no codec, and what is told of it."""


def read_codec_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint that holds a codec. Raises CheckpointError."""
    data = read_checkpoint(path)
    if data["codec"] is None:
        held = next((told for field, told in _HELD.items() if data.get(field) is not None), _HELD["recogniser"])
        raise CheckpointError(f"{path}: holds {held}")
    return data


def trained_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The model's tensors in a training checkpoint; where there is an average, the codec's are the average's."""
    networks: dict[str, dict[str, Tensor]] = checkpoint["networks"]
    return networks["model"] | networks.get(AVERAGE, {})


def _read_export(folder: Path) -> dict[str, Any]:
    networks: dict[str, dict[str, Tensor]] = {}
    about = read_mapping(folder / EXPORT_FILE, json.loads)
    for key, tensor in load_tensors(folder, EXPORT_STEM).items():
        network, _, name = key.partition("/")
        # What half precision is stored for is trained in float32.
        networks.setdefault(network, {})[name] = tensor.float() if tensor.dtype is torch.float16 else tensor
    return about | {"networks": networks}


def _unpickle(path: Path, mmap: bool = False) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([io.BytesIO]):
            warnings.simplefilter("ignore")  # torch's remarks on old pickles; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: not a plain tensor checkpoint; code in it was not run") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(damaged(path, error)) from None


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The settings in a file that `parse` understands. Raises CheckpointError."""
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a mapping of settings")
    return data
