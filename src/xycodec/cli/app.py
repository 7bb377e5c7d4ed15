"""The command line: each command parses, calls one public function, and prints.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import Annotated, NoReturn, TextIO

import typer

from xycodec import __version__
from xycodec.cli.classify import classify
from xycodec.cli.coding import decode, encode, roundtrip
from xycodec.cli.data import data_app
from xycodec.cli.evaluate import abx, evaluate, probe
from xycodec.cli.generation import evaluate_generation, evaluate_tts
from xycodec.cli.models import bench, convert, export_onnx, export_web, info, models
from xycodec.cli.say import say
from xycodec.cli.serve import serve
from xycodec.cli.terminal import print_error
from xycodec.cli.tokenize import tokenize
from xycodec.cli.tokens import tokens_app
from xycodec.cli.train import export, train
from xycodec.cli.transcribe import transcribe
from xycodec.errors import AudioWarning, XycodecError

# Threads that wait for others spin for a moment, then they sleep. OpenMP's own moment takes a busy machine's cores from
# those that are waited for: two threads were five times slower. It reads this when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

app = typer.Typer(
    name="xycodec",
    help="Speech to 1 kbit/s of codes, and back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"xycodec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (
    encode, decode, roundtrip, info, models, convert, export_onnx, export_web, bench, train, evaluate, probe, abx,
    classify, export, tokenize, transcribe, say, serve, evaluate_tts, evaluate_generation,
):  # fmt: skip
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(tokens_app, name="tokens")


_usual_warning = warnings.showwarning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print what the reader tells of a file as a note; other warnings as ever."""
    if issubclass(category, AudioWarning):
        print(f"note: {message}", file=sys.stderr)
    else:
        _usual_warning(message, category, filename, lineno, file, line)


def main() -> NoReturn:
    """Run the command line. Exit code 0: all well; 1: something failed, said in a line; 2: wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text in the terminal's encoding.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        app(prog_name="xycodec")
    except XycodecError as error:
        print_error(str(error))
    except OSError as error:
        print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except SystemExit as stop:
        if stop.code == 130:  # typer's word for Ctrl-C
            print_error("interrupted; what is finished stays, run again to continue")
        raise
    raise SystemExit(1)


if __name__ == "__main__":
    main()
