"""What waiting threads cost: OpenMP's ways to wait, on a machine that is idle and on one that is not.

    python benchmarks/threads.py [--rounds 5] [--busy N]

Each measurement is a process of its own, because OpenMP reads the environment once, and does what `xycodec roundtrip`
computes: a clip of six seconds encoded and decoded by xy-mini. Ways take turns, so that a busy machine is equally busy
for all of them; beside the second table, `--busy` processes (default: one for each core) compute without a pause.
Prints Markdown: medians of the clock's seconds, and of the processor's in brackets.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys

CALLS = 5
PROGRAM = f"""
import sys, time, torch
from xycodec import Codec
torch.set_num_threads(int(sys.argv[1]))
codec = Codec.from_pretrained("xy-mini", device="cpu")
audio = 0.1 * torch.randn(1, 6 * codec.input_sample_rate, generator=torch.Generator().manual_seed(0))
codec.decode(codec.encode(audio))
clock, processor = time.perf_counter(), time.process_time()
for _ in range({CALLS}):
    codec.decode(codec.encode(audio))
print((time.perf_counter() - clock) / {CALLS}, (time.process_time() - processor) / {CALLS})
"""


WAYS = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1,000 times, then sleep": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000 times, then sleep": {"GOMP_SPINCOUNT": "10000"},
    "spin 100,000 times, then sleep": {"GOMP_SPINCOUNT": "100000"},
    "OpenMP's default": {},
}


def measure(threads: int, settings: dict[str, str]) -> tuple[float, float]:
    """Seconds of a call by the clock and of the processor, in a fresh process."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = plain | settings | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    clock, processor = map(float, out.split())
    return clock, processor


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


def table(rounds: int, busy: int) -> None:
    """Print how the ways to wait compare beside `busy` processes."""
    cores = os.cpu_count() or 1
    ways = {"(one thread)": (1, WAYS["sleep at once"]), **{name: (cores, way) for name, way in WAYS.items()}}
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
    for other in others:
        other.start()
    try:
        found = [[measure(*way) for way in ways.values()] for _ in range(rounds)]
    finally:
        for other in others:
            other.kill()
    print(f"\nBeside {busy} processes that compute without a pause:\n" if busy else "\nOn a machine left alone:\n")
    print(f"| {cores} threads that wait | s a call (of the processor) |\n|---|---|")
    columns = [[statistics.median(value) for value in zip(*column, strict=True)] for column in zip(*found, strict=True)]
    for name, (clock, processor) in zip(ways, columns, strict=True):
        print(f"| {name} | {clock:.3f} ({processor:.3f}) |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=os.cpu_count())
    options = parser.parse_args()
    table(options.rounds, 0)
    table(options.rounds, options.busy)


if __name__ == "__main__":
    main()
