"""How long a full-size checkpoint takes to load and what memory that takes, in our layout and the published.

    python benchmarks/load.py [--folder WHERE] [--json OUT]

Both are written to a temporary folder (2 GB each) and read from a warm page cache by fresh processes. Times
leave out `import torch`; memory is what comes on top of the imports. Prints Markdown; targets: 3 s, 1.2 times
the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.models.xy_tokenizer.model import XYTokenizer

SECONDS_TARGET, MEMORY_TARGET = 3.0, 1.2
FIELDS = ("VmRSS", "VmHWM", "RssAnon", "RssFile")
MIB = 2**20

State = dict[str, Tensor]


# ---- writing the published layout --------------------------------------------------------------


def to_published(codec: XYTokenizer) -> State:
    """The state dict of a folded codec under the published names and shapes: the conversion, inverted."""
    state = {key: tensor.detach() for key, tensor in codec.state_dict().items()}
    factor = codec.downsample.factor
    for prefix in [key.removesuffix(".qkv_weight") for key in state if key.endswith(".qkv_weight")]:
        parts = state.pop(f"{prefix}.qkv_weight").chunk(3)
        state |= {f"{prefix}.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        state |= {f"{prefix}.{name}_proj.bias": state.pop(f"{prefix}.{name}_bias") for name in "qv"}
    for gate in ("gate_proj", "up_proj"):
        key = f"downsample.{gate}.weight"
        state[key] = state[key].unflatten(1, (factor, -1)).transpose(1, 2)
    up = state.pop("upsample.proj.weight")
    state["upsample.up_conv.weight"] = up.unflatten(0, (factor, -1)).permute(2, 1, 0)
    for side in ("input_proj", "output_proj"):
        weight = state.pop(f"quantizer.{side}.weight")[..., None]
        state[f"quantizer.{side}.weight_v"] = weight
        state[f"quantizer.{side}.weight_g"] = weight.norm(dim=(1, 2), keepdim=True)
    for buffer in ("codebook", "inited", "cluster_size", "embed_avg"):
        for i, part in enumerate(state.pop(f"quantizer.{buffer}")):
            state[f"quantizer.quantizers.{i}.{buffer}"] = part[None] if buffer == "inited" else part
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}


# ---- one measurement, in its own process -------------------------------------------------------


def memory() -> dict[str, int]:
    """Sizes of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {field: int(values[field].split()[0]) * 1024 for field in FIELDS}


def child(checkpoint: str) -> None:
    """Load, then encode 2 s; print what both took as JSON."""
    from xycodec.checkpoints.load import load_codec

    clip = torch.randn(1, 32_000) * 0.1
    torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own threads and buffers belong to the baseline
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = memory()
    start = time.perf_counter()
    codec = load_codec(checkpoint, device="cpu")
    loaded, after_load = time.perf_counter(), memory()
    codec.encode(clip)
    encoded, after_encode = time.perf_counter(), memory()
    codec.encode(clip)
    again = time.perf_counter()
    result = {
        "load_s": loaded - start,
        "first_encode_s": encoded - loaded,
        "second_encode_s": again - encoded,
        "load": _growth(base, after_load),
        "encode": _growth(base, after_encode),
    }
    print(json.dumps(result))


def _growth(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    growth = {field: after[field] - before[field] for field in FIELDS}
    return growth | {"peak": after["VmHWM"] - before["VmRSS"]}


def best_child(checkpoint: Path, repeats: int) -> dict[str, Any]:
    """What the process with the fastest load of several reported, and the file's size in bytes."""
    file = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        warm(file)
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(checkpoint)], check=True, capture_output=True, text=True
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda run: run["load_s"]) | {"file": file.stat().st_size}


def warm(file: Path) -> None:
    """Read a file once, so that it lies in the page cache."""
    with file.open("rb") as stream:
        while stream.read(16 * MIB):
            pass


# ---- the whole ---------------------------------------------------------------------------------


def report(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row for each layout."""
    lines = [
        "| layout | file, MiB | load, s | peak while loading / file | peak after one encode / file "
        "| anonymous, mapped after encode, MiB | first, second 2 s encode, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        load, encode, size = r["load"], r["encode"], r["file"]
        seconds, share, later = r["load_s"], load["peak"] / size, encode["peak"] / size
        lines.append(
            f"| {name} | {size / MIB:.0f} | {seconds:.2f}{_mark(seconds, SECONDS_TARGET)} "
            f"| {share:.2f}{_mark(share, MEMORY_TARGET)} | {later:.2f}{_mark(later, MEMORY_TARGET)} "
            f"| {encode['RssAnon'] / MIB:.0f}, {encode['RssFile'] / MIB:.0f} "
            f"| {r['first_encode_s']:.2f}, {r['second_encode_s']:.2f} |"
        )
    return "\n".join(lines)


def _mark(value: float, limit: float) -> str:
    return "" if value <= limit else f" (MISSED: at most {limit:g})"


def main() -> None:
    """Write both checkpoints, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to put 4 GB for the time of the run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    parser.add_argument("--child", metavar="CHECKPOINT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        ours, published = Path(scratch) / "ours", Path(scratch) / "published.ckpt"
        codec = random_codec(CONFIGS["xy-tokenizer"])
        save_codec(codec, ours)
        torch.save({"generator": to_published(codec)}, published)
        del codec
        results = {
            "ours (safetensors)": best_child(ours, args.repeats),
            "published (.ckpt)": best_child(published, args.repeats),
        }
    targets = f"{SECONDS_TARGET:g} s, {MEMORY_TARGET:g} times the file"
    print(f"Warm page cache; targets {targets}\n")
    print(report(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
