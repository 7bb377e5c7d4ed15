"""A file of JSON lines that grows while work is done, and is whole again after a kill."""

import json
from pathlib import Path
from typing import Any

from xycodec.errors import XycodecError
from xycodec.io.files import os_error_line


class Journal:
    """Rows of one file, in the order they came."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Every row that was written whole. A last line that a kill cut short is taken off the file.

        Raises XycodecError, with the line, where anything else is not a row.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise XycodecError(os_error_line(str(self.path), "read", error)) from error
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(whole)
        rows = []
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise XycodecError(f"{self.path}:{number}: not a row of JSON: take the line out, it is made again")
            rows.append(row)
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Write one row. Raises XycodecError if the disk does not take it."""
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise XycodecError(os_error_line(str(self.path), "written", error)) from error
