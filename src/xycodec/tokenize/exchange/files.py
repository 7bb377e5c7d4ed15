"""Clips as files of their own: a `.npy` or a `.xyc` each, and `clips.jsonl` that tells what is known of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError, reason_of
from xycodec.io.files import new_folder
from xycodec.io.tokens.layout import Codes, Description
from xycodec.io.tokens.read import StoredClip, TokenStore, read_rows
from xycodec.io.xyc import CodecFile
from xycodec.tokenize.exchange.rows import CLIPS, clip_of, codes_of, file_name, write_rows


def write_npy(store: TokenStore, folder: Path) -> None:
    """Write each clip's codes (frames, n_q) as `ID.npy`. Raises StoreError if the folder exists."""
    _write(store, folder, ".npy", lambda clip, path: np.save(path, clip.codes.T))


def read_npy(folder: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of such a folder; without `clips.jsonl`, of every `.npy` in it. Raises StoreError.

    Codes of one codebook may be (frames,), as recipes for LLaSA write them.
    """
    return _read(folder, about, ".npy", lambda path: (codes_of(np.load(path), about, str(path)), None))


def write_xyc(store: TokenStore, folder: Path) -> None:
    """Write each clip as `ID.xyc`, which `xycodec decode` takes. Raises StoreError if the folder exists."""
    _write(store, folder, ".xyc", lambda clip, path: codec_file(store.description, clip).write(path))


def read_xyc(folder: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of a folder of `.xyc` files, with or without `clips.jsonl`. Raises StoreError."""
    return _read(folder, about, ".xyc", lambda path: _codes_of(path, about))


def _codes_of(path: Path, about: Description) -> tuple[Codes, int]:
    file = CodecFile.read(path)
    if (file.model, file.search) != (about.model, about.search):
        was, now = (f"{one.model}, search {one.search}" for one in (file, about))
        raise StoreError(f"{path}: has codes of {was}, not of {now}")
    return file.codes, file.num_samples


def codec_file(about: Description, clip: StoredClip) -> CodecFile:
    """A clip as a `.xyc` file. Raises BitstreamError if the format cannot hold its codes."""
    return CodecFile(
        codes=np.ascontiguousarray(clip.codes, np.uint16),
        model=about.model,
        codebook_size=about.codebook_size,
        sample_rate=about.sample_rate,
        output_sample_rate=about.output_sample_rate,
        hop_length=about.hop_length,
        num_samples=clip.samples,
        search=about.search,
    )


def _write(store: TokenStore, folder: Path, suffix: str, save: Callable[[StoredClip, Path], None]) -> None:
    with new_folder(folder, StoreError) as made:
        rows = []
        for clip in store:
            name = file_name(clip.id, suffix)
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            save(clip, made / name)
            rows.append(clip.meta | {"samples": clip.samples, "file": name})
        write_rows(made / CLIPS, rows)


def _read(
    folder: Path, about: Description, suffix: str, load: Callable[[Path], tuple[Codes | NDArray[np.int64], int | None]]
) -> Iterator[StoredClip]:
    told = folder / CLIPS
    rows = (
        read_rows(told)
        if told.exists()
        else [
            {"id": str(path.relative_to(folder).with_suffix("")), "file": str(path.relative_to(folder))}
            for path in sorted(folder.rglob(f"*{suffix}"))
        ]
    )
    for row in rows:
        path = folder / str(row.get("file"))
        try:
            codes, samples = load(path)
        except StoreError:
            raise
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({reason_of(error)})") from error
        more = {} if samples is None else {"samples": samples}
        yield clip_of(row | more, about, codes, told)
