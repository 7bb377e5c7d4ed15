"""Digests by which files and settings are known again."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any


def digest_of(about: Any) -> str:
    """32 hexadecimal digits of what JSON can say; other objects count by their `repr`."""
    return hashlib.blake2b(json.dumps(about, default=repr).encode(), digest_size=16).hexdigest()


def file_stamp(path: Path) -> list[Any]:
    """Place, size and time of a file, which tell its contents from all others. Raises OSError."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def file_digest(path: Path) -> str:
    """32 hexadecimal digits of a file's bytes, read once while the file is not touched. Raises OSError."""
    stat = path.stat()
    # The time of a file's last change, unlike that of its last writing, cannot be set back.
    return _digest(str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: str, *stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
