"""One command for one GPU and ten minutes: throughput at full size, and whether float32 codes are the CPU's.

    python benchmarks/gpu.py [--size full|tiny] [--device auto] [--minutes 9] [--output benchmarks/results/gpu.md]

Random weights at the published size, and xy-mini. Every table is written as soon as it is measured, so that a run that
is cut short leaves what it has; parts that would begin after `--minutes` are left out and named. In this order:
codes against the CPU's, peak, encode and decode in float32 and bfloat16, a training step of both stages.
"""

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import date
from io import StringIO
from pathlib import Path

import torch

import train_step
import xycodec
from shared import say, table
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec, resolve_device
from xycodec.cli import bench
from xycodec.errors import XycodecError
from xycodec.io.audio import read_audio
from xycodec.models.agreement import CodeAgreement, compare_codes
from xycodec.models.base import Codec
from xycodec.models.presets import NAMED_CONFIGS

Tables = Iterator[str]
ASSETS = Path(xycodec.__file__).parent / "assets"
SAMPLES = ("fox", "harbour", "numbers")
# Of each size: clips in a batch, their seconds, and how long the clips are whose codes are compared.
BATCHES = {"full": ((1, 10.0), (16, 10.0), (64, 10.0)), "tiny": ((1, 1.0), (2, 1.0))}
COMPARED_S = {"full": 10.0, "tiny": 1.0}


def full_size(size: str) -> Codec:
    """XY-Tokenizer with seeded random weights, on the CPU."""
    return random_codec(NAMED_CONFIGS["xy-tokenizer"] if size == "full" else train_step.SIZES["tiny"].codec)


# ---- codes -------------------------------------------------------------------------------------


def codes_against_cpu(size: str, device: torch.device) -> Tables:
    """Float32 codes of the device beside the CPU's, of clips alone and together."""
    rows = []
    for name, codec in (("xy-mini", load_codec("xy-mini", device="cpu")), (f"random, {size}", full_size(size))):
        clips = test_clips(codec, COMPARED_S[size])
        codec.to(device)
        alone = [codec.encode(clip[None]).codes[0].cpu() for clip in clips]
        audio, lengths = bench.pad_clips(clips)
        batch = codec.encode(audio, lengths).codes.cpu()
        together = [row[:, : codes.shape[1]] for row, codes in zip(batch, alone, strict=True)]
        codec.to("cpu")
        total = CodeAgreement(0, 0, 0, 0)
        for clip, codes in zip(clips, alone, strict=True):
            total += compare_codes(codec, clip, codes)
        moved = sum(int((a != b).sum()) for a, b in zip(alone, together, strict=True))
        counts = (total.codes, total.different, total.near_ties, total.mistakes, moved)
        rows.append([name, *map(str, counts)])
    head = [
        "model",
        "codes",
        "differ from the CPU's",
        "frames at a near-tie",
        "other frames",
        "codes changed by a batch",
    ]
    yield "## Codes in float32\n"
    yield table(head, rows)


def test_clips(codec: Codec, seconds: float) -> list[torch.Tensor]:
    """The bundled samples and test audio, cut to at most `seconds` and a window."""
    most = min(round(seconds * codec.input_sample_rate), codec.window_frames * codec.hop_length)
    speech = [torch.from_numpy(read_audio(ASSETS / f"{name}.flac", codec.input_sample_rate)) for name in SAMPLES]
    return [clip[:most] for clip in (*speech, bench.speech_like(seconds, sample_rate=codec.input_sample_rate))]


# ---- speed -------------------------------------------------------------------------------------


def peaks(size: str, device: torch.device) -> Tables:
    """What the device's matrix products reach."""
    rows = train_step.SIZES[size].peak
    low, full = (bench.matmul_peak(dtype, rows, device=device) for dtype in (torch.bfloat16, torch.float32))
    yield "## Peak\n"
    yield table(["products of", "float32, TFLOP/s", "bfloat16, TFLOP/s"],
                [[f"{rows} x {rows}", f"{full / 1000:.1f}", f"{low / 1000:.1f}"]])  # fmt: skip


def encode_and_decode(size: str, device: torch.device) -> Tables:
    """Audio per second and share of the peak of the same precision, over sizes of the batch."""
    yield f"## Encode and decode, {size} size\n"
    head = ["precision", "clips", "encode, audio s per s", "share of peak", "decode, audio s per s", "share of peak"]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        codec = full_size(size)
        if dtype != torch.float32:
            codec.to_compute_dtype(dtype)
        codec = codec.to(device)
        peak = bench.matmul_peak(dtype, train_step.SIZES[size].peak, device=device)
        for clips, seconds in BATCHES[size]:
            (row,) = bench.measure(codec, [seconds], batch=clips, peak=peak)
            rows.append([str(dtype).removeprefix("torch."), f"{clips} x {seconds:g} s", f"{row.encode_speed:,.0f}",
                         f"{row.encode_share:.0%}", f"{row.decode_speed:,.0f}", f"{row.decode_share:.0%}"])  # fmt: skip
        del codec
        empty(device)
    yield table(head, rows)


def training(size: str, device: torch.device) -> Tables:
    """A step of both stages, as `train_step.py` reports it."""
    precision = "bf16" if device.type == "cuda" else "float32"
    args = argparse.Namespace(size=size, precision=precision, clips=None, seconds=None, steps=5)
    with redirect_stdout(StringIO()) as told:
        train_step.run(args, device, list(train_step.TARGETS))
    yield f"## A training step in {precision}\n"
    yield told.getvalue().replace("\n## ", "\n### ")


def empty(device: torch.device) -> None:
    """Give memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- the page ----------------------------------------------------------------------------------

PARTS: dict[str, Callable[[str, torch.device], Tables]] = {
    "codes": codes_against_cpu,
    "peak": peaks,
    "encode and decode": encode_and_decode,
    "training": training,
}


def measure(size: str, device: torch.device, minutes: float) -> Tables:
    """All of the page, piece by piece."""
    start = time.monotonic()
    yield f"<!-- `benchmarks/gpu.py --size {size}` -->\n# One GPU: throughput and codes\n"
    about = [str(date.today()), train_step.device_name(device), torch.__version__, platform.python_version()]
    yield table(["date", "device", "torch", "python"], [about])
    if device.type != "cuda":
        yield "**No GPU was at hand**: these numbers are a CPU's, and show only that the command runs.\n"
    for name, part in PARTS.items():
        if time.monotonic() - start > 60 * minutes:
            yield f"Left out, because {minutes:g} minutes were over: {name}.\n"
            continue
        yield from part(size, device)
        empty(device)
    yield f"{time.monotonic() - start:.0f} s in all.\n"


def main() -> int:
    """Parse, measure, print and write; 1 if the device cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(BATCHES), default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9, help="no part begins after so many (default: 9)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.md")
    args = parser.parse_args()
    try:
        device = resolve_device(args.device)
        with args.output.open("w", encoding="utf-8") as page:
            for piece in measure(args.size, device, args.minutes):
                say(piece)
                page.write(piece + "\n")
                page.flush()
    except XycodecError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
