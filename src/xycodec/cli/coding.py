"""`xycodec encode`, `decode` and `roundtrip`: audio to codes and back."""

import json
import os
import sys
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xycodec.cli.jobs import run_all
from xycodec.cli.options import (
    AsJson,
    Device,
    Dtype,
    Inputs,
    Jobs,
    Layers,
    Model,
    Output,
    Overlap,
    Overwrite,
    Precision,
    Quiet,
    Reference,
    Runtime,
    RuntimeOption,
    Search,
    Threads,
    set_threads,
)
from xycodec.cli.terminal import print_comparison
from xycodec.errors import XycodecError
from xycodec.models.registry import DEFAULT

if TYPE_CHECKING:
    from xycodec.io.parallel import Job, Work
    from xycodec.io.progress import Advance


def encode(
    inputs: Inputs,
    model: Model = DEFAULT,
    output: Output = None,
    n_q: Layers = None,
    search: Search = 1,
    overlap: Overlap = None,
    reference: Reference = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    runtime: RuntimeOption = Runtime.torch,
    threads: Threads = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn speech into .xyc files."""
    from xycodec.io.audio import audio_extensions
    from xycodec.io.parallel import plan_jobs

    settings = {
        "model": model, "n_q": n_q, "search": search, "overlap": overlap, "reference": reference, "device": device,
        "dtype": dtype, "runtime": runtime, "quiet": quiet or as_json,
    }  # fmt: skip
    plan = plan_jobs(inputs, output, ".xyc", audio_extensions())
    untold = _untold(overlap=overlap, reference=reference, dtype=dtype)
    differs = partial(_other_codes, model, n_q, search, runtime)
    run_all(plan, _encoder, settings, jobs, threads, overwrite, quiet, as_json, untold, differs)


def decode(
    inputs: Inputs,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where to load the model from, if not by the name in the file."),
    ] = None,
    output: Output = None,
    suffix: Annotated[str, typer.Option("--format", help="Audio format where the output is not named.")] = "wav",
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Accept codes that name another model (with --model).")
    ] = False,
    overlap: Overlap = None,
    reference: Reference = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    runtime: RuntimeOption = Runtime.torch,
    threads: Threads = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn .xyc files into audio."""
    from xycodec.io.parallel import plan_jobs

    settings = {
        "model": model, "any_model": any_model, "overlap": overlap, "reference": reference, "device": device,
        "dtype": dtype, "runtime": runtime, "quiet": quiet or as_json,
    }  # fmt: skip
    plan = plan_jobs(inputs, output, "." + suffix.lstrip("."), frozenset({".xyc"}))
    untold = _untold(overlap=overlap, reference=reference, dtype=dtype, model=model if any_model else None)
    run_all(plan, _decoder, settings, jobs, threads, overwrite, quiet, as_json, untold, _older_audio)


def roundtrip(
    source: Annotated[str, typer.Argument(help="Any audio file.")],
    model: Model = DEFAULT,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("."),
    n_q: Layers = None,
    search: Search = 1,
    overlap: Overlap = None,
    reference: Reference = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Encode and decode one file: codes, audio, a picture, and a table of what it cost."""
    if source == "-" or (os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source)):
        raise typer.BadParameter(f"a round trip reads its source twice: give a file, not {source}", param_hint="SOURCE")
    from xycodec.eval.metrics.quality import plain
    from xycodec.eval.roundtrip import roundtrip_file
    from xycodec.io.pictures import draw_roundtrip

    stem = Path(source).stem
    codes, audio, picture = (output / f"{stem}{end}" for end in (".xyc", ".decoded.wav", ".png"))
    for made in (codes, audio, picture):
        if made.exists() and not overwrite:
            raise XycodecError(f"{made} exists already: pass --overwrite to replace it")
    output.mkdir(parents=True, exist_ok=True)
    codec = _load(model, device, dtype, reference, threads, quiet or as_json)
    result = roundtrip_file(codec, source, str(codes), str(audio), n_q=n_q, overlap_s=overlap, search=search)
    draw_roundtrip(source, str(codes), str(audio), picture)
    if as_json:
        sides = {"encoded": asdict(result.encoded), "decoded": asdict(result.decoded)}
        print(json.dumps({**sides, **plain(result.quality), "picture": str(picture)}))
    elif not quiet:
        print_comparison(result, str(picture))


# ---- whether a result that exists is what would be made ----------------------------------------


def _untold(dtype: Precision, **settings: Any) -> dict[str, Any]:
    """Settings that neither codes nor audio tell, but for the defaults."""
    found = {key: value for key, value in settings.items() if value is not None and value is not False}
    return found if dtype is Precision.float32 else found | {"dtype": dtype.value}


def _other_codes(model: str, n_q: int | None, search: int, runtime: Runtime, job: "Job") -> str | None:
    """The reason why a job's existing codes differ from those that it would make; None if nothing in them does."""
    from xycodec.errors import BitstreamError
    from xycodec.io.xyc import CodecFile

    try:
        file = CodecFile.read(job.target)
    except BitstreamError as error:
        return f"exists already and holds no codes ({error})"
    model_id, layers = _codes_of(model, runtime)
    if (file.model, file.n_q, file.search) == (model_id, n_q or layers, search):
        return None
    was, now = f"{file.n_q} codebooks of {file.model}", f"{n_q or layers} of {model_id}"
    if file.search != search:
        was, now = f"{was}, search {file.search}", f"{now}, search {search}"
    return f"made with other settings (then {was}, now {now})"


@cache
def _codes_of(model: str, runtime: Runtime) -> tuple[str, int]:
    """A model's id and number of codebooks."""
    if runtime is Runtime.onnx:
        from xycodec.export.layout import read_folder

        about = read_folder(Path(model))
        return about.model_id, about.n_q
    from xycodec.checkpoints.load import load_codec
    from xycodec.models.presets import NAMED_CONFIGS

    if model in NAMED_CONFIGS:
        return model, NAMED_CONFIGS[model].quantizer.n_q
    codec = load_codec(model, device="cpu")
    return codec.model_id, codec.n_q


def _older_audio(job: "Job") -> str | None:
    """The reason why a job's existing audio is not that of its codes; None if nothing shows it."""
    if job.source != "-" and os.path.getmtime(job.source) > os.path.getmtime(job.target):
        return f"older than {job.source}"
    return None


# ---- what a job does, in this process or another -----------------------------------------------


def _encoder(
    model: str, n_q: int | None, search: int, overlap: float | None, threads: int | None, **load: Any
) -> "Work":
    from xycodec.models.files import encode_file

    return partial(encode_file, _load(model, threads=threads, **load), n_q=n_q, overlap_s=overlap, search=search)


def _decoder(model: str | None, any_model: bool, overlap: float | None, threads: int | None, **load: Any) -> "Work":
    from xycodec.io.xyc import CodecFile
    from xycodec.models.files import FileCodec, decode_file
    from xycodec.models.registry import MODELS

    loaded: dict[str, FileCodec] = {}

    def work(source: str, target: str, advance: "Advance") -> Any:
        file = CodecFile.read(source)
        # A file may come from anyone: its word alone must not download or open anything.
        if model is None and (file.model not in MODELS or load["runtime"] is Runtime.onnx):
            raise XycodecError(f"{source}: its model {file.model!r} has no name here, pass --model")
        name = model or file.model
        if name not in loaded:
            loaded[name] = _load(name, threads=threads, **load)
        return decode_file(
            loaded[name], file, target, name=source, overlap_s=overlap, any_model=any_model, advance=advance
        )

    return work


def _load(
    model: str, device: str, dtype: Precision, reference: bool, threads: int | None, quiet: bool,
    runtime: Runtime = Runtime.torch,
) -> Any:  # fmt: skip
    if runtime is Runtime.onnx:
        from xycodec.export.runtime import OnnxCodec

        if reference or dtype is not Precision.float32 or device not in ("auto", "cpu"):
            raise XycodecError("--runtime onnx computes in float32 on the CPU, by the length-true rules")
        return OnnxCodec.load(model, threads=threads)
    import torch

    from xycodec.checkpoints.load import load_codec
    from xycodec.models.registry import RANDOM

    set_threads(threads)
    codec = load_codec(model, device=device, dtype=getattr(torch, dtype.value), reference=reference)
    if codec.model_id == RANDOM and not quiet:
        print(f"note: {RANDOM} has random weights; its codes mean nothing and its audio is noise", file=sys.stderr)
    return codec
