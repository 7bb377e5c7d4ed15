"""Files inside tar archives, which are never unpacked: where they lie, and how to read them there."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from xycodec.errors import AudioError, ConfigError
from xycodec.io.files import open_input


@dataclass(frozen=True)
class TarMember:
    """`size` bytes from byte `offset` of the archive at `path`."""

    path: str
    offset: int
    size: int

    def open(self) -> "MemberFile":
        """Open the member as a binary file. Raises AudioError if the archive cannot be opened."""
        return MemberFile(open_input(self.path, AudioError), self.offset, self.size)


class MemberFile(io.RawIOBase):
    """A part of an open file that reads like a file of its own, and closes the other with itself."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._place = file, offset, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to `place`, from the member's beginning, the current place or the member's end."""
        self._place = place + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """Bytes from the member's beginning."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the member goes."""
        wanted = max(0, min(len(buffer), self._size - self._place))
        self._file.seek(self._offset + self._place)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        """Close the archive too."""
        self._file.close()
        super().close()


def members(path: Path) -> Iterator[tuple[str, TarMember]]:
    """Yield name and place of every file in a plain tar, reading its headers alone.

    Raises ConfigError if it is no plain tar, or is damaged.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or every header of the archive stays in memory
                if entry.isfile():
                    yield entry.name, TarMember(str(path), entry.offset_data, entry.size)
    except tarfile.TarError as error:
        raise ConfigError(f"{path}: not a plain tar, or damaged ({error}): get a whole copy, uncompressed") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error
