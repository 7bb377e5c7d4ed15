"""An exported codec against the codec itself: parity, size and speed, in ONNX Runtime on a CPU.

    python benchmarks/export.py MODEL ... [--frames 1 7 50 375] [--repeats 3] [--threads 1]

MODEL is what `load_codec` takes; a name of a published model gets random weights, which cost the same. Prints Markdown:
other codes, all between two equally near, the largest difference of a sample, and the time of torch and of ONNX Runtime
in turns, the fastest of each. A clip is cut from a bundled recording, one sample short of whole frames.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from xycodec.checkpoints.build import OwnCodec, random_codec
from xycodec.checkpoints.load import BUNDLED, load_codec
from xycodec.export.graphs import export_onnx
from xycodec.export.parity import check_parity
from xycodec.export.runtime import OnnxCodec
from xycodec.io.audio import read_audio
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.models.registry import MODELS


def fastest(repeats: int, *works: Callable[[], object]) -> list[float]:
    """Shortest processor time of each work in seconds; they take turns."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, took in zip(works, times, strict=True):
            start = time.process_time()
            work()
            took.append(time.process_time() - start)
    return [min(took) for took in times]


def rows(name: str, frames: list[int], repeats: int, threads: int) -> Iterator[str]:
    """Lines of the table of one model."""
    published = name in NAMED_CONFIGS and MODELS[name].source not in ("bundled", "seeded")
    codec = random_codec(NAMED_CONFIGS[name]) if published else load_codec(name, device="cpu")
    recording = torch.from_numpy(read_audio(BUNDLED / "fox.flac"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "onnx"
        export_onnx(codec, folder)
        sizes = [sum(file.stat().st_size for file in folder.glob(f"{half}*")) / 1e6 for half in ("encoder", "decoder")]
        gc.collect()
        exported = OnnxCodec.load(folder, threads=threads)
        for count in frames:
            samples = min(count, codec.window_frames) * codec.hop_length - 1
            cells = compared(codec, exported, recording.repeat(-(-samples // len(recording)))[:samples], repeats)
            yield f"| {name}{' (random)' if published else ''} | {sizes[0]:,.0f} + {sizes[1]:,.0f} | {cells} |"


def compared(codec: OwnCodec, exported: OnnxCodec, clip: torch.Tensor, repeats: int) -> str:
    """Cells of the table of one clip."""
    found = check_parity(codec, exported, clip)
    codes = codec.encode(clip).codes
    array, numbers = clip.numpy(), codes.numpy()
    encode = fastest(repeats, lambda: codec.encode(clip), lambda: exported.encode(array))
    decode = fastest(repeats, lambda: codec.decode(codes), lambda: exported.decode(numbers))
    times = " | ".join(f"{took:.3f}" for took in (*encode, *decode))
    return f"{found.frames} | {found.near_ties} | {found.audio_error:.0e} | {times}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 7, 50, 375])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| model | MB, encoder + decoder | frames | near-ties | largest difference | encode, torch, s | ONNX | "
        "decode, torch, s | ONNX |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        for row in rows(name, options.frames, options.repeats, options.threads):
            print(row, flush=True)


if __name__ == "__main__":
    main()
