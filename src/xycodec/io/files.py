"""Folders that appear under their name only when they are complete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xycodec.errors import XycodecError


@contextmanager
def new_folder(target: Path, error: type[XycodecError], *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its name on success, and is removed on any exception.

    `replace` lets it take the place of a folder that exists, which comes back if that fails.

    Raises:
        error: `target` exists, its parent does not, or it cannot be written.
    """
    if target.exists() and not replace:
        raise error(f"{target}: exists already, choose another folder or remove it")
    if not target.parent.is_dir():
        raise error(f"{target}: the folder {target.parent} does not exist")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made, replaced = Path(scratch) / "made", Path(scratch) / "replaced"
            made.mkdir()
            yield made
            if target.exists():
                target.rename(replaced)
            try:
                made.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
    except OSError as reason:
        raise error(f"{target}: cannot be written ({reason})") from reason
