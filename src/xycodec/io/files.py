"""Files and folders that appear under their name only when they are complete, and one line of what went wrong."""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from xycodec.errors import XycodecError

FilePath = str | os.PathLike[str]


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


@contextmanager
def atomic_path(path: FilePath, error: type[XycodecError]) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`, with its suffix, and rename it onto `path` on success.

    On any exception, KeyboardInterrupt included, the temporary file is removed and `path` stays as it was. A
    symbolic link is followed. The file's mode is what the umask gives.

    Raises:
        error: `path` is a folder or a device, or its folder is missing or not writable.
    """
    name = repr(os.fspath(path))
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            # Renaming onto a device such as /dev/null would replace the device.
            raise error(f"{name} is a folder or a device: give the name of a file")
        if not target.parent.is_dir():
            raise error(f"{str(target.parent)!r} is not a folder: create it before writing {name}")
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp{target.suffix}")
        temporary.touch(exist_ok=False)
    except XycodecError:
        raise
    except (OSError, ValueError) as reason:  # ValueError: a null byte in the path
        raise error(os_error_line(name, "written", reason)) from reason
    try:
        yield temporary
        try:
            os.replace(temporary, target)
        except OSError as reason:
            raise error(os_error_line(name, "written", reason)) from reason
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_scratch(path: Path) -> bool:
    """Whether `atomic_path` made this file, and a kill left it."""
    return path.name.startswith(".") and path.with_suffix("").suffix == ".tmp"


def lines_of(text: str) -> list[str]:
    """The lines of a file's text, without their ends; what else Unicode breaks lines at stays inside them."""
    return text.removesuffix("\n").split("\n") if text else []


def open_input(path: FilePath, error: type[XycodecError]) -> BinaryIO:
    """Open a file to read its bytes; raise `error`, in one line, if that is not possible."""
    if not isinstance(path, (str, os.PathLike)):
        raise error(f"a file is read from its path, not from {type(path).__name__}")
    try:
        return open(path, "rb")
    except (OSError, ValueError) as reason:  # ValueError: a null byte in the path
        raise error(os_error_line(repr(os.fspath(path)), "read", reason)) from reason


def os_error_line(name: str, verb: str, error: Exception) -> str:
    """One line for a person: `name` cannot be `verb` ("read", "written"), why, and what to check."""
    why = getattr(error, "strerror", None) or error
    return f"{name} cannot be {verb} ({why}): check the path, its permissions and the disk"


def write_whole(path: Path, write: Callable[[Path], Any], error: type[XycodecError] = XycodecError) -> None:
    """Let `write` make a file that takes the name `path` once it is complete; folders above it are made.

    Raises `error` if it cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, error) as scratch:
            write(scratch)
    except XycodecError:
        raise
    # torch and safetensors report a full disk in their own ways.
    except (OSError, RuntimeError, SafetensorError) as reason:
        raise error(os_error_line(str(path), "written", reason)) from reason
