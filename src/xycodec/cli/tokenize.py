"""`xycodec tokenize`: a corpus to a store of tokens."""

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xycodec.cli.options import (
    AsJson,
    Device,
    Dtype,
    Jobs,
    Layers,
    Model,
    Overlap,
    Precision,
    Quiet,
    Reference,
    Search,
    Threads,
)
from xycodec.cli.terminal import print_error, print_note, token_progress
from xycodec.errors import XycodecError
from xycodec.models.registry import DEFAULT

if TYPE_CHECKING:
    from xycodec.tokenize.corpus import Report
    from xycodec.tokenize.shard import Encoding


class Engines(StrEnum):
    """Engines that run the work."""

    local = "local"
    ray = "ray"


def tokenize(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Audio files, folders, quoted globs, JSON lines, Lhotse cuts or Shar, tars, Parquet, saved datasets."
        ),
    ],
    store: Annotated[Path, typer.Option("--output", "-o", help="The store: a new folder, or one to go on with.")],
    model: Model = DEFAULT,
    n_q: Layers = None,
    search: Search = 1,
    overlap: Overlap = None,
    reference: Reference = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    share_batches: Annotated[
        bool, typer.Option("--share-batches", help="Faster on a GPU; near-ties may differ from each clip alone.")
    ] = False,
    batch_seconds: Annotated[float, typer.Option(min=0, help="Audio that is encoded in one call.")] = 30.0,
    shard_clips: Annotated[
        int | None, typer.Option(min=1, help="Clips of a shard (default: a 64th of the corpus, 32 to 4096).")
    ] = None,
    verify: Annotated[int, typer.Option(min=0, help="Encode so many random clips again, alone, and compare.")] = 0,
    verify_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of codes that may differ.")] = 0.0,
    threads: Threads = None,
    engine: Annotated[
        Engines,
        typer.Option(help="Processes of this machine, or actors of a Ray cluster."),
    ] = Engines.local,
    jobs: Jobs = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn a corpus into a store of tokens; run again to go on after a kill."""
    from xycodec.io.cores import available_cores
    from xycodec.io.tokens.read import TokenStore
    from xycodec.tokenize.cluster import RayEngine
    from xycodec.tokenize.corpus import Engine, tokenize_corpus
    from xycodec.tokenize.inputs.item import require_package
    from xycodec.tokenize.inputs.listing import list_items
    from xycodec.tokenize.local import LocalEngine
    from xycodec.tokenize.verify import verify_codes

    if engine is Engines.ray:
        require_package("ray", "ray")  # before the model is loaded
    cores = threads or available_cores()
    settings: dict[str, Any] = {
        "model": model, "n_q": n_q, "search": search, "overlap": overlap, "reference": reference, "device": device,
        "dtype": dtype.value, "share_batches": share_batches, "batch_s": batch_seconds, "threads": cores,
    }  # fmt: skip
    encoding = make_encoding(**settings)
    if jobs > 1:  # side by side, processes share the cores
        settings["threads"] = max(1, cores // jobs)
    with token_progress(quiet or as_json) as bar:
        work: Engine
        if engine is Engines.ray:
            room: dict[str, Any] = {"cores": threads or 4, "actors": jobs if jobs > 1 else None}
            work = RayEngine(make_encoding, settings, **room, accelerators=device != "cpu", advance=bar.advance)
        else:
            make = make_encoding if jobs > 1 else (lambda **_: encoding)
            work = LocalEngine(make, settings, jobs, bar.advance)
        report = tokenize_corpus(
            inputs, store, encoding.describe(), work, shard_clips=shard_clips, planned=bar.planned, tell=bar.listed
        )
    agreement = None
    if verify:
        agreement = verify_codes(encoding, TokenStore(store), list_items(inputs), verify)
    if as_json:
        print(json.dumps(asdict(report) | {"store": str(store), "verified": agreement and asdict(agreement)}))
    else:
        _print(report, store, quiet)
    if agreement is not None:
        line = f"verify: {agreement.clips} clips encoded alone, {agreement.rate:.4%} of codes differ"
        if agreement.rate > verify_rate:
            raise XycodecError(f"{line}, {verify_rate:.4%} may: first {agreement.differing[0]}")
        if not quiet:
            print(line, file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


def _print(report: "Report", store: Path, quiet: bool) -> None:
    for row in report.failures:
        print_error(f"{row['id']}: {row['error']}")
    if report.failed > len(report.failures):
        print_error(f"{report.failed - len(report.failures)} more clips failed: {store / 'failures.jsonl'} lists them")
    if quiet:
        return
    print(
        f"{store}: {report.clips:,} clips ({report.made:,} new), {report.seconds / 3600:.2f} h, {report.failed} failed"
    )
    times = report.times
    if spent := times.waiting + times.encoding + times.writing:
        shares = f"encoding {times.encoding / spent:.1%}, waiting for audio {times.waiting / spent:.1%}"
        beside = f"reading and resampling beside it {times.reading / spent:.1%}"
        print_note(f"of the workers' time: {shares}, writing {times.writing / spent:.1%} ({beside})")
        print_note(f"{times.audio / spent:,.1f} x real time a worker")


def make_encoding(
    model: str,
    n_q: int | None,
    search: int,
    overlap: float | None,
    reference: bool,
    device: str,
    dtype: str,
    share_batches: bool,
    batch_s: float,
    threads: int,
) -> "Encoding":
    """Load the codec that encodes a corpus, in this process or a worker."""
    import torch

    from xycodec.baselines.open import open_codec
    from xycodec.checkpoints.load import load_codec
    from xycodec.models.base import Codec
    from xycodec.tokenize.shard import Encoding

    torch.set_num_threads(threads)
    if reference or dtype != Precision.float32:
        codec: Codec = load_codec(model, device=device, dtype=getattr(torch, dtype), reference=reference)
    else:
        codec = open_codec(model, device=device)
    codec.share_batches = share_batches
    return Encoding(codec, n_q, overlap, batch_s, search)
