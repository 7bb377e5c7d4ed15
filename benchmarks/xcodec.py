"""X-Codec's speed against Transformers' `XcodecModel`, with the same full-size random weights, as ratios of one run.

    python benchmarks/xcodec.py [--threads N] [--quick] [--json OUT]

Prints Markdown. Exits with 1 if a batch gives other codes than its clips alone. Codes that differ from Transformers'
are counted: random weights leave near-ties, which two ways to round decide differently. A missed target is only marked.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import against, peak_memory, table
from xycodec.checkpoints.load import load_codec
from xycodec.cli import bench
from xycodec.models.xcodec.model import XCodec

LENGTHS = (2, 5, 10, 20)  # seconds
CLIP_TARGET, BATCH_TARGET = 1.3, 2.0
HOP = 320


@dataclass(frozen=True)
class Ratio:
    """Ours against Transformers' for one clip, or for a batch of mixed lengths in one call."""

    what: str
    seconds: float
    """Of speech."""
    encode_s: float
    their_encode_s: float
    decode_s: float
    their_decode_s: float
    equal_frames: int
    frames: int
    encode_memory_mib: float | None
    their_encode_memory_mib: float | None


# ---- the two models ----------------------------------------------------------------------------


@torch.no_grad()
def both() -> tuple[XCodec, Any]:
    """Ours and Transformers', with the same random weights and codebooks that spread as latents do."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    theirs = transformers.XcodecModel(
        transformers.XcodecConfig(semantic_model_config=transformers.HubertConfig())
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_codec(folder, device="cpu")
    if not isinstance(ours, XCodec):
        raise TypeError("Transformers saved something else than an X-Codec")
    latents = ours.encode_latents(bench.speech_like(20.0)[None])[0]
    mean, spread = latents.mean(0), latents - latents.mean(0)
    for depth, layer in enumerate(theirs.quantizer.quantizers):
        mixture = torch.randn(ours.codebook_size, len(spread)) / len(spread) ** 0.5
        layer.codebook.embed.copy_(0.8**depth * mixture @ spread + mean * (depth == 0))
        ours.quantizer.codebook[depth] = layer.codebook.embed
    return ours, theirs


# ---- measuring ---------------------------------------------------------------------------------


@torch.no_grad()
def compare(ours: XCodec, theirs: Any, clips: Sequence[Tensor], what: str, repeats: int) -> Ratio:
    """Times of one call with all clips; Transformers' is padded to the longest, to whole frames, and takes turns."""
    audio, lengths = bench.pad_clips(clips)
    whole = torch.nn.functional.pad(audio, (0, -audio.shape[1] % HOP))[:, None]
    mine, alone = ours.encode(audio, lengths), [_their_codes(theirs, clip) for clip in clips]
    agree = [
        (codes[:, :count] == other).all(dim=0)
        for codes, count, other in zip(mine.codes, mine.lengths.tolist(), alone, strict=True)
    ]
    codes = theirs.encode(whole).audio_codes
    works: list[Callable[[], object]] = [
        no_grad(partial(ours.encode, audio, lengths)),
        no_grad(partial(theirs.encode, whole)),
        no_grad(partial(ours.decode, mine.codes, mine.lengths)),
        no_grad(partial(theirs.decode, codes)),
    ]
    times = bench.best_times(works, repeats)
    return Ratio(
        what=what,
        seconds=int(lengths.sum()) / ours.input_sample_rate,
        encode_s=times[0],
        their_encode_s=times[1],
        decode_s=times[2],
        their_decode_s=times[3],
        equal_frames=sum(int(same.sum()) for same in agree),
        frames=sum(len(same) for same in agree),
        encode_memory_mib=peak_memory(works[0]),
        their_encode_memory_mib=peak_memory(works[1]),
    )


def no_grad(work: Callable[[], object]) -> Callable[[], object]:
    """The same without gradients, which Transformers' class does not switch off itself."""

    def run() -> object:
        with torch.no_grad():
            return work()

    return run


def _their_codes(theirs: Any, clip: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(clip, (0, -len(clip) % HOP))
    codes: Tensor = theirs.encode(padded[None, None]).audio_codes[0]
    return codes


def batch_equals_single(codec: XCodec, clips: Sequence[Tensor]) -> bool:
    """Whether every clip of a batch has the codes that it has alone."""
    out = codec.encode(*bench.pad_clips(clips))
    return all(
        torch.equal(codes[:, :count], codec.encode(clip[None]).codes[0])
        for codes, count, clip in zip(out.codes, out.lengths.tolist(), clips, strict=True)
    )


# ---- printing ----------------------------------------------------------------------------------


def report(rows: Sequence[Ratio]) -> str:
    """A Markdown table."""

    def line(row: Ratio) -> list[str]:
        target = CLIP_TARGET if row.what.startswith("a clip") else BATCH_TARGET
        memory = (row.encode_memory_mib, row.their_encode_memory_mib)
        return [
            row.what,
            against(row.their_encode_s / row.encode_s, target),
            against(row.their_decode_s / row.decode_s, target),
            f"{row.seconds / row.encode_s:.1f}x, {row.seconds / row.decode_s:.1f}x",
            f"{row.equal_frames} of {row.frames}",
            " / ".join("unknown" if value is None else f"{value:,.0f}" for value in memory),
        ]

    head = ["", "encode", "decode", "real time, encode and decode", "equal frames", "MiB to encode, ours / theirs"]
    return table(head, map(line, rows))


def main() -> int:
    """Measure and print; 1 where a batch and its clips disagree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="short clips, one repetition")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = both()
    repeats, lengths, count, longest = (1, (1, 2), 3, 3.0) if args.quick else (5, LENGTHS, 8, 15.0)
    rows = [compare(ours, theirs, [bench.speech_like(n)], f"a clip of {n} s", repeats) for n in lengths]
    mixed = bench.mixed_batch(ours, clips=count, longest=longest)
    rows.append(compare(ours, theirs, mixed, f"{count} clips of 2 to {longest:g} s", 1))
    same = batch_equals_single(ours, mixed)
    print(f"{args.threads} threads\n")
    print(report(rows))
    print(f"A batch {'equals' if same else 'DIFFERS FROM'} its clips alone, code for code.")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
