"""Tensors as safetensors files: one, or several with an index that are checked when they are read."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from xycodec.errors import CheckpointError, reason_of

MB = 1_000_000
_CHECKSUM = "crc32"
_PIECE = "#"  # between a tensor's name and the number of a piece of it, of which earlier versions made files


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
    """Write contiguous `tensors` to `folder`, and return the files of weights.

    Without `part_bytes` it is one, STEM.safetensors. With it they are Hugging Face's shards where one file is
    too small: STEM-00001-of-0000N.safetensors, each with at most so many bytes of tensors or one larger tensor, and
    STEM.safetensors.index.json, which tells the file of every tensor. Raises OSError if a file cannot be written.
    """
    if part_bytes is None:
        return [_save(dict(tensors), folder / f"{stem}.safetensors")]
    from huggingface_hub import split_torch_state_dict_into_shards  # slow to import

    # Copies, because tied weights share memory, which safetensors refuses.
    copies = {key: tensor.clone() for key, tensor in tensors.items()}
    pattern = f"{stem}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(copies, filename_pattern=pattern, max_shard_size=part_bytes)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _index(folder, stem).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [
        _save({key: copies[key] for key in keys}, folder / name, checked=split.is_sharded)
        for name, keys in split.filename_to_tensors.items()
    ]


def load_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    """Read the tensors that `save_tensors` wrote, now or in earlier versions. A single file is mapped, not copied.

    Raises CheckpointError, one line that names the file, if one is missing or damaged.
    """
    shards = _shards(folder, stem)
    if not shards:
        return read_safetensors(folder / f"{stem}.safetensors")
    pieces: dict[str, list[Tensor]] = {}
    for shard in shards:
        part = _read_part(shard)
        # Several pieces may lie in one file, and its keys are in no order.
        for key in sorted(part, key=_place):
            pieces.setdefault(key.partition(_PIECE)[0], []).append(part[key])
    return {key: parts[0] if len(parts) == 1 else torch.cat(parts) for key, parts in pieces.items()}


def shard_files(folder: Path, stem: str) -> list[Path]:
    """Every file in `folder` that belongs to tensors in several files, their index with them."""
    number = "[0-9]" * 5
    return [*sorted(folder.glob(f"{stem}-{number}-of-{number}.safetensors")), *folder.glob(_index(folder, stem).name)]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, mapped, not copied. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from None


def damaged(path: Path, error: Exception) -> str:
    """Error message for a damaged file of weights: its path and the reason, in one line."""
    reason = reason_of(error)[:200]
    return f"{path}: damaged or not a checkpoint ({reason})"


def _index(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"


def _shards(folder: Path, stem: str) -> list[Path]:
    """The files that all tensors are in, in order; none where they are in one. Raises CheckpointError."""
    index = _index(folder, stem)
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(damaged(index, error)) from None
    # Earlier versions wrote no index.
    names = [path.stem for path in shard_files(folder, stem)]
    count = int(names[-1].rpartition("-")[2]) if names else 0
    return [folder / f"{stem}-{place:05}-of-{count:05}.safetensors" for place in range(1, count + 1)]


def _place(key: str) -> tuple[str, int]:
    name, _, number = key.partition(_PIECE)
    return name, int(number or 0)


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
