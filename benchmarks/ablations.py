"""The worth of each device of X-Codec's convolutions on a CPU: the same codec with it and without it, in turns.

    python benchmarks/ablations.py [--models x-codec-hubert] [--seconds 5] [--rounds 5]

A bundled name gives its weights, any other the seeded random ones of its size. Times are processor time of one thread,
the least of equal calls in turns, and ratios to the codec as it is. Codes are compared with its codes, and latents and
audio between 1, 2 and 4 threads, bit for bit. Prints Markdown.

XY-Tokenizer has none of these convolutions; the first line counts its calls to make sure.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from shared import table
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.cli.bench import speech_like
from xycodec.models.base import Codec
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.models.registry import MODELS
from xycodec.nn import dac
from xycodec.nn.deterministic import residual_filter, rows

THREADS = (1, 2, 4)
SHORT_SECONDS = (0.1, 0.5, 1.3)


# ---- what stands in for a device ---------------------------------------------------------------


def plain_units(self: dac.ResidualUnits, x: Tensor, snake: dac.Snake) -> Tensor:
    """Residual units (T, C) -> (T, C) in parts that the cache holds, each convolution as one product for each tap."""
    out, reach = torch.empty_like(x), sum(3 * unit.dilation for unit in self)
    for first in range(0, len(x), residual_filter.PART):
        last = min(first + residual_filter.PART, len(x))
        low, high = max(0, first - reach), min(len(x), last + reach)
        part = x[low:high]
        for unit in self:
            part = plain_unit(unit, part)
        snake.rows(part[first - low : last - low], out[first:last])
    return out


def plain_unit(unit: dac.ResidualUnit, x: Tensor) -> Tensor:
    """One residual unit (T, C) -> (T, C)."""
    count, margin = rows.whole_rows(len(x)), 3 * unit.dilation
    around = rows.padded(unit.snake1.rows(x), margin, margin + count - len(x))
    hidden = unit.conv1.bias.expand(count, -1).clone()
    for i, tap in enumerate(unit.conv1.weight.permute(2, 1, 0).contiguous()):
        rows.add_product(around[i * unit.dilation :][:count], tap, hidden)
    unit.snake2.rows(hidden, hidden)
    out = rows.padded(x, 0, count - len(x)).add_(unit.conv2.bias)
    rows.add_product(hidden, unit.conv2.weight[..., 0].t().contiguous(), out)
    return out[: len(x)]


def as_many(count: int) -> int:
    """No rows more than there are."""
    return count


def whole(terms: int) -> tuple[slice, ...]:
    """No sum cut into pieces."""
    return (slice(0, terms),)


def whole_rows_everywhere(other: Callable[[int], int]) -> list[Any]:
    """Patches of the two files that fill rows up."""
    return [patch.object(module, "whole_rows", other) for module in (rows, residual_filter)]


WITHOUT: dict[str, Callable[[], list[Any]]] = {
    "residual units in 17 products of 28": lambda: [patch.object(dac.ResidualUnits, "rows", plain_units)],
    "rows filled up to 4, at least 16": lambda: whole_rows_everywhere(as_many),
    "sums in pieces of 512 and 256": lambda: [patch.object(rows, "_pieces", whole)],
}
KERNELS = {"MKL": False, "oneDNN": True}


@contextmanager
def patched(patches: list[Any], onednn: bool) -> Iterator[None]:
    """The codec with other parts, and with the products of one of the two libraries."""
    with ExitStack() as stack:
        for one in [*patches, patch.object(rows, "uses_onednn", lambda part: onednn)]:
            stack.enter_context(one)
        yield


# ---- measuring ---------------------------------------------------------------------------------


def open_model(name: str) -> Codec:
    """The bundled codec, or a random one of a published size."""
    if MODELS[name].source == "bundled":
        return load_codec(name, device="cpu")
    return random_codec(NAMED_CONFIGS[name]).requires_grad_(False)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of a call, whatever else the machine does."""
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def depends_on_threads(codec: Codec, clips: list[Tensor]) -> str:
    """Name those of latents and decoded audio that have other bits with more threads."""
    found = set()
    for clip in clips:
        clip = clip[: min(codec.window_samples, len(clip) // codec.hop_length * codec.hop_length)]
        seen: dict[str, Tensor] = {}
        for threads in THREADS:
            torch.set_num_threads(threads)
            latents = codec.encode_latents(clip[None])[0]
            audio = codec.decode_latents(latents[None] if latents.ndim == 2 else latents)
            for what, value in (("latents", latents), ("audio", audio)):
                if not torch.equal(seen.setdefault(what, value), value):
                    found.add(what)
            seen["latents"] = latents
    torch.set_num_threads(1)
    return " and ".join(sorted(found)) or "nothing"


def ablation(codec: Codec, seconds: float, rounds: int, onednn: bool) -> Iterator[tuple[str, ...]]:
    """Rows of the table of one codec and one library."""
    clip = speech_like(seconds)
    variants = {"(as it is)": list, **WITHOUT}
    codes, best = {}, {name: [float("inf")] * 2 for name in variants}
    for turn in range(rounds + 1):
        for name, patches in variants.items():
            with patched(patches(), onednn):
                encoded = codec.encode(clip)
                codes[name] = encoded.codes
                if turn:  # the first round warms up
                    works = (partial(codec.encode, clip), partial(codec.decode, encoded))
                    best[name] = [min(old, seconds_of(work)) for old, work in zip(best[name], works, strict=True)]
    first = best["(as it is)"]
    for name, patches in variants.items():
        with patched(patches(), onednn):
            threads = depends_on_threads(codec, [clip, *(speech_like(short) for short in SHORT_SECONDS)])
        times = [f"{took:.3f} s ({took / base:.2f})" for took, base in zip(best[name], first, strict=True)]
        differ = (codes[name] != codes["(as it is)"]).sum().item()
        yield name, *times, f"{differ} of {codes[name].numel()}", threads


def divided_products(fill: Callable[[int], int]) -> str:
    """Count products by MKL of few rows that have other bits with more threads, where `fill` fills the rows up."""
    torch.manual_seed(0)
    differ = count = 0
    for terms, columns, used in product((64, 128, 256, 512), (64, 256, 512, 1024), (*range(1, 24), 26, 33, 50, 101)):
        x, weight = torch.randn(used, terms), torch.randn(terms, columns)
        filled = torch.cat([x, torch.zeros(fill(used) - used, terms)])
        results = []
        for threads in (*THREADS, 3, 8, 16, 32):
            torch.set_num_threads(threads)
            results.append(filled.new_empty(len(filled), columns))
            rows.add_product(filled, weight, results[-1], first=True)
        differ += any(not torch.equal(results[0][:used], other[:used]) for other in results)
        count += 1
    torch.set_num_threads(1)
    return f"{differ} of {count}"


def calls_of_xy_tokenizer() -> int:
    """Count the calls of these convolutions' products in encoding and decoding with an XY-Tokenizer."""
    codec = open_model("xy-mini")
    with patch.object(rows, "add_product", wraps=rows.add_product) as calls:
        codec.decode(codec.encode(speech_like(1.0)))
    return calls.call_count


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["x-codec-hubert"])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"One thread, a clip of {args.seconds:g} s.")
    print(f"Calls of these products by an XY-Tokenizer: {calls_of_xy_tokenizer()}.")
    with patched([], onednn=False):
        apart, filled = divided_products(as_many), divided_products(rows.whole_rows)
    print(f"Products of few rows whose bits depend on threads: {apart}; with rows filled up: {filled}.\n", flush=True)
    heads = ("without", "encode", "decode", "codes that differ", "bits that more threads change")
    for name in args.models:
        codec = open_model(name)
        for library, onednn in KERNELS.items():
            print(f"## {name}, products by {library}\n")
            print(table(heads, list(ablation(codec, args.seconds, args.rounds, onednn))), "\n", flush=True)


if __name__ == "__main__":
    main()
