"""What a search over codes costs and gains: the same model, bits and clips, at several widths.

    python benchmarks/search.py MANIFEST [--model xy-mini ...] [--widths 1 4 16] [--clips N] [--of PREFIX]

Clips are N at even distances among those of a manifest (JSON lines, as `xycodec evaluate` takes them) whose names begin
with PREFIX. Prints Markdown: the quantizer's own squared error, which the search reduces, over that of greedy codes;
STOI and PESQ-WB of the decoded audio; and seconds of audio encoded in a second of one thread's processor time.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import mean

import torch

from xycodec.checkpoints.load import load_codec
from xycodec.eval.corpus import open_corpora
from xycodec.eval.metrics.quality import measure_quality
from xycodec.io.audio import Samples
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec

METRICS = ("stoi", "pesq_wb")


@torch.no_grad()
def quantizer_error(codec: Codec, clip: Samples, width: int) -> float:
    """Mean squared error over frames of the quantizer for a clip (T,) of at most one window."""
    given: list[torch.Tensor] = []
    hook = codec.quantizer.input_proj.register_forward_hook(lambda module, inputs, out: given.append(out))
    codes = codec.encode(torch.from_numpy(clip), search=width).codes
    hook.remove()
    return (given[0] - codec.quantizer.sum_codebooks(codes)).square().sum(dim=2).mean().item()


def rows(name: str, clips: list[Samples], widths: list[int]) -> Iterator[str]:
    """Lines of the table of one model."""
    codec = load_codec(name, device="cpu")
    codec.encode(torch.from_numpy(clips[0]), search=max(widths))
    seconds = sum(map(len, clips)) / SPEECH_RATE
    first = None
    for width in widths:
        start = time.process_time()
        made = [codec.encode(torch.from_numpy(clip), search=width) for clip in clips]
        took = time.process_time() - start
        scores = [
            measure_quality([codec.decode(out).audio[0].numpy()], [clip], METRICS).values
            for out, clip in zip(made, clips, strict=True)
        ]
        error = mean(quantizer_error(codec, clip[: codec.window_samples], width) for clip in clips)
        first = first or error
        values = [mean(one[metric] for one in scores) for metric in METRICS]
        yield (
            f"| {codec.model_id} | {width} | {error / first:.3f} | {values[0]:.4f} | {values[1]:.3f} | "
            f"{seconds / took:.1f} |"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", nargs="+", default=["xy-mini"])
    parser.add_argument("--widths", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--of", default="", help="beginning of the clips' names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = [item for item in open_corpora([args.manifest]) if item.clip.startswith(args.of)]
    clips = [item.load() for item in items[:: max(1, len(items) // args.clips)][: args.clips]]
    print("| model | width | quantizer's error | STOI | PESQ-WB | times real time |\n|---|---|---|---|---|---|")
    for name in args.model:
        for line in rows(name, clips, args.widths):
            print(line, flush=True)


if __name__ == "__main__":
    main()
