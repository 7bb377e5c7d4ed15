"""Speed against the published computation, with full-size random weights, as ratios measured in one run.

    python benchmarks/speed.py [--threads N] [--cpu-time] [--quick] [--json OUT]

Prints Markdown. Exits with 1 if any float32 code differs from the published computation's (in long clips: elsewhere
than at a near-tie), or if a batch gives other codes than its clips alone. A missed target is only marked: the machine
may be busy.
"""

import argparse
import copy
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from published import PublishedXYTokenizer
from shared import against, cpu_name, peak_memory, say, table
from xycodec.checkpoints.build import random_codec
from xycodec.cli import bench
from xycodec.models.agreement import CodeAgreement, compare_codes
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.deterministic.kernels import maker

# Clip length in seconds -> how many times faster than the published computation encode is to be.
AMD_TARGETS = {2: 40.0, 5: 20.0, 10: 10.0, 30: 5.0}
ENCODE_TARGETS = AMD_TARGETS if maker() == "amd" else {2: 22.0, 5: 12.0, 10: 6.4, 30: 1.8}
DECODE_TARGET = 2.0 if maker() == "amd" else 1.0
LONG, LONG_TARGET = 75, 3.0  # seconds
BATCH_TARGET, PEAK_TARGET = 1.0, 0.8


@dataclass(frozen=True)
class Comparison:
    """Ours against the published computation at one clip length."""

    seconds: int
    identical: bool
    """Whether all codes agree."""
    encode_s: float
    published_encode_s: float
    decode_s: float
    published_decode_s: float
    audio_difference: float
    """Largest difference of the decoded audio, relative to its peak."""
    encode_memory_mib: float | None
    """Peak memory of encoding above what was held before it, in MiB; None where the system does not tell."""
    published_encode_memory_mib: float | None

    @property
    def encode_ratio(self) -> float:
        """How many times faster encode is."""
        return self.published_encode_s / self.encode_s

    @property
    def decode_ratio(self) -> float:
        """How many times faster decode is."""
        return self.published_decode_s / self.decode_s


@dataclass(frozen=True)
class LongComparison:
    """Encoding a long clip in the published windows, ours against the published computation."""

    seconds: int
    windows: int
    agreement: CodeAgreement
    encode_s: float
    published_encode_s: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.published_encode_s / self.encode_s


def compare_long(codec: XYTokenizer, published: PublishedXYTokenizer, seconds: int) -> LongComparison:
    """One call of each side, since the published one takes a whole window's time for every 20 s."""
    clip = bench.speech_like(seconds)
    windows = published.windows(clip)
    theirs: list[Tensor] = []

    def encode_published() -> None:
        theirs[:] = [published.encode(window) for window in windows]

    times = bench.best_times([partial(codec.encode_long, clip), encode_published], 1, warm=False)
    parts = (compare_codes(codec, window, codes) for window, codes in zip(windows, theirs, strict=True))
    return LongComparison(seconds, len(windows), sum(parts, CodeAgreement(0, 0, 0, 0)), *times)


def compare(codec: XYTokenizer, published: PublishedXYTokenizer, seconds: int, repeats: int) -> Comparison:
    """Codes, times and memory of both sides for one clip of `seconds`."""
    clip = bench.speech_like(seconds)
    ours, theirs = codec.encode(clip[None]).codes[0], published.encode(clip)
    audio, reference = codec.decode(theirs[None]).audio[0], published.decode(theirs)
    # Both sides get the same number of calls: the least of more calls would be smaller.
    encode_s, published_encode_s = bench.best_times(
        [partial(codec.encode, clip[None]), partial(published.encode, clip)], repeats, warm=False
    )
    decode_s, published_decode_s = bench.best_times(
        [partial(codec.decode, theirs[None]), partial(published.decode, theirs)], 3 * repeats, warm=False
    )
    return Comparison(
        seconds=seconds,
        identical=torch.equal(ours, theirs),
        encode_s=encode_s,
        published_encode_s=published_encode_s,
        decode_s=decode_s,
        published_decode_s=published_decode_s,
        audio_difference=float((audio - reference).abs().max() / reference.abs().max()),
        encode_memory_mib=peak_memory(partial(codec.encode, clip[None])),
        published_encode_memory_mib=peak_memory(partial(published.encode, clip)),
    )


def batch_equals_single(codec: XYTokenizer, clips: int) -> bool:
    """Whether every clip of a mixed batch has the codes, and the audio, that it has alone."""
    items = bench.mixed_batch(codec, clips=clips)
    out = codec.encode(*bench.pad_clips(items))
    audio = codec.decode(out.codes, out.lengths)
    return all(
        _same_alone(codec, clip, codes[:, :frames], signal[:samples])
        for clip, codes, frames, signal, samples in zip(
            items, out.codes, out.lengths.tolist(), audio.audio, audio.lengths.tolist(), strict=True
        )
    )


def _same_alone(codec: XYTokenizer, clip: Tensor, codes: Tensor, audio: Tensor) -> bool:
    alone = codec.encode(clip[None]).codes
    return torch.equal(alone[0], codes) and torch.equal(codec.decode(alone).audio[0], audio)


# ---- printing ----------------------------------------------------------------------------------


def comparison_table(results: list[Comparison]) -> str:
    """One row for each clip length."""
    head = ["clip", "codes", "encode, s: ours / published", "ratio", "decode, s: ours / published", "ratio",
            "decode differs by", "encode memory, MiB: ours / published"]  # fmt: skip
    return table(
        head,
        (
            [
                f"{r.seconds} s",
                "identical" if r.identical else "DIFFERENT",
                f"{r.encode_s:.3f} / {r.published_encode_s:.2f}",
                against(r.encode_ratio, ENCODE_TARGETS[r.seconds], "{:.1f}x"),
                f"{r.decode_s:.3f} / {r.published_decode_s:.3f}",
                against(r.decode_ratio, DECODE_TARGET),
                f"{r.audio_difference:.1e}",
                f"{r.encode_memory_mib or 0:.0f} / {r.published_encode_memory_mib or 0:.0f}",
            ]
            for r in results
        ),
    )


def long_table(results: list[LongComparison]) -> str:
    """One row for each length."""
    return table(
        ["clip", "published windows", "codes", "encode, s: ours / published", "ratio"],
        (
            [
                f"{r.seconds} s",
                str(r.windows),
                "identical" if r.agreement.different == 0 else str(r.agreement),
                f"{r.encode_s:.2f} / {r.published_encode_s:.2f}",
                against(r.ratio, LONG_TARGET if r.seconds == LONG else ENCODE_TARGETS[r.seconds], "{:.1f}x"),
            ]
            for r in results
        ),
    )


def speed_table(rows: list[bench.SpeedRow], peak: float) -> str:
    """Times real time, and the share of the machine's float32 peak."""
    return f"Float32 matrix-product peak: {peak:.0f} GFLOP/s.\n\n" + table(
        ["clip", "encode, x real time", "share of peak", "decode, x real time", "share of peak"],
        (
            [
                f"{r.seconds:g} s",
                f"{r.encode_speed:.1f}",
                against(r.encode_share, PEAK_TARGET, "{:.0%}"),
                f"{r.decode_speed:.1f}",
                against(r.decode_share, PEAK_TARGET, "{:.0%}"),
            ]
            for r in rows
        ),
    )


def batch_table(batch: bench.BatchResult, same: bool) -> str:
    """Throughput of a mixed batch, and whether it changes anything."""
    row = [
        f"{batch.clips} clips of 2-15 s",
        f"{batch.batch_speed:.2f}",
        f"{batch.single_speed:.2f}",
        against(batch.ratio, BATCH_TARGET),
        "yes" if same else "NO",
    ]
    return table(["batch", "audio s per s", "10 s clips singly", "ratio", "codes and audio as if alone"], [row])


def agreement_table(results: list[bench.Agreement]) -> str:
    """One row for each clip length."""
    layers = [f"layer {i + 1}" for i in range(len(results[0].equal_codes))]
    return table(
        ["clip", "encode", "decode", *layers],
        (
            [
                f"{r.seconds:g} s",
                f"{r.encode_ratio:.2f}x",
                f"{r.decode_ratio:.2f}x",
                *(f"{equal:.1%}" for equal in r.equal_codes),
            ]
            for r in results
        ),
    )


def run(quick: bool) -> tuple[bool, dict[str, Any]]:
    """Measure and print everything; whether all codes are as they must be, and the numbers."""
    repeats = 1 if quick else 3
    lengths = [2, 10] if quick else list(ENCODE_TARGETS)
    codec = random_codec(CONFIGS["xy-tokenizer"])
    codec.reference = True

    say("## Against the published computation\n")
    published = PublishedXYTokenizer(codec)
    comparisons = []
    for seconds in lengths:
        print(f"clips of {seconds} s ...", file=sys.stderr, flush=True)
        comparisons.append(compare(codec, published, seconds, repeats))
    say(comparison_table(comparisons))

    say("## Long clips, in the windows of the published code\n")
    long_clips = [compare_long(codec, published, seconds) for seconds in ([30] if quick else [30, LONG])]
    say(long_table(long_clips))

    say("## Share of the machine's peak\n")
    peak = max(bench.matmul_peak() for _ in range(3))
    rows = list(bench.measure(codec, lengths, repeats=2 * repeats, peak=peak))
    say(speed_table(rows, peak))

    say("## Batches\n")
    batch = bench.measure_batch(codec, clips=8 if quick else 32, repeats=repeats)
    same = batch_equals_single(codec, 8)
    say(batch_table(batch, same))

    say("## bfloat16 towers, against float32\n")
    half_peak = bench.matmul_peak(torch.bfloat16, 1024)
    agreements = []
    if half_peak < peak / 2:
        say(f"Not compared: products of bfloat16 reach {half_peak:.0f} GFLOP/s here.\n")
    else:
        half = copy.deepcopy(codec)
        half.to_compute_dtype(torch.bfloat16)
        agreements = [bench.bf16_agreement(codec, half, seconds=s, repeats=repeats) for s in lengths]
        say(agreement_table(agreements))

    numbers = {
        "peak_gflops": peak,
        "comparisons": [asdict(r) for r in comparisons],
        "long": [asdict(r) for r in long_clips],
        "speed": [asdict(r) for r in rows],
        "batch": asdict(batch) | {"equals_single": same},
        "bf16": [asdict(r) for r in agreements],
    }
    right = all(r.identical for r in comparisons) and all(r.agreement.mistakes == 0 for r in long_clips)
    return same and right, numbers


def main() -> int:
    """Parse, run, write; 1 if codes differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, not wall time")
    parser.add_argument("--quick", action="store_true", help="2 s and 10 s clips, one repeat, a small batch")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads, bench.clock = 1, time.process_time
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = {
        "date": str(date.today()),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load average": os.getloadavg()[0],
        "times": "processor" if args.cpu_time else "wall clock",
    }
    say("Float32, random weights at full size.\n")
    right, numbers = run(args.quick)
    if args.json:
        args.json.write_text(json.dumps(machine | numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
