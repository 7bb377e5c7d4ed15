"""Runs benchmarks and keeps what they print, below the machine's description: one page of results/ for each.

    python benchmarks/record.py speed xcodec
    python benchmarks/record.py all --speech DATA/speech     # DATA/speech holds dev.jsonl

A page lies in results/ under the processor's maker, since an AMD's numbers say little of an Intel's, and names the
command that makes it anew. It replaces the old one only where the benchmark ends well. Leave the machine alone
meanwhile: the load before and after tells whether it was. (A GPU's page is made by gpu.py.)
"""

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from shared import cpu_name, table
from xycodec.io.files import write_whole
from xycodec.nn.deterministic.kernels import maker

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A page of results: the commands whose output it holds."""

    title: str
    commands: tuple[str, ...]
    """A script of this folder and its arguments; {speech} stands for the folder of recordings."""
    threads: int | None = None
    """OMP_NUM_THREADS; None leaves it to torch."""


PAGES = {
    "kernels": Page("Libraries that multiply matrices", ("-m xycodec bench --kernels --threads 1",)),
    "speed": Page("XY-Tokenizer beside the published computation", ("speed.py",)),
    "xcodec": Page("X-Codec beside Transformers", ("xcodec.py",)),
    "load": Page("Loading a checkpoint", ("load.py",)),
    "threads": Page("Threads that wait", ("threads.py",)),
    "ablations": Page("Devices of X-Codec's convolutions", ("ablations.py --seconds 2 --rounds 3",), threads=1),
    "train_step": Page(
        "A training step", ("train_step.py --size small --clips 4 --seconds 3 --steps 4 --precision float32",)
    ),
    "tokenize": Page(
        "A corpus to tokens", ("tokenize_corpus.py --rounds 2", "tokenize_corpus.py --rounds 2 --threads 1")
    ),
    "token_store": Page("Random clips of a token store", ("token_store.py --clips 1000000",)),
    "resume": Page("The place in a corpus", ("resume.py",), threads=1),
    "serve": Page("A server under load", ("serve.py --seconds 30",)),
    "export": Page(
        "Exported codecs", ("export.py xy-mini", "export_small.py {speech}/dev.jsonl --of librispeech"), threads=1
    ),
    "search": Page("Search over codes", ("search.py {speech}/dev.jsonl --of librispeech",), threads=1),
    "seams": Page("Seams between windows", ("seams.py {speech}/dev.jsonl",), threads=1),
    "abx": Page("ABX of synthetic speech", ("abx.py --sentences 30",), threads=1),
    "evaluate": Page("An evaluation", ("evaluate.py {speech}/dev.jsonl --clips 100 --jobs 1",)),
}


def machine() -> dict[str, str]:
    """What the numbers depend on, by the head of its column."""
    return {
        "date": str(date.today()),
        "processor": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def record(name: str, speech: Path | None, folder: Path) -> bool:
    """Run a page's commands and write it; False, and no page, where one of them fails."""
    page = PAGES[name]
    commands = [command.format(speech=speech) for command in page.commands]
    setting = {} if page.threads is None else {"OMP_NUM_THREADS": str(page.threads)}
    about, before = machine(), _load()
    printed = []
    for command in commands:
        print(f"{name}: {command} ...", file=sys.stderr, flush=True)
        said = _run(command, setting)
        if said is None:
            print(f"record.py: {name}: `{command}` failed: the page stays as it was", file=sys.stderr)
            return False
        printed.append(said)
    about |= setting | {"load before, after": f"{before}, {_load()}"}
    again = f"    python benchmarks/record.py {name}" + (" --speech FOLDER" if _needs_speech(name) else "")
    parts = [f"# {page.title}", again, table(about, [list(about.values())])]
    for command, said in zip(page.commands, printed, strict=True):
        # A command of xycodec prints for a terminal, the scripts Markdown.
        shown = said if command.split()[0].endswith(".py") else f"```text\n{said}```"
        parts += [f"`{command.format(speech='FOLDER')}`", shown]
    path = folder / maker() / f"{name}.md"
    text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    write_whole(path, lambda whole: whole.write_text(text, encoding="utf-8"))
    print(f"{path} written", file=sys.stderr)
    return True


def _run(command: str, setting: dict[str, str]) -> str | None:
    """What a command prints, which is passed on as well; None where it fails."""
    words = command.split()
    if words[0].endswith(".py"):
        words[0] = str(HERE / words[0])
    environment = os.environ | setting | {"COLUMNS": "120"}
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines) if process.returncode == 0 else None


def _needs_speech(name: str) -> bool:
    return any("{speech}" in command for command in PAGES[name].commands)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _commit() -> str:
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> int:
    """Record the pages that are named; 1 if one could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", choices=[*PAGES, "all"], metavar="PAGE", help=", ".join([*PAGES, "all"]))
    parser.add_argument("--speech", type=Path, help="folder with dev.jsonl")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    names = list(PAGES) if "all" in arguments.pages else arguments.pages
    if arguments.speech is None and (asking := [name for name in names if _needs_speech(name)]):
        parser.error(f"{', '.join(asking)}: --speech FOLDER is missing, whose dev.jsonl lists recordings")
    done = [record(name, arguments.speech, arguments.results) for name in names]  # one that fails stops none
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
