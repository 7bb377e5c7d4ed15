"""Tensors as safetensors files: one, or several of bounded size that are checked when they are read."""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xycodec.errors import CheckpointError

MB = 1_000_000
_CHECKSUM = "crc32"
_PIECE = "#"  # between a tensor's name and the number of a piece of it
_HEADER = 1024  # bytes at most of a file's header, without its tensors


def stored(key: str, tensor: Tensor, dtype: torch.dtype, *, exact: tuple[str, ...] = ()) -> Tensor:
    """A tensor as it is stored where floating-point weights are in `dtype`: contiguous, on the CPU.

    Names that end in one of `exact` keep their type, and so does what is too large for `dtype`.
    """
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point() or key.endswith(exact):
        return tensor
    narrow = tensor.to(dtype)
    return narrow if bool(torch.isfinite(narrow).all()) else tensor


def save_tensors(tensors: Mapping[str, Tensor], folder: Path, stem: str, part_bytes: int | None = None) -> list[Path]:
    """Write contiguous `tensors` to `folder`, and return the files.

    Without `part_bytes` it is one, STEM.safetensors. With it they are STEM-00001-of-0000N.safetensors, each of at most
    so many bytes; a larger tensor is split by rows. Raises CheckpointError if a row is larger, OSError if a file cannot
    be written.
    """
    if part_bytes is None:
        return [_save(dict(tensors), folder / f"{stem}.safetensors")]
    parts = list(_parts(tensors, part_bytes))
    return [
        # Copies, because pieces and tied weights share memory, which safetensors refuses.
        _save({key: tensor.clone() for key, tensor in part.items()}, folder / _name(stem, number, len(parts)), True)
        for number, part in enumerate(parts, 1)
    ]


def load_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read the tensors that `save_tensors` wrote. A single file is mapped, not copied.

    Raises CheckpointError, one line that names the file, if one is missing or damaged.
    """
    number = "[0-9]" * 5
    found = sorted(folder.glob(f"{stem}-{number}-of-{number}.safetensors"))
    if not found:
        return read_safetensors(folder / f"{stem}.safetensors")
    count = int(found[-1].stem.rpartition("-")[2])
    pieces: dict[str, list[Tensor]] = {}
    for place in range(1, count + 1):
        part = _read_part(folder / _name(stem, place, count))
        # Several pieces may lie in one file, and its keys are in no order.
        for key in sorted(part, key=_place):
            pieces.setdefault(key.partition(_PIECE)[0], []).append(part[key])
    return {key: parts[0] if len(parts) == 1 else torch.cat(parts) for key, parts in pieces.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, mapped, not copied. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from None


def damaged(path: Path, error: Exception) -> str:
    """The line that says so of `path`, and why."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return f"{path}: damaged or not a checkpoint ({reason})"


def _name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def _parts(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """Tensors and pieces of them, in order, in groups that fit into files of `most` bytes."""
    part: dict[str, Tensor] = {}
    size = _HEADER
    for whole, tensor in tensors.items():
        for key, piece in _pieces(whole, tensor, most):
            added = _room(key, piece)
            if part and size + added > most:
                yield part
                part, size = {}, _HEADER
            part[key] = piece
            size += added
    yield part


def _pieces(key: str, tensor: Tensor, most: int) -> Iterator[tuple[str, Tensor]]:
    if _HEADER + _room(key, tensor) <= most:
        yield key, tensor
        return
    row = tensor.nbytes // len(tensor) if tensor.ndim else tensor.nbytes
    free = most - _HEADER - (_room(key, tensor) - tensor.nbytes)
    if row > free:
        raise CheckpointError(f"{key}: a row of it takes {row:,} bytes: allow parts larger than {most:,} bytes")
    for number, piece in enumerate(torch.split(tensor, free // row)):
        yield f"{key}{_PIECE}{number}", piece


def _place(key: str) -> tuple[str, int]:
    name, _, number = key.partition(_PIECE)
    return name, int(number or 0)


def _room(key: str, tensor: Tensor) -> int:
    """Bytes that a tensor takes in a file, at most: with its entry in the header."""
    return tensor.nbytes + len(json.dumps(key)) + 20 * tensor.ndim + 128


def _save(tensors: dict[str, Tensor], path: Path, checked: bool = False) -> Path:
    try:
        path.touch()
        mode = path.stat().st_mode  # as the umask has it; safetensors makes files that only their owner reads
        save_file(tensors, path, {_CHECKSUM: str(_checksum(tensors))} if checked else None)
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return path


def _read_part(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, get a whole copy of its folder")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
            told = (file.metadata() or {}).get(_CHECKSUM)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from None
    if told is not None and told != str(_checksum(tensors)):
        raise CheckpointError(damaged(path, ValueError("its checksum differs: get it again")))
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for key in sorted(tensors):
        total = zlib.crc32(tensors[key].reshape(-1).view(torch.uint8).numpy().data, total)
    return total
