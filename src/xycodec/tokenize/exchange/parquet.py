"""Clips as a Parquet file."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from xycodec.errors import StoreError, reason_of
from xycodec.io.files import write_whole
from xycodec.io.tokens.layout import Description
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.tokenize.exchange.rows import clip_of, codes_of
from xycodec.tokenize.inputs.item import require_package

_GROUP = 1000  # rows


def write_parquet(store: TokenStore, target: Path) -> None:
    """Write a row for each clip: `id`, `samples`, `frames`, `codes` (frame after frame), and `meta` as JSON.

    Raises StoreError if it cannot be written, XycodecError without pyarrow.
    """
    require_package("pyarrow", "store")
    import pyarrow
    import pyarrow.parquet

    code = pyarrow.uint16() if store.description.dtype.itemsize == 2 else pyarrow.uint32()
    kinds = {"id": pyarrow.string(), "samples": pyarrow.int64(), "frames": pyarrow.int64(), "meta": pyarrow.string()}
    schema = pyarrow.schema([*kinds.items(), ("codes", pyarrow.list_(code))])

    def write(scratch: Path) -> None:
        clips = iter(store)
        with pyarrow.parquet.ParquetWriter(scratch, schema) as writer:
            while some := list(islice(clips, _GROUP)):
                columns = {
                    "id": [clip.id for clip in some],
                    "samples": [clip.samples for clip in some],
                    "frames": [clip.codes.shape[1] for clip in some],
                    "meta": [json.dumps(clip.meta, ensure_ascii=False) for clip in some],
                    "codes": [clip.codes.T.ravel() for clip in some],
                }
                writer.write_table(pyarrow.table(columns, schema=schema))

    write_whole(target, write, StoreError)


def read_parquet(source: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of such a file; `id` and `codes` are needed. Raises StoreError if it is damaged or lacks them."""
    require_package("pyarrow", "store")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(_GROUP):
                for row in batch.to_pylist():
                    meta = json.loads(row.get("meta") or "{}")
                    codes = codes_of(row["codes"], about, f"{source}: {row.get('id')}")
                    own = {key: row[key] for key in ("id", "samples") if row.get(key) is not None}
                    yield clip_of(meta | own, about, codes, source)
    except StoreError:
        raise
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{source}: not a Parquet file of codes, or damaged ({reason_of(error)})") from error
