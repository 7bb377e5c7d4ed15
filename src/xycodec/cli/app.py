"""The command line: each command parses, calls one public function, and prints.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from functools import cache, partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from xycodec.cli.data import data_app
from xycodec.cli.evaluate import abx, evaluate, probe
from xycodec.cli.options import AsJson, Device, Jobs, Model, Quiet, require_extra
from xycodec.cli.terminal import print_bench, print_comparison, print_error, print_plan, print_table, run_all
from xycodec.errors import XycodecError
from xycodec.models.registry import DEFAULT

if TYPE_CHECKING:
    from xycodec.checkpoints.load import OwnCodec
    from xycodec.io.parallel import Advance, Job, Work

app = typer.Typer(
    name="xycodec",
    help="Speech to 1 kbit/s of codes, and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")


class Precision(StrEnum):
    """What matrices are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Storage(StrEnum):
    """What weights are stored in."""

    float32 = "float32"
    float16 = "float16"


Inputs = Annotated[list[str], typer.Argument(help="Files, folders, quoted globs, or - for stdin.")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="File, or folder for several inputs; - is stdout.")]
Dtype = Annotated[Precision, typer.Option(help="bfloat16 is for the towers' matrices (see models).")]
Reference = Annotated[bool, typer.Option("--reference", help="Published rules for lengths and long audio.")]
Overlap = Annotated[
    float | None, typer.Option(help="Seconds that windows of long audio share (default: a third of the window).")
]
Layers = Annotated[int | None, typer.Option("--n-q", min=1, help="Use only the first codebooks.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads in all (default: every core).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Store = Annotated[Storage, typer.Option(help="float16 takes half the size.")]


@app.command()
def encode(
    inputs: Inputs,
    model: Model = DEFAULT,
    output: Output = None,
    n_q: Layers = None,
    overlap: Overlap = None,
    reference: Reference = False,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    threads: Threads = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn speech into .xyc files."""
    from xycodec.io import parallel as batch
    from xycodec.io.audio import audio_extensions

    settings = {
        "model": model, "n_q": n_q, "overlap": overlap, "reference": reference, "device": device, "dtype": dtype,
        "quiet": quiet or as_json,
    }  # fmt: skip
    plan = batch.plan_jobs(inputs, output, ".xyc", audio_extensions())
    untold = _untold(overlap=overlap, reference=reference, dtype=dtype)
    run_all(
        plan, _encoder, settings, jobs, threads, overwrite, quiet, as_json, untold, partial(_other_codes, model, n_q)
    )


@app.command()
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
    threads: Threads = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn .xyc files into audio."""
    from xycodec.io import parallel as batch

    settings = {
        "model": model, "any_model": any_model, "overlap": overlap, "reference": reference, "device": device,
        "dtype": dtype, "quiet": quiet or as_json,
    }  # fmt: skip
    plan = batch.plan_jobs(inputs, output, "." + suffix.lstrip("."), frozenset({".xyc"}))
    untold = _untold(overlap=overlap, reference=reference, dtype=dtype, model=model if any_model else None)
    run_all(plan, _decoder, settings, jobs, threads, overwrite, quiet, as_json, untold, _older_audio)


@app.command()
def roundtrip(
    source: Annotated[str, typer.Argument(help="Any audio file.")],
    model: Model = DEFAULT,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("."),
    n_q: Layers = None,
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
    from xycodec.eval.metrics.quality import plain
    from xycodec.io.pictures import draw_roundtrip
    from xycodec.models.files import roundtrip_file

    if source == "-" or (os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source)):
        raise typer.BadParameter(f"a round trip reads its source twice: give a file, not {source}", param_hint="SOURCE")
    stem = Path(source).stem
    codes, audio, picture = (output / f"{stem}{end}" for end in (".xyc", ".decoded.wav", ".png"))
    for made in (codes, audio, picture):
        if made.exists() and not overwrite:
            raise XycodecError(f"{made} exists already: pass --overwrite to replace it")
    output.mkdir(parents=True, exist_ok=True)
    codec = _load(model, device, dtype, reference, threads, quiet or as_json)
    result = roundtrip_file(codec, source, str(codes), str(audio), n_q=n_q, overlap_s=overlap)
    draw_roundtrip(source, str(codes), str(audio), picture)
    if as_json:
        sides = {"encoded": asdict(result.encoded), "decoded": asdict(result.decoded)}
        print(json.dumps({**sides, **plain(result.quality), "picture": str(picture)}))
    elif not quiet:
        print_comparison(result, str(picture))


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A .xyc file, an audio file, or a model.")],
    as_json: AsJson = False,
) -> None:
    """Describe a code file, an audio file or a model."""
    described = _describe(path)
    if as_json:
        print(json.dumps(described))
    else:
        rows = [(key, f"{value:,}" if isinstance(value, int) else str(value)) for key, value in described.items()]
        print_table(path, [("", "left"), ("", "left")], rows)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that have a name, and when bfloat16 pays."""
    from xycodec.checkpoints.load import bfloat16_advice
    from xycodec.models.presets import NAMED_CONFIGS
    from xycodec.models.registry import MODELS

    rows = []
    for model in MODELS.values():
        config = NAMED_CONFIGS[model.name]
        rows.append(
            {
                "name": model.name,
                "source": model.source,
                "output_hz": config.output_sample_rate,
                "bitrate": config.bitrate,
                "codebooks": f"{config.quantizer.n_q} x {config.quantizer.codebook_size}",
                "description": model.description,
            }
        )
    if as_json:
        print(json.dumps({"models": rows, "bfloat16": bfloat16_advice()}))
        return
    columns = [("name", "left"), ("bit/s", "right"), ("output", "right"), ("weights and what they are", "left")]
    lines = [
        (
            str(row["name"]),
            f"{row['bitrate']:,.0f}",
            f"{row['output_hz']:,} Hz",
            f"{row['source']}\n{row['description']}",
        )
        for row in rows
    ]
    print_table("models", columns, lines)
    print(bfloat16_advice())


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A published checkpoint, its folder, or a hub id.")],
    folder: Annotated[str, typer.Argument(help="The folder to write config.json and model.safetensors to.")],
    store: Store = Storage.float32,
    part_mb: Annotated[int | None, typer.Option(min=1, help="Files of at most so many MB (default: one file).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a codec in this package's own layout, which loads without copying."""
    import torch

    from xycodec.checkpoints.load import load_codec, save_codec
    from xycodec.checkpoints.weights import MB

    codec = load_codec(source, device="cpu")
    part_bytes = None if part_mb is None else part_mb * MB
    save_codec(codec, folder, dtype=getattr(torch, store.value), overwrite=overwrite, part_bytes=part_bytes)
    print(f"{folder}: {codec.model_id}, {sum(p.numel() for p in codec.parameters()):,} parameters")


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A name (with random weights: the speed is the same), or what to load."),
    ] = "xy-tokenizer",
    seconds: Annotated[
        str | None, typer.Option(help="Clip lengths, separated by commas (default: 2,5,10,30, within the window).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of which the fastest counts.")] = 3,
    batch: Annotated[
        bool, typer.Option(help="Also encode 32 clips of 2 to 15 s in one call, if the window holds them.")
    ] = True,
    bf16: Annotated[bool, typer.Option(help="Also compare with bfloat16.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a codec's speed here, beside what the machine's arithmetic allows."""
    import copy

    import torch

    from xycodec.checkpoints.load import load_codec, random_codec, resolve_device
    from xycodec.cli.bench import LONGEST_MIXED_S, bf16_agreement, matmul_peak, measure, measure_batch
    from xycodec.models.presets import NAMED_CONFIGS

    lengths = None if seconds is None else _parse_lengths(seconds)
    if threads:
        torch.set_num_threads(threads)
    named = model in NAMED_CONFIGS
    codec = random_codec(NAMED_CONFIGS[model]).to(resolve_device(device)) if named else load_codec(model, device=device)
    window = codec.window_samples / codec.input_sample_rate
    lengths = lengths or [length for length in (2.0, 5.0, 10.0, 30.0) if length <= window]
    peak = matmul_peak(device=codec.device)
    report: dict[str, Any] = {"model": codec.model_id, "device": str(codec.device), "peak_gflops": peak}
    report["rows"] = [asdict(row) for row in measure(codec, lengths, repeats=repeats, peak=peak)]
    if batch and window >= LONGEST_MIXED_S:
        report["batch"] = asdict(measure_batch(codec))
    if bf16:
        low = copy.deepcopy(codec)
        low.to_compute_dtype(torch.bfloat16)
        report["bfloat16"] = asdict(bf16_agreement(codec, low, seconds=min(10.0, window), repeats=repeats))
    if as_json:
        print(json.dumps(report))
    else:
        print_bench(report)


@app.command(name="train")
def train_command(
    config: Annotated[Path, typer.Argument(help="A recipe in YAML (see configs/).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="steps=1000 data.workers=2 ...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, memory and steps per epoch, then stop.")
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a codec. Several processes: torchrun --nproc-per-node 8 -m xycodec train CONFIG."""
    import torch

    from xycodec.train.recipe_file import load_recipe

    require_extra("train", "lhotse", "transformers", "tensorboard", "jiwer")
    recipe = load_recipe(config, tuple(overrides or ()))
    if threads:
        torch.set_num_threads(threads)
    if dry_run:
        from xycodec.train.plan import plan_run

        print_plan(plan_run(recipe))
        return
    from xycodec.train.run import train

    ended = train(recipe, resume=resume, quiet=quiet)
    if not quiet and os.environ.get("RANK", "0") == "0":
        state = "finished" if ended.finished else "stopped, --resume goes on"
        print(f"{recipe.output}: {state} at step {ended.step} of {recipe.steps}")


for command in (evaluate, probe, abx):
    app.command()(command)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A training run, for its newest checkpoint, or one checkpoint.")],
    folder: Annotated[Path, typer.Argument(help="A new folder: what weights and --model may name instead of RUN.")],
    part_mb: Annotated[int, typer.Option(min=1, help="Files of at most so many MB.")] = 15,
    store: Store = Storage.float32,
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="Of stage hubert: what HubertModel.from_pretrained reads, in float32."),
    ] = False,
) -> None:
    """Write a run's weights without its optimizers, to go on from elsewhere."""
    import torch

    from xycodec.checkpoints.weights import MB
    from xycodec.train.export import export_transformers, export_weights

    if transformers:
        made = export_transformers(run, folder)
    else:
        made = export_weights(run, folder, part_bytes=part_mb * MB, dtype=getattr(torch, store.value))
    print(f"{folder}: step {made.step:,}, {made.bytes / MB:,.1f} MB in {len(made.files)} files")


def _parse_lengths(seconds: str) -> list[float]:
    try:
        return [float(part) for part in seconds.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{seconds!r} is not a list of numbers such as 2,5,10", param_hint="--seconds"
        ) from None


# ---- whether a result that exists is what would be made ----------------------------------------


def _untold(dtype: Precision, **settings: Any) -> dict[str, Any]:
    """Settings that neither codes nor audio tell, but for the defaults."""
    found = {key: value for key, value in settings.items() if value not in (None, False)}
    return found if dtype is Precision.float32 else found | {"dtype": dtype.value}


def _other_codes(model: str, n_q: int | None, job: "Job") -> str | None:
    """Why the codes at a job's target are not those that it would make; None if they are, as far as they tell."""
    from xycodec.errors import BitstreamError
    from xycodec.io.xyc import CodecFile

    try:
        file = CodecFile.read(job.target)
    except BitstreamError as error:
        return f"exists already and holds no codes ({error})"
    model_id, layers = _codes_of(model)
    if (file.model, file.n_q) == (model_id, n_q or layers):
        return None
    was, now = f"{file.n_q} codebooks of {file.model}", f"{n_q or layers} of {model_id}"
    return f"made with other settings (then {was}, now {now})"


@cache
def _codes_of(model: str) -> tuple[str, int]:
    """A model's id and number of codebooks."""
    from xycodec.checkpoints.load import load_codec
    from xycodec.models.presets import NAMED_CONFIGS

    if model in NAMED_CONFIGS:
        return model, NAMED_CONFIGS[model].quantizer.n_q
    codec = load_codec(model, device="cpu")
    return codec.model_id, codec.n_q


def _older_audio(job: "Job") -> str | None:
    """Why the audio at a job's target is not of its codes; None if nothing tells so."""
    if job.source != "-" and os.path.getmtime(job.source) > os.path.getmtime(job.target):
        return f"older than {job.source}"
    return None


# ---- what a job does, in this process or another -----------------------------------------------


def _encoder(model: str, n_q: int | None, overlap: float | None, threads: int | None, **load: Any) -> "Work":
    from xycodec.models.files import encode_file

    codec = _load(model, threads=threads, **load)

    def work(job: "Job", advance: "Advance") -> Any:
        return encode_file(codec, job.source, job.target, n_q=n_q, overlap_s=overlap, advance=advance)

    return work


def _decoder(model: str | None, any_model: bool, overlap: float | None, threads: int | None, **load: Any) -> "Work":
    from xycodec.io.xyc import CodecFile
    from xycodec.models.base import Codec
    from xycodec.models.files import decode_file
    from xycodec.models.registry import MODELS

    loaded: dict[str, Codec] = {}

    def work(job: "Job", advance: "Advance") -> Any:
        file = CodecFile.read(job.source)
        # A file may come from anyone: its word alone must not download or open anything.
        if model is None and file.model not in MODELS:
            raise XycodecError(f"{job.source}: its model {file.model!r} has no name here, pass --model")
        name = model or file.model
        if name not in loaded:
            loaded[name] = _load(name, threads=threads, **load)
        return decode_file(
            loaded[name], file, job.target, name=job.source, overlap_s=overlap, any_model=any_model, advance=advance
        )

    return work


def _load(model: str, device: str, dtype: Precision, reference: bool, threads: int | None, quiet: bool) -> "OwnCodec":
    import torch

    from xycodec.checkpoints.load import load_codec
    from xycodec.models.registry import RANDOM

    if threads:
        torch.set_num_threads(threads)
    codec = load_codec(model, device=device, dtype=getattr(torch, dtype.value), reference=reference)
    if codec.model_id == RANDOM and not quiet:
        print(f"note: {RANDOM} has random weights; its codes mean nothing and its audio is noise", file=sys.stderr)
    return codec


def _describe(path: str) -> dict[str, Any]:
    """What a file, folder or name is, by its content where it is a file."""
    suffix = Path(path).suffix.lower()
    if path == "-":
        return _describe_file(sys.stdin.buffer, path, suffix)
    if os.path.exists(path) and not os.path.isdir(path) and suffix not in _CHECKPOINT_SUFFIXES:
        from xycodec.io.audio import open_input

        with open_input(path) as file:
            return _describe_file(file, path, suffix)
    return _describe_model(path)


_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".yaml", ".json")
_LOOKS = {
    b"PK\3\4": "a zip archive", b"\x1f\x8b": "compressed by gzip", b"%PDF": "a PDF", b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture", b"{": "JSON",
}  # fmt: skip


def _describe_file(file: Any, path: str, suffix: str) -> dict[str, Any]:
    from xycodec.errors import AudioError
    from xycodec.io.audio import audio_extensions, audio_info
    from xycodec.io.xyc import CodecFile

    head = file.peek(512)
    if head.startswith(b"XYC") or suffix == ".xyc":
        codes = CodecFile.read(path) if path == "-" or os.path.isfile(path) else CodecFile.from_bytes(file.read(), path)
        return {
            "kind": "codes", "model": codes.model, "seconds": round(codes.duration, 3), "frames": codes.frames,
            "codebooks": f"{codes.n_q} x {codes.codebook_size}", "bitrate": round(codes.bitrate, 1),
            "sample_rate": codes.sample_rate, "output_sample_rate": codes.output_sample_rate,
            "num_samples": codes.num_samples, "bytes": len(codes.to_bytes()),
        }  # fmt: skip
    try:
        # What is no file, such as a pipe, is read once.
        return {"kind": "audio", **asdict(audio_info(path if path == "-" or os.path.isfile(path) else file))}
    except AudioError:
        if path == "-" or suffix in audio_extensions():
            raise
    looks = next((name for magic, name in _LOOKS.items() if head.startswith(magic)), None)
    if looks is None:
        is_text = head.isascii() and not any(byte < 9 for byte in head)
        looks = "a tar archive" if head[257:262] == b"ustar" else "text" if is_text else "of no kind known here"
    raise XycodecError(f"{path}: it is {looks}, not codes, audio or a model")


def _describe_model(path: str) -> dict[str, Any]:
    from xycodec.checkpoints.load import load_codec

    codec = load_codec(path, device="cpu")
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in codec.named_children()}
    return {
        "kind": "model", "model": codec.model_id, "input_sample_rate": codec.input_sample_rate,
        "output_sample_rate": codec.output_sample_rate, "frame_rate": codec.frame_rate,
        "codebooks": f"{codec.n_q} x {codec.codebook_size}", "bitrate": codec.bitrate,
        "window_s": codec.window_samples / codec.input_sample_rate,
        "parameters": sum(parts.values()),
        **{f"parameters of {name}": count for name, count in parts.items() if count},
    }  # fmt: skip


def main() -> NoReturn:
    """Run the command line. Exit code 0: all well; 1: something failed, said in a line; 2: wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        # A file name need not be text in the terminal's encoding.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except XycodecError as error:
        print_error(str(error))
    except OSError as error:
        print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except SystemExit as stop:
        if stop.code == 130:  # typer's word for Ctrl-C
            print_error("interrupted; what is finished stays, run again to continue")
        raise
    raise SystemExit(1)


if __name__ == "__main__":
    main()
