"""What share of its time `xycodec tokenize` gives to the codec, and how near its rate is to the codec's alone.

    python benchmarks/tokenize_corpus.py [--clips 500] [--threads 2] [--rounds 3] [--model xy-mini] [--ray-minutes 3]

(`tokenize.py` would be Python's module of that name for every script beside it.)

Clips of 3 s, FLAC, of 16 kHz and 24 kHz in turn, are encoded in this process: in turns by the codec alone, which gets
batches of audio that lies in memory, and by `tokenize`, which lists, reads, resamples, encodes and writes. Rates are
seconds of audio a second, by the clock and by processor time, which other work on the machine disturbs less. Through
Ray the time counts from the first clip that is written. Prints Markdown; a missed target is marked.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr

import xycodec
from xycodec.cli.tokenize import make_encoding
from xycodec.io.audio import read_audio
from xycodec.io.tokens.layout import Description, Windowing
from xycodec.io.tokens.write import ShardWriter
from xycodec.tokenize.cluster import RayEngine
from xycodec.tokenize.corpus import Report, tokenize_corpus
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.local import LocalEngine
from xycodec.tokenize.plan import make_plan
from xycodec.tokenize.shard import Encoding, Loaded, encode, load

SECONDS = 3.0
SPEECH = Path(xycodec.__file__).parent / "assets" / "fox.flac"
SHARE, RATE, THROUGH_RAY = 0.9, 0.9, 0.85


@dataclass
class Spent:
    """Seconds by the clock and of the processor."""

    clock: float = 0.0
    processor: float = 0.0


@contextmanager
def spent() -> Iterator[Spent]:
    """Measure what a block spends."""
    made, clock, processor = Spent(), time.perf_counter(), time.process_time()
    yield made
    made.clock, made.processor = time.perf_counter() - clock, time.process_time() - processor


def write_clips(folder: Path, count: int) -> list[Path]:
    """Clips of `SECONDS` from random places of a recording, louder and softer."""
    speech = read_audio(SPEECH, 16_000)
    generator = np.random.default_rng(0)
    files = []
    for number in range(count):
        first = int(generator.integers(len(speech) - int(16_000 * SECONDS)))
        clip = generator.uniform(0.3, 1.0) * speech[first : first + int(16_000 * SECONDS)]
        rate = (16_000, 24_000)[number % 2]
        files.append(folder / f"{number:05}.flac")
        sf.write(files[-1], clip if rate == 16_000 else soxr.resample(clip, 16_000, rate).clip(-1, 1), rate)
    return files


def codec_alone(encoding: Encoding, clips: list[Loaded]) -> Spent:
    """Encode clips whose audio is there, in the groups that `tokenize` makes."""
    with spent() as made:
        for first in range(0, len(clips), 40):
            encode(encoding, clips[first : first + 40])
    return made


def whole(encoding: Encoding, files: list[Path], store: Path) -> tuple[Spent, Report]:
    """Tokenize the files in this process."""
    shutil.rmtree(store, ignore_errors=True)
    with spent() as made:
        engine = LocalEngine(lambda: encoding, {})
        report = tokenize_corpus([str(files[0].parent)], store, encoding.describe(), engine)
    return made, report


def through_ray(settings: dict[str, Any], files: list[Path], store: Path, minutes: float) -> tuple[float, float]:
    """Seconds of audio, and of the clock, between the first written group and the last."""
    told: list[tuple[float, float]] = []
    engine = RayEngine(
        make_encoding,
        settings,
        cores=settings["threads"],
        actors=1,
        accelerators=False,
        advance=lambda clips, seconds: told.append((time.perf_counter(), seconds)),
    )
    encoding = make_encoding(**settings)

    def items() -> Iterator[Item]:
        """Each file many times."""
        for number in range(int(minutes * 60 * RAY_RATE / SECONDS)):
            path = str(files[number % len(files)])
            yield Item(f"{number:09}", {"kind": "file", "path": path}, {"audio": path})

    tokenize_corpus([str(files[0].parent)], store, encoding.describe(), engine, items=items(), shard_clips=512)
    # What was written at the same moment as the first does not count.
    began = told[0][0] + 5
    return sum(seconds for moment, seconds in told if moment > began), told[-1][0] - began


RAY_RATE = 20.0
"""Seconds of audio a second that the length of the run through Ray is planned by; set by what was measured."""


def report_stages(parent: Path) -> None:
    """Print the rate of each stage but the codec on one core, by processor time."""
    speech = np.tile(read_audio(SPEECH, 16_000), 20)[: 16_000 * 30]
    print("\n| stage, on one core | by processor time |\n|---|---|")
    for suffix, rate in (("wav", 16_000), ("flac", 16_000), ("flac", 44_100), ("mp3", 44_100), ("opus", 48_000)):
        path = parent / f"x.{suffix}"
        clip = speech if rate == 16_000 else soxr.resample(speech, 16_000, rate).clip(-1, 1)
        sf.write(path, clip, rate, format="OGG" if suffix == "opus" else None, subtype=SUBTYPES.get(suffix))
        with spent() as made:
            for number in range(20):
                load(Item(str(number), {"kind": "file", "path": str(path)}), 16_000, 16_000 * 30)
        print(f"| read {suffix} of {rate} Hz, to 16 kHz | {600 / made.processor:,.0f} x real time |")
    about = {"audio": "corpus/x.flac", "text": "some twenty words of text " * 4, "speaker": "one"}
    items = [Item(f"{number:09}", {"kind": "file", "path": "corpus/x.flac"}, about) for number in range(50_000)]
    with spent() as made:
        make_plan(parent / "plan", ["x"], items, None)
    print(f"| list and plan | {len(items) / made.processor:,.0f} clips a second |")
    codes, audio = np.zeros((8, 81), np.int64), 103_680
    with spent() as made, ShardWriter(parent / "shard", ABOUT) as writer:
        for item in items[:20_000]:
            writer.add(item.id, codes, audio, item.meta)
        writer.finish(parent / "finished")
    print(f"| write | {20_000 / made.processor:,.0f} clips a second |")


SUBTYPES = {"opus": "OPUS"}
ABOUT = Description("xy-mini", "0", 8, 1024, 1280, 16_000, 16_000, Windowing(75, 25, "middle"))


def mark(value: float, target: float) -> str:
    """A share, and whether it is what it has to be."""
    return f"{value:.1%} (target {target:.0%}{'' if value >= target else ', MISSED'})"


def main() -> None:
    """Measure and print."""
    global RAY_RATE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="xy-mini")
    parser.add_argument("--ray-minutes", type=float, default=0, help="through Ray as well, for so long (0: not)")
    args = parser.parse_args()
    settings = {
        "model": args.model, "n_q": None, "search": 1, "overlap": None, "reference": False, "device": "cpu",
        "dtype": "float32", "share_batches": False, "batch_s": 30.0, "threads": args.threads,
    }  # fmt: skip
    encoding = make_encoding(**settings)
    parent = Path(tempfile.mkdtemp())
    try:
        (parent / "audio").mkdir()
        files = write_clips(parent / "audio", args.clips)
        codec = encoding.codec
        clips = [
            load(Item(path.name, {"kind": "file", "path": str(path)}), codec.input_sample_rate, codec.window_samples)
            for path in files
        ]
        codec_alone(encoding, clips[:40])  # warms up
        alone, made, reports = [], [], []
        for _ in range(args.rounds):
            alone.append(codec_alone(encoding, clips))
            one, report = whole(encoding, files, parent / "store")
            made.append(one)
            reports.append(report)
        report_local(args, alone, made, reports)
        report_stages(parent)
        if args.ray_minutes:
            RAY_RATE = args.clips * SECONDS / statistics.median(one.clock for one in alone)
            audio, clock = through_ray(settings, files, parent / "ray", args.ray_minutes)
            again = codec_alone(encoding, clips)
            rates = [args.clips * SECONDS / one.clock for one in (alone[-1], again)]
            share = audio / clock / statistics.mean(rates)
            print(f"\nThrough Ray, {clock / 60:.1f} minutes after the first clip: {audio / clock:.1f} x real time, ")
            print(f"{mark(share, THROUGH_RAY)} of the codec alone just before and after it.")
    finally:
        shutil.rmtree(parent)


def report_local(args: argparse.Namespace, alone: list[Spent], made: list[Spent], reports: list[Report]) -> None:
    """Print the tables of one process."""
    audio = args.clips * SECONDS

    def rate(runs: list[Spent], of: Callable[[Spent], float]) -> float:
        return audio / statistics.median(map(of, runs))

    print(f"{args.clips} clips of {SECONDS:g} s, {args.model}, {args.threads} threads, ")
    print(f"medians of {args.rounds} rounds in turn\n")
    print("| | codec alone | tokenize | share |\n|---|---|---|---|")
    for name, of in (("clock", lambda one: one.clock), ("processor time", lambda one: one.processor)):
        mine, theirs = rate(made, of), rate(alone, of)
        print(f"| x real time by {name} | {theirs:.1f} | {mine:.1f} | {mark(mine / theirs, RATE)} |")
    print("\n| of the worker's time | share |\n|---|---|")
    times = [report.times for report in reports]
    total = sum(one.waiting + one.encoding + one.writing for one in times)
    print(f"| encoding | {mark(sum(one.encoding for one in times) / total, SHARE)} |")
    print(f"| waiting for audio | {sum(one.waiting for one in times) / total:.1%} |")
    print(f"| writing | {sum(one.writing for one in times) / total:.1%} |")
    print(f"| reading and resampling, beside it | {sum(one.reading for one in times) / total:.1%} |")


if __name__ == "__main__":
    main()
