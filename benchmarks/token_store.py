"""How fast random clips of a large token store are read, and what its index costs.

    python benchmarks/token_store.py [--clips 10000000] [--folder WHERE] [--reads 20000]

A store of that many clips of 3 s (8 codebooks, 12.5 frames a second) is written: 8 GB for ten million. Then clips at
random places are read, by number and by id, after one pass that warms the page cache. Target: under a millisecond.
"""

import argparse
import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from xycodec.io.tokens.layout import (
    CODES,
    INDEX,
    META,
    ROW,
    SHARD,
    SHARDS,
    Description,
    Windowing,
    hash_of,
    shard_name,
)  # fmt: skip
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.write import SHARD_CLIPS, begin_store, finish_store

FRAMES = 38
ABOUT = Description("xy-mini", "0", 8, 1024, 1280, 16_000, 16_000, Windowing(75, 25, "middle"))


def write(folder: Path, clips: int) -> None:
    """Write a store whose clips differ in their ids only; files directly, because a writer takes 0.1 ms a clip."""
    begin_store(folder, ABOUT)
    codes = np.random.default_rng(0).integers(1024, size=(SHARD_CLIPS * FRAMES, 8)).astype("<u2")
    bodies = [zlib.crc32(codes[start : start + FRAMES]) for start in range(0, len(codes), FRAMES)]
    for shard, first in enumerate(range(0, clips, SHARD_CLIPS)):
        numbers = range(first, min(clips, first + SHARD_CLIPS))
        lines = [json.dumps({"id": name_of(number), "seconds": 3.04}).encode() + b"\n" for number in numbers]
        rows = np.zeros(len(numbers), ROW)
        rows["first"] = FRAMES * np.arange(len(numbers))
        rows["meta"] = np.cumsum([0, *map(len, lines[:-1])])
        rows["frames"], rows["samples"] = FRAMES, FRAMES * 1280
        rows["crc"] = [zlib.crc32(line, body) for line, body in zip(lines, bodies[: len(lines)], strict=True)]
        rows["id"] = [hash_of(name_of(number)) for number in numbers]
        place = folder / SHARDS / shard_name(shard)
        place.mkdir(parents=True)
        codes[: len(numbers) * FRAMES].tofile(place / CODES)
        rows.tofile(place / INDEX)
        (place / META).write_bytes(b"".join(lines))
        counts = {"clips": len(numbers), "frames": len(numbers) * FRAMES, "samples": len(numbers) * FRAMES * 1280}
        (place / SHARD).write_text(json.dumps(counts | {"failures": 0, "sha256": {}}))
    finish_store(folder)


def name_of(number: int) -> str:
    """The id of a clip."""
    return f"speaker/{number:09}.wav"


def milliseconds(read: Callable[[int], object], numbers: Sequence[int]) -> np.ndarray:
    """Time of each read, ms."""
    times = []
    for number in numbers:
        start = time.perf_counter()
        read(number)
        times.append(1000 * (time.perf_counter() - start))
    return np.array(times)


def main() -> None:
    """Write, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is made (default: a temporary folder)")
    parser.add_argument("--reads", type=int, default=20_000)
    args = parser.parse_args()
    parent = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        start = time.perf_counter()
        write(parent / "store", args.clips)
        print(f"{args.clips:,} clips written in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
        store = TokenStore(parent / "store")
        print(f"opened in {1000 * (time.perf_counter() - start):.1f} ms, {len(store.shards):,} shards")
        files = [path for path in store.folder.rglob("*") if path.is_file()]
        codes = store.frames * 16
        index = sum(path.stat().st_size for path in files if path.name not in ("codes.bin", META))
        assert sum(path.stat().st_size for path in files if path.name == INDEX) == len(store) * ROW.itemsize
        print(
            f"codes {codes / 1e9:.2f} GB, {codes / store.seconds:.0f} bytes a second; index {index / codes:.1%} of it"
        )
        numbers = np.random.default_rng(1).integers(len(store), size=args.reads).tolist()
        reads: dict[str, Callable[[int], object]] = {
            "codes by number": lambda number: int(store.codes(number).sum()),
            "codes and metadata by number": lambda number: store[number],
            "number by id": lambda number: store.number_of(name_of(number)),
        }
        results = {}
        for name, read in reads.items():
            milliseconds(read, numbers)  # warms the cache
            times = milliseconds(read, numbers)
            results[name] = {"median": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}
            print(f"{name}: median {np.median(times):.3f} ms, 99 % under {np.quantile(times, 0.99):.3f} ms")
        print(json.dumps(results))
    finally:
        shutil.rmtree(parent)


if __name__ == "__main__":
    main()
