"""What the benchmarks share: the machine's name, memory, and Markdown."""

import ctypes
import platform
from collections.abc import Callable, Iterable
from pathlib import Path


def cpu_name() -> str:
    """The processor's model as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(work: Callable[[], object]) -> float | None:
    """MiB that the process grows by in `work` at its peak, or None where Linux's counters are not there."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed is not to be had for nothing
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def against(value: float, target: float, form: str = "{:.2f}x") -> str:
    """A measured value next to its target, marked where it falls short."""
    wanted = form.format(target)
    return f"{form.format(value)} (target {wanted}{'' if value >= target else ', MISSED'})"


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
