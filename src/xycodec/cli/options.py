"""What several commands share."""

from importlib.util import find_spec
from typing import Annotated

import typer

from xycodec.errors import XycodecError

Model = Annotated[
    str,
    typer.Option("--model", "-m", envvar="XYCODEC_MODEL", help="Name, folder, checkpoint or hub id (see models)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that share the files.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]


def require_extra(extra: str, *modules: str) -> None:
    """Raise XycodecError, which names the `extra` to install, unless all `modules` are there."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise XycodecError(f"{missing[0]} is not installed: pip install 'xycodec[{extra}]'")
