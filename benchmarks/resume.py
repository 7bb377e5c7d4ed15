"""How long a run takes to find its place in a corpus again, and what memory that takes, as the corpus grows.

    python benchmarks/resume.py [--clips 10000 100000 ...] [--times 100] [--folder WHERE] [--json OUT]

For each size a manifest is listed for the first time, which all later runs are spared; then a fresh process opens it
and goes on from the middle of an epoch to the first clips that are drawn, decoding none. The largest corpus is repeated
`--times` times for one more row, so that millions of clips need no manifest of gigabytes. Times are the clock's and, in
brackets, one core's; memory is what comes on top of the imports. Prints Markdown; target: 10 million clips in 10 s.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET_SECONDS = 10.0
_WORDS = ("the", "of", "and", "to", "in", "he", "was", "that", "his", "with", "for", "which", "from", "said")


def write_manifest(path: Path, clips: int) -> None:
    """Cuts of 1 to 20 s with a text of 30 words, of files that do not exist."""
    rng = random.Random(clips)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(clips):
            samples = 160 * rng.randint(100, 2000)
            seconds = samples / 16_000
            name = f"/data/corpus/{rng.randint(100, 9999)}/{number:08}.flac"
            words = {
                "id": name, "recording_id": name, "start": 0.0, "duration": seconds, "channel": 0,
                "text": " ".join(rng.choices(_WORDS, k=30)), "speaker": str(number % 900), "language": "en",
            }  # fmt: skip
            recording = {
                "id": name, "sources": [{"type": "file", "channels": [0], "source": name}],
                "sampling_rate": 16_000, "num_samples": samples, "duration": seconds, "channel_ids": [0],
            }  # fmt: skip
            cut = {
                "id": name, "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [words],
                "recording": recording, "type": "MonoCut",
            }  # fmt: skip
            file.write(json.dumps(cut) + "\n")


# ---- one measurement, in its own process -------------------------------------------------------


def measure(path: Path, times: int) -> dict[str, float]:
    """Seconds to open a manifest, to draw a step from the middle of an epoch, to read a line; MiB that it took."""
    from xycodec.data.batch import Position
    from xycodec.data.config import DataConfig, SourceConfig
    from xycodec.data.corpus import open_corpus
    from xycodec.data.sampling import Sampler

    before = _peak_mib()
    clock = Clock()
    corpus = open_corpus([SourceConfig(path=str(path))] * times)
    clock.lap("open")
    config = DataConfig(train=("unused",), batch_clips=32)
    sampler = Sampler(corpus, config, output_sample_rate=16_000, seed=0, rank=3, world_size=8)
    # As a checkpoint tells it: half of every cell.
    taken = tuple(len(cell.numbers) // 2 for cell in sampler._cells)
    place = Position(1, sum(taken) // 256, taken, sampler.order)
    _, after = next(sampler.steps(sampler.resumed(place)))
    clock.lap("draw")
    assert after.epoch == place.epoch
    numbers = range(0, len(corpus), len(corpus) // 500)
    assert all(corpus[number].id for number in numbers)
    clock.lap("read", len(numbers))
    return clock.laps | {"clips": len(corpus), "memory": _peak_mib() - before}


class Clock:
    """Seconds of the clock and of this process's core from one lap to the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str, times: int = 1) -> None:
        """Keep what has passed, divided by `times`, as `name` and `name_cpu`."""
        now = time.perf_counter(), time.process_time()
        self.laps[name], self.laps[f"{name}_cpu"] = ((b - a) / times for a, b in zip(self._last, now, strict=True))
        self._last = now


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(path: Path, times: int = 1) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(path), str(times)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="for manifests and catalogues; default: a temporary one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), int(args.measure[1]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        os.environ["XYCODEC_CACHE"] = scratch
        for clips in args.clips:
            path = Path(scratch) / f"{clips}.jsonl"
            write_manifest(path, clips)
            first = in_a_process(path)
            rows.append(in_a_process(path) | {"listed": first["open"], "listed_cpu": first["open_cpu"]})
        if args.times > 1:
            rows.append(in_a_process(path, args.times))
    print("| clips | listed once | opened again | first step of the epoch's second half | a line read | memory |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        listed = (
            f"{row['listed']:.1f} s ({row['listed_cpu']:.1f})" if "listed" in row else f"{args.times} times the same"
        )
        spent = [f"{row[name]:.2f} s ({row[name + '_cpu']:.2f})" for name in ("open", "draw")]
        read = f"{1e6 * row['read']:.0f} us ({1e6 * row['read_cpu']:.0f})"
        print(f"| {row['clips']:,} | {listed} | {' | '.join(spent)} | {read} | {row['memory']:.0f} MiB |")
    last = rows[-1]
    verdict = "met" if last["open"] + last["draw"] < TARGET_SECONDS else "missed"
    print(f"\nTarget (10 million clips in {TARGET_SECONDS:g} s): {verdict} at {last['clips']:,} clips.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
