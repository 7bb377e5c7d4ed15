"""Clients of a server: what it does, as methods, for programs that wait and for programs that do not."""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import httpx
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect as connect_sync

from xycodec.errors import XycodecError
from xycodec.io.files import FilePath, open_input
from xycodec.io.xyc import CodecFile
from xycodec.serve.settings import PORT

if TYPE_CHECKING:
    from xycodec.models.windows import Windows

Content = FilePath | bytes | BinaryIO
"""A file: its path, its bytes, or an open binary file."""
_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg"}
ADDRESS = f"http://127.0.0.1:{PORT}"
"""Address of a server of this machine, by default."""
_WAIT_S = 8.0  # between two tries, at most


class ServerError(XycodecError):
    """A server that cannot be reached, or did not do what was asked; `status` is 0 where nothing answered."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _Asked:
    """A request, ready to be sent, again if need be."""

    def __init__(self, method: str, path: str, **content: Any) -> None:
        self.method, self.path, self.content = method, path, content


class _Shared:
    """The part that both clients share: addresses, requests, and answers as results or errors."""

    def __init__(
        self, url: str = ADDRESS, *, token: str | None = None, timeout_s: float = 120, retries: int = 5
    ) -> None:
        self.url, self.retries, self._timeout = url.rstrip("/"), retries, timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def _options(self) -> dict[str, Any]:
        return {"base_url": self.url, "headers": self._headers, "timeout": self._timeout, "trust_env": False}

    @property
    def _socket(self) -> dict[str, Any]:
        scheme, _, rest = self.url.partition("://")
        address = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/stream"
        return {
            "uri": address, "additional_headers": self._headers, "open_timeout": self._timeout, "proxy": None,
            "ping_interval": None,  # a busy server reads no pings; `timeout_s` is what is waited for it
        }  # fmt: skip

    def _pause(self, attempt: int, response: httpx.Response | None) -> float:
        """Seconds to wait before another try."""
        told = "" if response is None else response.headers.get("retry-after", "")
        least = float(told) if told.isdigit() else 0.0
        # Clients that were refused together come back at different times.
        pause: float = min(_WAIT_S, max(least, 0.1 * 2**attempt)) * random.uniform(0.5, 1.0)
        return pause


def _file(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    if not isinstance(content, (str, os.PathLike)):
        return content.read()
    with open_input(Path(content), XycodecError) as file:
        return file.read()


def _form(path: str, field: str, content: bytes, accept: str, **fields: Any) -> _Asked:
    data = {name: str(value) for name, value in fields.items() if value is not None}
    return _Asked("POST", path, files={field: ("upload", content)}, data=data, headers={"Accept": accept})


def _encode(audio: Content, model: str | None, n_q: int | None) -> _Asked:
    return _form("/v1/encode", "audio", _file(audio), "application/x-xyc", model=model, n_q=n_q)


def _decode(codes: CodecFile | Content, kind: str) -> _Asked:
    data = codes.to_bytes() if isinstance(codes, CodecFile) else _file(codes)
    return _form("/v1/decode", "codes", data, _type(kind))


def _roundtrip(audio: Content, kind: str, model: str | None, n_q: int | None) -> _Asked:
    return _form("/v1/roundtrip", "audio", _file(audio), _type(kind), model=model, n_q=n_q)


def _type(kind: str) -> str:
    if kind not in _TYPES:
        raise XycodecError(f"format must be one of {', '.join(_TYPES)}, got {kind!r}")
    return _TYPES[kind]


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code >= 400:
        try:
            detail = response.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = f"{response.url}: {response.reason_phrase}"
        raise ServerError(response.status_code, f"{detail} (HTTP {response.status_code})")
    return response


def _unreachable(url: str, error: Exception) -> ServerError:
    return ServerError(0, f"{url}: no answer ({type(error).__name__}: {error}): is the server running?")


def _refused(url: str, error: InvalidStatus) -> ServerError:
    answer = error.response
    return ServerError(answer.status_code, f"{url}: the stream was refused ({answer.reason_phrase})")


def _closed(url: str, error: ConnectionClosed) -> ServerError:
    reason = error.rcvd.reason if error.rcvd is not None else ""
    return ServerError(0, f"{url}: the stream was closed ({reason or 'without a reason'})")


# ---- streams -------------------------------------------------------------------------------------


class _Conversation:
    """One clip of a stream: what to send, and what the messages that come mean."""

    def __init__(self, direction: str, settings: dict[str, Any], windows: "Windows | None") -> None:
        self._encodes = direction == "encode"
        place = windows and {"step": windows.step, "left": windows.left, "right": windows.right}
        given = {"direction": direction, **settings, "windows": place}
        self.start = json.dumps({"type": "start", **{key: value for key, value in given.items() if value is not None}})
        self.about: dict[str, Any] = {}
        self.ended = False

    def end(self, num_samples: int | None) -> str:
        return json.dumps({"type": "end"} | ({} if num_samples is None else {"num_samples": num_samples}))

    def packed(self, block: Any) -> bytes:
        block = np.asarray(block)
        if not self._encodes:
            block = block.T.astype("<u2")
        elif block.dtype != np.int16:
            block = np.rint(block.clip(-1, 1) * 32768).clip(max=32767)
        data: bytes = (block.astype("<i2") if self._encodes else block).tobytes()
        return data

    def take(self, message: str | bytes) -> NDArray[Any] | None:
        """Data of a message; None of one that says something else. Raises ServerError."""
        if isinstance(message, bytes):
            if self._encodes:
                return np.frombuffer(message, "<u2").reshape(-1, self.about["n_q"]).T.astype(np.uint16)
            return np.frombuffer(message, "<i2").astype(np.int16)
        fields = json.loads(message)
        if fields["type"] == "error":
            raise ServerError(fields["status"], fields["detail"])
        if fields["type"] == "ready":
            self.about = fields
        self.ended = fields["type"] == "end"
        return None


class Client(_Shared):
    """A server's client that waits for each answer; a context manager.

    `url` is the server's address, `token` its secret, `timeout_s` what an answer may take. A server that is busy (503)
    or not there is asked again, `retries` times with growing pauses. Errors are ServerError, one line each.
    """

    def __init__(self, url: str = ADDRESS, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def encode(self, audio: Content, *, model: str | None = None, n_q: int | None = None) -> CodecFile:
        """Codes of an audio file of any kind, by the server's first model or another, of all codebooks or fewer."""
        return CodecFile.from_bytes(self._ask(_encode(audio, model, n_q)).content, "the answer")

    def decode(self, codes: CodecFile | Content, *, format: str = "wav") -> bytes:
        """An audio file (wav, flac or opus) of codes, or of a `.xyc` file."""
        return self._ask(_decode(codes, format)).content

    def roundtrip(
        self, audio: Content, *, format: str = "wav", model: str | None = None, n_q: int | None = None
    ) -> bytes:
        """An audio file of what is heard of another after the codec."""
        return self._ask(_roundtrip(audio, format, model, n_q)).content

    def models(self) -> list[dict[str, Any]]:
        """The models that are loaded: names, rates, sizes."""
        return self._ask(_Asked("GET", "/v1/models")).json()  # type: ignore[no-any-return]

    def stream_encode(
        self,
        blocks: Iterable[Any],
        *,
        model: str | None = None,
        n_q: int | None = None,
        windows: "Windows | None" = None,
    ) -> Iterator[NDArray[np.uint16]]:
        """Codes (n_q, L), as soon as they are known, of blocks (T,) of int16 or floats at the model's input rate."""
        return self._stream(_Conversation("encode", {"model": model, "n_q": n_q}, windows), blocks, None)

    def stream_decode(
        self, blocks: Iterable[Any], *, model: str | None = None, n_q: int | None = None,
        windows: "Windows | None" = None, num_samples: int | None = None,
    ) -> Iterator[NDArray[np.int16]]:  # fmt: skip
        """Audio (T,) int16, as soon as it is known, of blocks of codes (n_q, L); `num_samples` cuts its end."""
        return self._stream(_Conversation("decode", {"model": model, "n_q": n_q}, windows), blocks, num_samples)

    def _ask(self, asked: _Asked) -> httpx.Response:
        for attempt in range(self.retries + 1):
            response = None
            try:
                response = self._http.request(asked.method, asked.path, **asked.content)
            except httpx.TransportError as error:
                if attempt == self.retries or isinstance(error, httpx.ReadTimeout):
                    raise _unreachable(self.url, error) from None
            if response is not None and (response.status_code != 503 or attempt == self.retries):
                return _checked(response)
            time.sleep(self._pause(attempt, response))
        raise AssertionError

    def _stream(self, talk: _Conversation, blocks: Iterable[Any], num_samples: int | None) -> Iterator[NDArray[Any]]:
        try:
            with connect_sync(**self._socket) as socket:
                socket.send(talk.start)
                talk.take(socket.recv(timeout=self._timeout))
                for block in blocks:
                    socket.send(talk.packed(block))
                    while (data := self._there(socket, talk)) is not None:
                        yield data
                socket.send(talk.end(num_samples))
                while not talk.ended:
                    if (data := talk.take(socket.recv(timeout=self._timeout))) is not None:
                        yield data
        except ConnectionClosed as error:
            raise _closed(self.url, error) from None
        except InvalidStatus as error:
            raise _refused(self.url, error) from None
        except (OSError, WebSocketException) as error:
            raise _unreachable(self.url, error) from None

    @staticmethod
    def _there(socket: Any, talk: _Conversation) -> NDArray[Any] | None:
        """Data that has come already; None where there is none."""
        try:
            return talk.take(socket.recv(timeout=0))
        except TimeoutError:
            return None


class AsyncClient(_Shared):
    """A server's client for programs on asyncio; an asynchronous context manager, else as `Client`."""

    def __init__(self, url: str = ADDRESS, **options: Any) -> None:
        super().__init__(url, **options)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(**self._options, limits=limits)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def encode(self, audio: Content, *, model: str | None = None, n_q: int | None = None) -> CodecFile:
        """Codes of an audio file of any kind."""
        return CodecFile.from_bytes((await self._ask(_encode(audio, model, n_q))).content, "the answer")

    async def decode(self, codes: CodecFile | Content, *, format: str = "wav") -> bytes:
        """An audio file (wav, flac or opus) of codes, or of a `.xyc` file."""
        return (await self._ask(_decode(codes, format))).content

    async def roundtrip(
        self, audio: Content, *, format: str = "wav", model: str | None = None, n_q: int | None = None
    ) -> bytes:
        """An audio file of what is heard of another after the codec."""
        return (await self._ask(_roundtrip(audio, format, model, n_q))).content

    async def models(self) -> list[dict[str, Any]]:
        """The models that are loaded: names, rates, sizes."""
        return (await self._ask(_Asked("GET", "/v1/models"))).json()  # type: ignore[no-any-return]

    def stream_encode(
        self, blocks: AsyncIterable[Any], *, model: str | None = None, n_q: int | None = None,
        windows: "Windows | None" = None,
    ) -> AsyncIterator[NDArray[np.uint16]]:  # fmt: skip
        """Codes (n_q, L), as soon as they are known, of blocks (T,) of int16 or floats at the model's input rate."""
        return self._stream(_Conversation("encode", {"model": model, "n_q": n_q}, windows), blocks, None)

    def stream_decode(
        self, blocks: AsyncIterable[Any], *, model: str | None = None, n_q: int | None = None,
        windows: "Windows | None" = None, num_samples: int | None = None,
    ) -> AsyncIterator[NDArray[np.int16]]:  # fmt: skip
        """Audio (T,) int16, as soon as it is known, of blocks of codes (n_q, L); `num_samples` cuts its end."""
        return self._stream(_Conversation("decode", {"model": model, "n_q": n_q}, windows), blocks, num_samples)

    async def _ask(self, asked: _Asked) -> httpx.Response:
        for attempt in range(self.retries + 1):
            response = None
            try:
                response = await self._http.request(asked.method, asked.path, **asked.content)
            except httpx.TransportError as error:
                if attempt == self.retries or isinstance(error, httpx.ReadTimeout):
                    raise _unreachable(self.url, error) from None
            if response is not None and (response.status_code != 503 or attempt == self.retries):
                return _checked(response)
            await asyncio.sleep(self._pause(attempt, response))
        raise AssertionError

    async def _stream(
        self, talk: _Conversation, blocks: AsyncIterable[Any], num_samples: int | None
    ) -> AsyncIterator[NDArray[Any]]:
        failure: Exception | None = None

        async def send_all() -> None:
            nonlocal failure
            try:
                async for block in blocks:
                    await socket.send(talk.packed(block))
                await socket.send(talk.end(num_samples))
            except Exception as error:
                failure = error
                await socket.close()  # or the other side would be waited for

        try:
            async with connect_async(**self._socket) as socket:
                await socket.send(talk.start)
                talk.take(await asyncio.wait_for(socket.recv(), self._timeout))
                sending = asyncio.create_task(send_all())
                try:
                    while not talk.ended:
                        if (data := talk.take(await asyncio.wait_for(socket.recv(), self._timeout))) is not None:
                            yield data
                except ConnectionClosed as error:
                    raise failure or error from None
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except ConnectionClosed as error:
            raise _closed(self.url, error) from None
        except InvalidStatus as error:
            raise _refused(self.url, error) from None
        except (OSError, WebSocketException) as error:
            raise _unreachable(self.url, error) from None
