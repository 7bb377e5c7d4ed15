"""The server's routes: REST (FastAPI), streams, and what runs behind them."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from xycodec import __version__
from xycodec.errors import XycodecError, described
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.serve import exchange
from xycodec.serve.engine import Engine
from xycodec.serve.guard import Guard
from xycodec.serve.handbook import handbook
from xycodec.serve.problems import MEDIA_TYPE, Problem, documented
from xycodec.serve.service import Service
from xycodec.serve.settings import Settings
from xycodec.serve.streams import Streams

_log = logging.getLogger("xycodec.serve")
_FORM = {
    "model": {"type": "string", "description": "Name of a loaded model (default: the first)"},
    "n_q": {"type": "integer", "minimum": 1, "description": "Codebooks to use (default: all)"},
}
_REFUSALS = documented(400, 401, 403, 406, 408, 413, 415, 422, 429, 503)


def build_app(settings: Settings, codecs: Mapping[str, Codec] | None = None) -> FastAPI:
    """Return the server's application (ASGI); `codecs` by id are its models, where they are loaded already."""
    service = Service(settings, codecs)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="xycodec", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Speech to discrete codes, and back.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(
        Guard, limits=settings.limits, token=settings.token, metrics=service.metrics,
        stopping=service.stopping,
    )  # fmt: skip
    _add_refusals(app)
    _add_routes(app, service)
    _add_watch(app, service)
    _add_start(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    """The routes that do the work."""

    @app.post("/v1/encode", summary="Audio to codes", **_described("audio", _FORM, exchange.CODES))
    async def encode(request: Request) -> Response:
        kind = exchange.accepted(request.headers.get("accept"), exchange.CODES)
        data, fields = await exchange.read_form(request, "audio")
        engine = service.engine(fields.get("model"))
        file = await service.encode(data, engine, exchange.read_layers(fields.get("n_q"), engine.codec))
        return Response(exchange.codes_body(file, kind), media_type=kind, headers=_facts(file))

    @app.post("/v1/decode", summary="Codes to audio", **_described("codes", {}, tuple(exchange.AUDIO), exchange.Codes))
    async def decode(request: Request) -> Response:
        kind = exchange.accepted(request.headers.get("accept"), tuple(exchange.AUDIO))
        if request.headers.get("content-type", "").lower().startswith(exchange.JSON):
            file = exchange.read_json_codes(await request.body(), lambda name: service.engine(name).codec)
        else:
            data, _ = await exchange.read_form(request, "codes")
            try:
                file = CodecFile.from_bytes(data, "the upload")
            except XycodecError as error:
                raise Problem(422, str(error)) from None
        return await respond(file, service.engine(file.model), kind)

    @app.post("/v1/roundtrip", summary="Audio to codes to audio", **_described("audio", _FORM, tuple(exchange.AUDIO)))
    async def roundtrip(request: Request) -> Response:
        kind = exchange.accepted(request.headers.get("accept"), tuple(exchange.AUDIO))
        data, fields = await exchange.read_form(request, "audio")
        engine = service.engine(fields.get("model"))
        file = await service.encode(data, engine, exchange.read_layers(fields.get("n_q"), engine.codec))
        return await respond(file, engine, kind)

    async def respond(file: CodecFile, engine: Engine, kind: str) -> Response:
        audio = await service.decode(file, engine)
        body = await service.workers.write(audio, engine.codec.output_sample_rate, exchange.AUDIO[kind])
        return Response(body, media_type=kind, headers=_facts(file))

    @app.get("/v1/models", summary="The models that are loaded", responses=documented(401, 403))
    async def models() -> list[dict[str, Any]]:
        return [_description(engine.codec) for engine in service.engines.values()]

    streams = Streams(service)

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await streams.run(socket)


def _add_watch(app: FastAPI, service: Service) -> None:
    """The routes that tell how the server is, and how it is used."""

    @app.get("/healthz", summary="Whether the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether it takes requests", responses=documented(503))
    async def ready() -> dict[str, str]:
        if not service.ready:
            raise Problem(503, "the server is not ready: its models are being loaded, or it is stopping")
        return {"status": "ready"}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=documented(401, 403))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(handbook(app.openapi()), media_type="text/html")


def _add_start(app: FastAPI, service: Service) -> None:
    """The page, where it is wanted, and what is at the address itself."""
    start = "/docs"
    if service.settings.page:
        from xycodec.serve.page import PATH, add_page

        add_page(app, service)
        start = f"{PATH}/"

    @app.get("/", include_in_schema=False)
    async def begin() -> Response:
        return RedirectResponse(start)


def _add_refusals(app: FastAPI) -> None:
    """Every refusal, whoever makes it, is a problem body."""

    @app.exception_handler(Problem)
    async def refused(request: Request, problem: Problem) -> Response:
        return Response(problem.body, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        problem = Problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}; see /docs")
        headers = {**problem.headers, **(error.headers or {})}
        return Response(problem.body, problem.status, headers=headers, media_type=MEDIA_TYPE)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.error("%s %s: %s", request.method, request.url.path, described(error), exc_info=error)
        return Response(Problem(500, "the server failed: its log says why").body, 500, media_type=MEDIA_TYPE)


def _facts(file: CodecFile) -> dict[str, str]:
    """Headers of a response about its codes."""
    return {"X-Xycodec-Seconds": f"{file.duration:.3f}", "X-Xycodec-Bitrate": f"{file.bitrate:.1f}"}


def _description(codec: Codec) -> dict[str, Any]:
    return {
        "name": codec.model_id, "n_q": codec.n_q, "codebook_size": codec.codebook_size,
        "frame_rate": codec.frame_rate, "hop_length": codec.hop_length, "bitrate": codec.bitrate,
        "input_sample_rate": codec.input_sample_rate, "output_sample_rate": codec.output_sample_rate,
        "window_s": codec.window_frames / codec.frame_rate,
    }  # fmt: skip


def _described(
    field: str, others: dict[str, Any], kinds: tuple[str, ...], json: "type[exchange.Codes] | None" = None
) -> dict[str, Any]:
    """Description of a route whose form has a file in `field`, and whose response is one of `kinds`."""
    form = {
        "type": "object",
        "required": [field],
        "properties": {field: {"type": "string", "format": "binary"}, **others},
    }
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if json is not None:
        content["application/json"] = {"schema": json.model_json_schema()}
    good = {
        kind: {"schema": exchange.Codes.model_json_schema()}
        if kind == exchange.JSON
        else {"schema": {"type": "string", "format": "binary"}}
        for kind in kinds
    }
    return {
        "response_class": Response,
        "responses": {200: {"description": "Done", "content": good}, **_REFUSALS},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }
