"""Smaller weights of an exported decoder, and of an encoder's frozen tower: size, speed and quality.

    python benchmarks/export_small.py MANIFEST [--model xy-mini] [--clips N] [--of PREFIX]

Clips are N at even distances among those of a manifest whose audio's path begins with PREFIX, and that are shorter than
8 s. Prints Markdown: MB of the decoder, processor time of one thread against torch's in the same run, STOI and PESQ-WB
of the audio of the codec's own codes; then, for an encoder, the share of codes of each layer that stay.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from xycodec.checkpoints.load import load_codec
from xycodec.eval.metrics.quality import measure_quality
from xycodec.export.graphs import export_onnx
from xycodec.export.layout import DECODER, ENCODER
from xycodec.export.runtime import OnnxCodec, _session
from xycodec.export.shrink import shrink_graph
from xycodec.io.audio import read_audio

METRICS = ("stoi", "pesq_wb")
TOWER = "semantic_encoder"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="xy-mini")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--of", default="librispeech")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in options.manifest.read_text().splitlines()]
    lines = [line for line in lines if line["audio"].startswith(options.of) and line["duration"] < 8]
    chosen = lines[:: max(1, len(lines) // options.clips)][: options.clips]
    clips = [read_audio(options.manifest.parent / line["audio"]) for line in chosen]
    codec = load_codec(options.model, device="cpu")
    codes = [codec.encode(clip).codes for clip in clips]
    start = time.process_time()
    made = [codec.decode(item).audio[0, : len(clip)].numpy() for item, clip in zip(codes, clips, strict=True)]
    torch_s = time.process_time() - start
    print(f"{len(clips)} clips, {sum(map(len, clips)) / codec.input_sample_rate:.0f} s; torch {torch_s:.2f} s\n")
    print("| decoder | MB | times torch's speed | STOI | PESQ-WB |\n|---|---|---|---|---|")
    print(f"| torch, float32 | | 1.00 | {_scores(made, clips)} |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "onnx"
        about = export_onnx(codec, folder)
        exported = OnnxCodec.load(folder, threads=1)
        for weights in ("float32", "float16", "int8", "int4"):
            graph = folder / DECODER
            if weights != "float32":
                graph = folder / f"{weights}.onnx"
                shrink_graph(folder / DECODER, graph, weights)
            exported._decoder = _session(graph, about, 1)
            start = time.process_time()
            made = [exported.decode(i.numpy()).audio[0, : len(clip)] for i, clip in zip(codes, clips, strict=True)]
            took = time.process_time() - start
            size = graph.stat().st_size / 1e6
            print(f"| {weights} | {size:.2f} | {torch_s / took:.2f} | {_scores(made, clips)} |", flush=True)
        print(f"\n| {TOWER} | MB | layer 1 to {codec.n_q}: share of equal codes |\n|---|---|---|")
        for weights in ("float32", "int8", "int4"):
            graph = folder / ENCODER
            if weights != "float32":
                graph = folder / f"{weights}-encoder.onnx"
                shrink_graph(folder / ENCODER, graph, weights, part=TOWER)
            exported._encoder = _session(graph, about, 1)
            equal = [exported.encode(clip).codes[0] == item[0].numpy() for clip, item in zip(clips, codes, strict=True)]
            shares = np.concatenate(equal, axis=1).mean(axis=1)
            print(
                f"| {weights} | {graph.stat().st_size / 1e6:.2f} | {', '.join(f'{s:.3f}' for s in shares)} |",
                flush=True,
            )


def _scores(made: list[np.ndarray], clips: list[np.ndarray]) -> str:
    """Cells of the metrics' means."""
    pairs = zip(made, clips, strict=True)
    found = [measure_quality([decoded], [clip], METRICS).values for decoded, clip in pairs]
    return " | ".join(f"{mean(one[name] for one in found):.4f}" for name in METRICS)


if __name__ == "__main__":
    main()
