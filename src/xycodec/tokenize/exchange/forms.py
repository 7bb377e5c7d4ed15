"""The forms by name."""

from collections.abc import Callable, Iterator
from pathlib import Path

from xycodec.io.tokens.layout import Description
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.tokenize.exchange.archives import read_shar, read_tar, write_shar, write_tar
from xycodec.tokenize.exchange.files import read_npy, read_xyc, write_npy, write_xyc
from xycodec.tokenize.exchange.parquet import read_parquet, write_parquet
from xycodec.tokenize.exchange.rows import read_jsonl, write_jsonl

EXPORTS: dict[str, Callable[[TokenStore, Path], None]] = {
    "jsonl": write_jsonl,
    "npy": write_npy,
    "xyc": write_xyc,
    "tar": write_tar,
    "shar": write_shar,
    "parquet": write_parquet,
}
IMPORTS: dict[str, Callable[[Path, Description], Iterator[StoredClip]]] = {
    "jsonl": read_jsonl,
    "npy": read_npy,
    "xyc": read_xyc,
    "tar": read_tar,
    "shar": read_shar,
    "parquet": read_parquet,
}
