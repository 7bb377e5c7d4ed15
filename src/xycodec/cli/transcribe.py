"""`xycodec transcribe`: text that a training run hears."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import AsJson, Device, Layers, Quiet, Threads, require_extra, set_threads


def transcribe(
    data: Annotated[
        list[str], typer.Argument(help="Audio files, folders, manifests, or corpora as `evaluate` takes them.")
    ],
    model: Annotated[
        Path, typer.Option("--model", "-m", help="A run of stage pretrain or ctc, or one of its checkpoints.")
    ],
    lm: Annotated[
        str | None, typer.Option(help="The run's language model, where it lies in another place than it did.")
    ] = None,
    n_q: Layers = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of clips, drawn at random by --seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips that --limit draws.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write what a pre-training run's language model, or a recogniser's tower, hears in speech.

    Where clips have a text, word errors are counted.
    """
    require_extra("train", "lhotse", "transformers", "jiwer")
    from xycodec.eval.corpus import open_corpora
    from xycodec.eval.metrics.wer import WordErrors
    from xycodec.train.transcribe import load_ear
    from xycodec.train.transcribe import transcribe as heard_in

    set_threads(threads)
    items = open_corpora(data, limit=limit, seed=seed)
    total, clips, failed = WordErrors(0, 0), 0, 0
    for row in heard_in(items, load_ear(model, lm=lm, device=device, n_q=n_q)):
        if row.problem is not None:
            failed += 1
            print(f"{row.clip}: {row.problem}", file=sys.stderr)
        if row.errors is not None:
            total, clips = total + row.errors, clips + 1
        if as_json:
            print(json.dumps(asdict(row), ensure_ascii=False))
        elif row.problem is None:
            print(f"{row.clip}: {row.heard}")
    if clips and not quiet and not as_json:
        print(f"word errors {total.rate:.1%}: {total.errors} in {total.words} words of {clips} clips", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
