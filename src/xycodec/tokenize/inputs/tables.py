"""Clips of tables: Parquet files and what Hugging Face `datasets` saved, with a column of audio."""

import io
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from xycodec.errors import AudioError, XycodecError, reason_of
from xycodec.tokenize.inputs.item import Item, is_url, open_binary, plain, require_package, stem_of

# ---- Parquet -----------------------------------------------------------------------------------


def parquet_items(name: str) -> Iterator[Item]:
    """Yield an item for each row of a Parquet file; the audio is read when it is needed.

    The column `audio`, else the first whose values are bytes or have `bytes`, holds whole files. `id` names a clip,
    else the file's name and the row.

    Raises XycodecError if pyarrow is missing, the file is damaged, or it has no such column.
    """
    require_package("pyarrow", "store")
    import pyarrow

    try:
        table = _parquet(name)
        column = _audio_column(name, table.schema_arrow)
        others = [one for one in table.schema_arrow.names if one != column]
        numbers = count()
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            known = table.read_row_group(group, columns=others).to_pylist() if others else [{}] * rows
            for place, row in enumerate(known):
                where = {"kind": "parquet", "path": name, "column": column, "group": group, "row": place}
                yield _row_item(stem_of(name), next(numbers), where, name, row)
    except (pyarrow.ArrowException, OSError) as error:
        raise XycodecError(f"{name}: not a Parquet file, or damaged ({reason_of(error)}): get a whole copy") from error


def _audio_column(name: str, schema: Any) -> str:
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if not found:
        raise XycodecError(f"{name}: no column holds audio as bytes (it has {', '.join(schema.names)})")
    return "audio" if "audio" in found else str(found[0])


@lru_cache(1)
def _parquet(name: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(open_binary(name) if is_url(name) else name)


@lru_cache(1)
def _row_group(name: str, group: int, column: str) -> list[Any]:
    values: list[Any] = _parquet(name).read_row_group(group, columns=[column]).column(0).to_pylist()
    return values


def open_parquet(path: str, column: str, group: int, row: int) -> BinaryIO:
    """The audio of a row of a row group, as a file. Raises AudioError if it cannot be read."""
    try:
        value = _row_group(path, group, column)[row]
    except Exception as error:  # whatever pyarrow raises
        raise AudioError(f"{path}: cannot be read ({reason_of(error)}): get a whole copy") from error
    return _opened(value, path)


# ---- Hugging Face ------------------------------------------------------------------------------


def is_dataset(folder: Path) -> bool:
    """Whether `datasets` saved something there."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def dataset_items(name: str) -> Iterator[Item]:
    """Yield an item for each row of a dataset that `Dataset.save_to_disk` wrote.

    Raises XycodecError if `datasets` is missing, it is a folder of several splits, or it has no column of audio.
    """
    require_package("datasets", "store")
    if (Path(name) / "dataset_dict.json").is_file():
        raise XycodecError(f"{name}: holds several splits: name the folder of one, such as {name}/train")
    dataset, column = _dataset(name)
    others = dataset.remove_columns([column]) if len(dataset.column_names) > 1 else None
    for number in range(len(dataset)):
        row = others[number] if others is not None else {}
        yield _row_item(stem_of(name), number, {"kind": "dataset", "path": name, "row": number}, name, row)


@lru_cache(1)
def _dataset(name: str) -> tuple[Any, str]:
    import datasets

    try:
        dataset = datasets.load_from_disk(name)
    except Exception as error:  # whatever it raises at files that are missing or damaged
        raise XycodecError(f"{name}: cannot be opened by datasets ({reason_of(error)})") from error
    for column, kind in dataset.features.items():
        if isinstance(kind, datasets.Audio):
            return dataset.cast_column(column, datasets.Audio(decode=False)), column
    raise XycodecError(f"{name}: no column is of the type Audio (it has {', '.join(dataset.features)})")


def open_row(path: str, row: int) -> BinaryIO:
    """The audio of a row of a saved dataset, as a file. Raises AudioError if it cannot be read."""
    dataset, column = _dataset(path)
    return _opened(dataset[row][column], path)


# ---- both --------------------------------------------------------------------------------------


def _row_item(stem: str, number: int, place: dict[str, Any], audio: str, row: dict[str, Any]) -> Item:
    name = row.get("id")
    meta = plain((key, value) for key, value in row.items() if key not in ("id", "audio"))
    return Item(f"{stem}/{number:08}" if name is None else str(name), place, {"audio": audio, **meta})


def _opened(value: Any, name: str) -> BinaryIO:
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if data is None and path:
        return open_binary(str(path))
    if not isinstance(data, bytes):
        raise AudioError(f"{name}: the row holds no audio")
    return io.BytesIO(data)
