"""How long an evaluation takes beside its codec: python benchmarks/evaluate.py MANIFEST [--clips 1000] [--jobs 2].

Pieces of the manifest's recordings, each from its own place, go through `evaluate` with STOI, PESQ, mel distance and
SI-SDR; every stage is timed. Needs the extra `eval`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile as sf

from xycodec.eval.corpus import open_corpora
from xycodec.eval.evaluate import evaluate

RATE = 16_000
METRICS = ("stoi", "pesq_wb", "pesq_nb", "mel_distance", "si_sdr")


def main() -> int:
    """Cut, evaluate, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest", help="speech to cut the clips from")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--codec", default="opus-6k")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xycodec.") as scratch:
        speech = Path(scratch) / "speech"
        speech.mkdir()
        cut(args.manifest, speech, args.clips, args.seconds)
        times: dict[str, float] = {}
        result = evaluate(
            [args.codec],
            open_corpora([str(speech)]),
            Path(scratch) / "run",
            metrics=METRICS,
            processes=args.jobs,
            device="cpu",
            stage=timed(times),
        )
    audio = args.clips * args.seconds
    print(f"{args.clips} clips of {args.seconds:g} s, {args.jobs} processes, {result.machine}")
    for name, wall in times.items():
        print(f"{name:28} {wall:7.1f} s  {args.clips / wall:7.1f} clips a second  {audio / wall:7.0f} x real time")
    return 0


def cut(manifest: str, folder: Path, clips: int, seconds: float) -> None:
    """Write `clips` pieces of all the manifest's speech in a row, at even distances; they overlap if need be."""
    whole = np.concatenate([item.load() for item in open_corpora([manifest])])
    length = round(seconds * RATE)
    for number, start in enumerate(np.linspace(0, len(whole) - length, clips).astype(int)):
        sf.write(folder / f"{number:05}.flac", whole[start : start + length], RATE)


def timed(times: dict[str, float]) -> Callable[[str, int], object]:
    """A `stage` of `evaluate` that notes the wall time of each."""

    @contextmanager
    def stage(name: str, clips: int) -> Iterator[Callable[[], None]]:
        start = time.perf_counter()
        yield lambda: None
        times[name] = time.perf_counter() - start

    return stage


if __name__ == "__main__":
    sys.exit(main())
