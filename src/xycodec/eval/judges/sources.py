"""Finding and loading the models and packages of an evaluation; what is missing is one line of error."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, XycodecError, reason_of
from xycodec.io.hub import fetch, is_path

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
# Heads for training that some published files lack, and what only training looks at.
_UNUSED = ("masked_spec_embed", "objective.weight")


@dataclass(frozen=True)
class Source:
    """A model of Transformers on disk."""

    name: str
    """Name that was asked for: a hub id or a folder."""
    folder: Path
    revision: str | None
    """The hub's commit; None of a folder."""

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} at {self.revision[:10]}"


def locate(name: str) -> Source:
    """A folder as it is, or the files of a hub id, from the cache or the hub. Raises CheckpointError."""
    if Path(name).is_dir():
        return Source(name, Path(name), None)
    if is_path(name):
        raise CheckpointError(f"{name}: no such folder; give a hub id or a folder of Transformers")
    folder = fetch(name, ["*.json", "*.txt", *_WEIGHTS])
    if not any(found for pattern in _WEIGHTS for found in folder.glob(pattern)):
        folder = fetch(name, ["*.json", "*.txt", *_PICKLED])
    return Source(name, folder, folder.name)


def load_part(source: Source, loader: str, what: str, **options: Any) -> Any:
    """Load the source with the class `loader` of Transformers. Raises CheckpointError, which names `what`."""
    library = need("transformers")
    library.utils.logging.disable_progress_bar()
    try:
        # Code that comes with a model is never run.
        return getattr(library, loader).from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False, **options
        )
    # Transformers raises its own classes and its tokenizer's: all mean the same here.
    except Exception as error:
        raise CheckpointError(f"{source.name}: gives no {what} ({reason_of(error)})") from None


def load_model(source: Source, loader: str, what: str, device: str, **options: Any) -> Any:
    """The model in float32 and eval mode, with every weight that it uses. Raises CheckpointError otherwise."""
    place = resolve_device(device)
    model, report = load_part(source, loader, what, dtype=torch.float32, output_loading_info=True, **options)
    lacking = sorted(str(key) for part in ("missing_keys", "mismatched_keys") for key in report[part])
    lacking = [key for key in lacking if not key.endswith(_UNUSED)]
    if lacking:
        raise CheckpointError(f"{source.name}: gives no {what}, it lacks the weights of {lacking[0]}")
    return model.to(place).eval()


def need(module: str, install: str = "'xycodec[eval]'") -> Any:
    """Import a module. Raises XycodecError, which says what to `install`, if that fails."""
    try:
        return import_module(module)
    except ImportError as error:
        raise XycodecError(f"{module} cannot be imported ({reason_of(error)}): pip install {install}") from None


def samples_for(frames: int, config: Any) -> int:
    """Fewest samples of which the convolutions of a wav2vec 2.0 or its kin make so many frames."""
    count = frames
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        count = (count - 1) * int(stride) + int(kernel)
    return count
