"""`xycodec models`, `info`, `convert` and `bench`: what models there are, what a file or model is, how fast."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from xycodec.cli.options import AsJson, Device, Overwrite, Storage, Store, Threads, set_threads
from xycodec.cli.terminal import print_bench, print_kernels, print_table
from xycodec.errors import XycodecError


def info(
    path: Annotated[str, typer.Argument(help="A .xyc file, an audio file, or a model.")],
    as_json: AsJson = False,
) -> None:
    """Describe a code file, an audio file or a model."""
    described = _describe(path)
    if as_json:
        print(json.dumps(described))
    else:
        print_table(path, [("", "left"), ("", "left")], [(key, _shown(value)) for key, value in described.items()])


def _shown(value: object) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{round(value, 3):,}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def models(as_json: AsJson = False) -> None:
    """List the models that have a name, and when bfloat16 pays."""
    from xycodec.cli.bench import bfloat16_advice
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
    columns = [("model", "left"), ("weights and what they are", "left")]
    # Hub ids are long: what is short shares the column of the name.
    lines = [
        (
            f"{row['name']}\n{row['bitrate']:,.0f} bit/s, {row['output_hz']:,} Hz",
            f"{row['source']}\n{row['description']}",
        )
        for row in rows
    ]
    print_table("models", columns, lines)
    print(bfloat16_advice())


def convert(
    source: Annotated[str, typer.Argument(help="A published checkpoint, its folder, or a hub id.")],
    folder: Annotated[str, typer.Argument(help="The folder to write config.json and model.safetensors to.")],
    store: Store = Storage.float32,
    part_mb: Annotated[
        int | None, typer.Option(min=1, help="Files of so many MB of tensors at most (default: one file).")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a codec in this package's own layout, which loads without copying."""
    import torch

    from xycodec.checkpoints.load import load_codec
    from xycodec.checkpoints.save import save_codec
    from xycodec.checkpoints.weights import MB

    codec = load_codec(source, device="cpu")
    part_bytes = None if part_mb is None else part_mb * MB
    save_codec(codec, folder, dtype=getattr(torch, store.value), overwrite=overwrite, part_bytes=part_bytes)
    print(f"{folder}: {codec.model_id}, {sum(p.numel() for p in codec.parameters()):,} parameters")


def export_onnx(
    model: Annotated[str, typer.Argument(help="Name, folder, checkpoint or hub id (see models).")],
    folder: Annotated[str, typer.Argument(help="The folder for encoder.onnx, decoder.onnx and config.json.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a codec as two ONNX graphs, which need neither torch nor this package."""
    import torch

    from xycodec.checkpoints.load import BUNDLED, load_codec
    from xycodec.checkpoints.weights import MB
    from xycodec.export.graphs import export_onnx
    from xycodec.export.parity import check_parity
    from xycodec.export.runtime import OnnxCodec
    from xycodec.io.audio import read_audio

    codec = load_codec(model, device="cpu")
    about = export_onnx(codec, folder, overwrite=overwrite)
    clip = torch.from_numpy(read_audio(BUNDLED / "fox.flac"))[: codec.window_samples]
    found = check_parity(codec, OnnxCodec.load(folder), clip)
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    print(f"{folder}: {about.model_id}, {size / MB:,.1f} MB")
    print(
        f"checked on {found.frames} frames: the same codes, but for {found.near_ties} near-ties; "
        f"audio within {found.audio_error:.0e}"
    )


def export_web(
    model: Annotated[str, typer.Argument(help="Name, folder, checkpoint or hub id (see models).")],
    folder: Annotated[str, typer.Argument(help="The folder to write the page to.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a codec as a web page that computes in the browser; npm fetches its runtime."""
    from xycodec.checkpoints.load import load_codec
    from xycodec.export.web import export_web

    about = export_web(load_codec(model, device="cpu"), folder, overwrite=overwrite)
    print(f"{folder}: {about.model_id}; to see it: python -m http.server --directory {folder}")


def bench(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A name (with random weights: the speed is the same), or what to load."),
    ] = "xy-tokenizer",
    seconds: Annotated[str | None, typer.Option(help="Clip lengths, separated by commas (default: 2,5,10,30).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of which the fastest counts.")] = 3,
    batch: Annotated[bool, typer.Option(help="Also encode 32 clips of 2 to 15 s in one call.")] = True,
    bf16: Annotated[bool, typer.Option(help="Also compare with bfloat16.")] = False,
    device: Device = "auto",
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Compare the libraries that multiply matrices instead, and propose.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a codec's speed here, beside what the machine's arithmetic allows."""
    if kernels:
        _bench_kernels(threads, as_json)
        return
    import copy

    import torch

    from xycodec.checkpoints.build import random_codec
    from xycodec.checkpoints.load import load_codec, resolve_device
    from xycodec.cli.bench import bf16_agreement, library_peaks, measure, measure_batch
    from xycodec.models.presets import NAMED_CONFIGS

    lengths = None if seconds is None else _parse_lengths(seconds)
    set_threads(threads)
    named = model in NAMED_CONFIGS
    codec = random_codec(NAMED_CONFIGS[model]).to(resolve_device(device)) if named else load_codec(model, device=device)
    lengths = lengths or [2.0, 5.0, 10.0, 30.0]
    peaks = library_peaks(device=codec.device)
    library, peak = max(peaks.items(), key=lambda pair: pair[1])
    report: dict[str, Any] = {"model": codec.model_id, "device": str(codec.device), "peak_gflops": peak}
    report |= {"peak_by": library, "threads": torch.get_num_threads()}
    report["rows"] = [asdict(row) for row in measure(codec, lengths, repeats=repeats, peak=peak)]
    if batch:
        report["batch"] = asdict(measure_batch(codec))
    if bf16:
        low = copy.deepcopy(codec)
        low.to_compute_dtype(torch.bfloat16)
        report["bfloat16"] = asdict(bf16_agreement(codec, low, seconds=10.0, repeats=repeats))
    if as_json:
        print(json.dumps(report))
    else:
        print_bench(report)


def _bench_kernels(threads: int | None, as_json: bool) -> None:
    from xycodec.cli.bench_kernels import measure_kernels, proposed
    from xycodec.nn.deterministic.kernels import TABLE, processor

    set_threads(threads)
    rows = measure_kernels()
    in_force = processor()
    report: dict[str, Any] = {"processor": in_force, "in_force": TABLE[in_force], "proposed": proposed(rows)}
    report["rows"] = [asdict(row) for row in rows]
    if as_json:
        print(json.dumps(report))
    else:
        print_kernels(report)


def _describe(path: str) -> dict[str, Any]:
    """Describe a file, folder or name, by its content where it is a file."""
    from xycodec.io.audio import audio_extensions

    suffix = Path(path).suffix.lower()
    if path == "-":
        return _describe_file(sys.stdin.buffer, path, suffix)
    if os.path.exists(path) and not os.path.isdir(path) and suffix not in _CHECKPOINT_SUFFIXES:
        from xycodec.errors import AudioError
        from xycodec.io.files import open_input

        with open_input(path, AudioError) as file:
            return _describe_file(file, path, suffix)
    if os.path.isdir(path):
        return _describe_folder(path)
    beside = os.path.dirname(path)
    is_file = suffix in {*audio_extensions(), ".xyc", ".json", ".jsonl"}
    if not os.path.exists(path) and (is_file or (beside and os.path.isdir(beside))):
        raise XycodecError(f"{path}: there is no such file: check the path")
    return _describe_model(path)


def _describe_folder(path: str) -> dict[str, Any]:
    """Describe a store of tokens, a model, or how many files of audio and codes a folder holds."""
    from xycodec.errors import CheckpointError
    from xycodec.io.audio import audio_files
    from xycodec.io.tokens.layout import STORE
    from xycodec.io.tokens.read import TokenStore

    if (Path(path) / STORE).is_file():
        store = TokenStore(path)
        about = store.description
        return {
            "kind": "store of tokens", "model": about.model, "clips": len(store), "hours": store.seconds / 3600,
            "codebooks": f"{about.n_q} x {about.codebook_size}", "frame_rate": about.frame_rate,
            "failures": len(store.failures()),
        }  # fmt: skip
    try:
        return _describe_model(path)
    except CheckpointError:
        found = {"files of audio": len(audio_files(Path(path))), "files of codes": len(list(Path(path).rglob("*.xyc")))}
        if not any(found.values()):
            raise
        return {"kind": "folder", **found}


_CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
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
            "num_samples": codes.num_samples, "bytes": codes.num_bytes,
            **({"search": codes.search} if codes.search > 1 else {}),
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


def _parse_lengths(seconds: str) -> list[float]:
    try:
        return [float(part) for part in seconds.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{seconds!r} is not a list of numbers such as 2,5,10", param_hint="--seconds"
        ) from None
