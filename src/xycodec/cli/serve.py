"""`xycodec serve`: a page and an API."""

from dataclasses import replace
from typing import Annotated

import typer

from xycodec.cli.options import Device, Quiet, Threads, require_extra
from xycodec.models.registry import DEFAULT


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Name, folder, checkpoint or hub id; several times for several models."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is for this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 8765,
    token: Annotated[
        str | None, typer.Option(envvar="XYCODEC_TOKEN", help="Secret that every request has to bring.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Show the page for people (needs the extra `page`).")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read audio files.")] = 2,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in progress; more are refused (503).")] = 64,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Size of a request (413).")] = 64,
    max_clip_s: Annotated[float, typer.Option(min=1, help="Seconds of a clip (413).")] = 600.0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Serve a page to hear the codec, and an API with streams (docs/serving.md)."""
    require_extra("serve", "fastapi", "uvicorn", "multipart", "prometheus_client", "websockets")
    from importlib.util import find_spec

    from xycodec.serve.app import build_app
    from xycodec.serve.server import announce, bind, is_local
    from xycodec.serve.server import serve as run
    from xycodec.serve.service import load_models
    from xycodec.serve.settings import Limits, Settings

    limits = replace(Limits(), requests=max_requests, upload_mb=max_upload_mb, clip_s=max_clip_s)
    settings = Settings(
        models=tuple(model or [DEFAULT]), device=device, threads=threads, token=token or None, workers=workers,
        page=page and find_spec("gradio") is not None, limits=limits,
    )  # fmt: skip
    with bind(host, port) as listening:
        app = build_app(settings, load_models(settings))
        shown = f"[{host}]" if ":" in host else host
        announce(app, f"http://{shown}:{listening.getsockname()[1]}", local=is_local(host), quiet=quiet)
        run(app, listening, limits)
