"""Options and arguments that several commands share."""

from enum import StrEnum
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


class Precision(StrEnum):
    """Type that matrices are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Storage(StrEnum):
    """Type that weights are stored in."""

    float32 = "float32"
    float16 = "float16"


class Runtime(StrEnum):
    """Library that computes a codec."""

    torch = "torch"
    onnx = "onnx"


RuntimeOption = Annotated[
    Runtime, typer.Option("--runtime", help="onnx: --model is a folder of export-onnx, and torch stays out.")
]
Inputs = Annotated[list[str], typer.Argument(help="Files, folders, quoted globs, or - for stdin.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File, or folder for several inputs; - is stdout.")]
Dtype = Annotated[
    Precision,
    typer.Option(help="bfloat16 is faster on some processors and changes a few codes."),
]
Reference = Annotated[bool, typer.Option("--reference", help="Published rules for lengths and long audio.")]
Overlap = Annotated[
    float | None, typer.Option(help="Seconds that windows of long audio share (default: a third of the window).")
]
Layers = Annotated[int | None, typer.Option("--n-q", min=1, help="Use only the first codebooks.")]
Search = Annotated[
    int, typer.Option(min=1, help="Search for better codes by a beam of this width, 1 to 256: same bits, slower.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads in all (default: every core it may use).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Store = Annotated[Storage, typer.Option(help="float16 takes half the size.")]


def set_threads(threads: int | None) -> None:
    """Compute on so many CPU threads, or on a core each."""
    from xycodec.io.cores import use_threads

    use_threads(threads)


def require_extra(extra: str, *modules: str) -> None:
    """Raise XycodecError, which names the `extra` to install, unless all `modules` are there."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise XycodecError(f"{missing[0]} is not installed: pip install 'xycodec[{extra}]'")
