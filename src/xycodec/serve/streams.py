"""Streams over WebSocket: PCM in and codes out, or codes in and PCM out, as soon as their context is complete.

Text messages are JSON objects with a `type`, binary messages are data:

* `start` (client): `direction` encode or decode; optionally `model`, `n_q` (of the codes that come, or are wanted), and
  `windows` with `step`, `left` and `right` in code frames. Answered by `ready`, with rates and `latency_s`.
* data: PCM is 16-bit, little-endian, mono, at the model's rate; codes are uint16, little-endian, `n_q` a frame.
* `end` (client): asks for the rest; to decode, `num_samples` cuts it to the original's length. Answered, after the
  data, by `end` with `seconds`; another `start` may follow.
* `ping` is answered by `pong`; `error` (server) is a problem body, after which the connection closes.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from xycodec.errors import XycodecError, described
from xycodec.models.inputs import INT16_SCALE
from xycodec.models.streaming import StreamingDecoder, StreamingEncoder
from xycodec.models.windows import Windows
from xycodec.serve.engine import Engine
from xycodec.serve.problems import Problem, busy
from xycodec.serve.service import Service

_PCM, _CODE = "<i2", "<u2"
_CLOSES = {500: 1011, 503: 1013}
_log = logging.getLogger("xycodec.serve")
MessageT = TypeVar("MessageT", bound=BaseModel)
ResultT = TypeVar("ResultT")


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    step: int = Field(ge=1)
    left: int = Field(0, ge=0)
    right: int = Field(0, ge=0)


class _Start(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["start"]
    direction: Literal["encode", "decode"]
    model: str | None = None
    n_q: int | None = None
    windows: _Place | None = None


class _End(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["end"]
    num_samples: int | None = None


class Streams:
    """All streams of a server; each has a connection, and its state lives as long as that."""

    def __init__(self, service: Service) -> None:
        self._service, self._open = service, 0

    async def run(self, socket: WebSocket) -> None:
        """Serve a connection to its end, whatever that is."""
        await socket.accept()
        limits, metrics = self._service.settings.limits, self._service.metrics
        self._open += 1
        metrics.streams.inc()
        try:
            if self._open > limits.streams:
                raise busy(f"{limits.streams} streams are open already: try again later")
            while await _Talk(self._service, socket).run():
                pass
        except WebSocketDisconnect:
            pass
        except Problem as problem:
            await _end(socket, problem)
        except Exception as error:
            _log.error("a stream failed: %s", described(error), exc_info=error)
            await _end(socket, Problem(500, "the server failed: its log says why"))
        finally:
            self._open -= 1
            metrics.streams.dec()


async def _end(socket: WebSocket, problem: Problem) -> None:
    """Tell a client why its stream ends, if it is still there."""
    with suppress(WebSocketDisconnect):
        await socket.send_text(json.dumps({**problem.fields, "type": "error"}))
        await socket.close(_CLOSES.get(problem.status, 1008), problem.detail[:100])


class _Talk:
    """One clip of a connection, from `start` to `end`."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._limits = service.settings.limits

    async def run(self) -> bool:
        """Do it; another clip may follow."""
        message = await self._next()
        if isinstance(message, bytes):
            raise Problem(422, 'data came first: begin with {"type": "start", "direction": "encode"}')
        start = _parsed(_Start, message)
        engine = self._service.engine(start.model)
        side: _Encoding | _Decoding
        side = _checked(_Encoding, engine, start) if start.direction == "encode" else _checked(_Decoding, engine, start)
        await self._socket.send_text(json.dumps({"type": "ready", **side.about}))
        began: float | None = None
        items = 0
        while isinstance(message := await self._next(), bytes):
            block = side.read(message)
            began = began or time.perf_counter()
            items += block.shape[-1]
            if items > self._limits.stream_s * side.rate:
                raise Problem(413, f"a stream may last {self._limits.stream_s:g} s: end it, and start another")
            result = await engine.push(side.stream, _checked(side.stream.cut, block))
            if result.shape[-1] and began > 0:
                self._service.metrics.first_result.labels(start.direction).observe(time.perf_counter() - began)
                began = -1.0
            await self._send(side.write(result))
        left = side.left(_parsed(_End, message))
        last = await engine.push(side.stream, side.stream.end())
        await self._send(side.write(torch.cat([last, side.stream.rest()], dim=-1)[..., :left]))
        await self._socket.send_text(json.dumps({"type": "end", "seconds": round(items / side.rate, 6)}))
        return True

    async def _next(self) -> bytes | str:
        """The next message that is no ping. Raises Problem where none comes for long."""
        while True:
            try:
                message = await asyncio.wait_for(self._socket.receive(), self._limits.idle_s)
            except TimeoutError:
                raise Problem(408, f"nothing came for {self._limits.idle_s:g} s: the stream is closed") from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1000))
            if (data := message.get("bytes")) is not None:
                return bytes(data)
            if _kind(text := message["text"]) != "ping":
                return str(text)
            await self._socket.send_text('{"type": "pong"}')

    async def _send(self, data: bytes) -> None:
        """Send data; a client that does not take it is given up."""
        if data:
            try:
                await asyncio.wait_for(self._socket.send_bytes(data), self._limits.idle_s)
            except TimeoutError:
                raise WebSocketDisconnect(1011) from None


class _Encoding:
    """PCM in, codes out."""

    def __init__(self, engine: Engine, start: _Start) -> None:
        codec = engine.codec
        self.stream = StreamingEncoder(codec, _windows(start), n_q=start.n_q)
        self.rate = float(codec.input_sample_rate)
        # All layers are computed, so that streams share batches with all else.
        self._layers, self.stream.n_q = self.stream.n_q, codec.n_q
        self.about = _about(engine, self.stream, self._layers)

    def read(self, data: bytes) -> Tensor:
        """(T,) int16."""
        if len(data) % 2:
            raise Problem(422, f"a message of {len(data)} bytes is no 16-bit PCM: send whole samples")
        return torch.from_numpy(np.frombuffer(data, _PCM).astype(np.int16))

    def write(self, codes: Tensor) -> bytes:
        """Frame by frame."""
        data: bytes = codes[: self._layers].numpy().T.astype(_CODE).tobytes()
        return data

    def left(self, end: _End) -> int | None:
        """Frames that are still to go out: all."""
        return None


class _Decoding:
    """Codes in, PCM out."""

    def __init__(self, engine: Engine, start: _Start) -> None:
        codec = engine.codec
        self.stream = StreamingDecoder(codec, _windows(start))
        self.rate = codec.frame_rate
        self._layers = codec.check_layers(start.n_q)
        self.about = _about(engine, self.stream, self._layers)

    def read(self, data: bytes) -> Tensor:
        """(k, L) int64."""
        if len(data) % (2 * self._layers):
            raise Problem(
                422, f"a message of {len(data)} bytes is no frames of {self._layers} uint16: send whole frames"
            )
        return torch.from_numpy(np.frombuffer(data, _CODE).astype(np.int64)).reshape(-1, self._layers).T

    def write(self, audio: Tensor) -> bytes:
        """16-bit, as files have it."""
        scaled = np.rint(audio.numpy().clip(-1, 1) * INT16_SCALE).clip(max=INT16_SCALE - 1)
        data: bytes = scaled.astype(_PCM).tobytes()
        return data

    def left(self, end: _End) -> int | None:
        """Samples that are still to go out."""
        return _checked(self.stream.samples_left, end.num_samples)


def _about(engine: Engine, stream: StreamingEncoder | StreamingDecoder, layers: int) -> dict[str, Any]:
    codec = engine.codec
    return {
        "model": codec.model_id, "n_q": layers, "frame_rate": codec.frame_rate, "latency_s": stream.latency_s,
        "input_sample_rate": codec.input_sample_rate, "output_sample_rate": codec.output_sample_rate,
    }  # fmt: skip


def _windows(start: _Start) -> Windows | None:
    return None if start.windows is None else Windows(**start.windows.model_dump())


def _kind(text: str) -> str | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message.get("type") if isinstance(message, dict) else None


def _parsed(kind: type[MessageT], text: str) -> MessageT:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the message"
        expected = kind.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
        raise Problem(422, f"{place}: {first['msg']} (expected {expected!r})") from None


def _checked(work: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Result of `work`, or its error as a problem."""
    try:
        return work(*arguments)
    except XycodecError as error:
        raise Problem(422, str(error)) from None
