"""Files inside tar archives, which are never unpacked: where they lie, and how to read them there."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import identity_of
from xycodec.io.decoders import Window
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


class MemberFile(Window):
    """The bytes of a member as a file of their own; the archive is closed with it."""

    def __init__(self, archive: BinaryIO, offset: int, size: int) -> None:
        super().__init__(archive, offset, offset + size, "", identity_of(archive))
        self._archive = archive

    def close(self) -> None:
        """Close the archive too."""
        self._archive.close()
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
