"""Bits a second that VALL-E needs for a codec's codes: its last validation loss, times the codes of a second.

    python runs/lm_bits.py exp/lm-small/x-mini exp/lm-small/x-mini-baseline

Each folder holds the runs `ar` and `nar` of one codec. Codecs of other rates and codebooks compare in bits a
second, not in perplexity. Prints Markdown.
"""

import json
import math
import sys
from pathlib import Path

from xycodec.checkpoints.training import read_checkpoint
from xycodec.lm.config import CodecIdentity
from xycodec.train.init.weights import find_checkpoint


def last_validation(run: Path) -> dict[str, float]:
    """The record of the last validation."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found: dict[str, float] = [row for row in rows if row["kind"] == "valid"][-1]
    return found


def row(folder: Path) -> str:
    """A row of the table."""
    checkpoint = find_checkpoint(folder / "ar")
    if checkpoint is None:
        raise SystemExit(f"{folder}/ar: no checkpoint: train it first")
    codec = CodecIdentity(**read_checkpoint(checkpoint)["language_model"]["codec"])
    rate, books = codec.frame_rate, codec.n_q
    first, others = last_validation(folder / "ar"), last_validation(folder / "nar")
    bits = first["ar"] * rate / math.log(2), others["nar"] * rate * (books - 1) / math.log(2)
    stored = rate * books * math.log2(codec.codebook_size)
    cells = [folder.name]
    for values, name, bits_of in ((first, "ar", bits[0]), (others, "nar", bits[1])):
        cells += [f"{math.exp(values[name]):.1f}", f"{values['top10']:.1%}", f"{bits_of:.0f}"]
    cells.append(f"{sum(bits):.0f} of {stored:.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    heads = [
        "codes of", "AR perplexity", "top 10", "bit/s", "NAR perplexity", "top 10", "bit/s", "all codebooks, bit/s",
    ]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for folder in sys.argv[1:]:
        print(row(Path(folder)))


if __name__ == "__main__":
    main()
