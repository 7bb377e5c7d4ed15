"""The gate of a server: who may ask, how much at once, how large and how slowly (ASGI middleware)."""

import asyncio
import base64
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from xycodec.serve.metrics import Metrics
from xycodec.serve.problems import MEDIA_TYPE, Problem, busy
from xycodec.serve.settings import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/healthz", "/readyz")
_API, _PAGE = "/v1/", "/page/"
_ROUTES = ("/v1/encode", "/v1/decode", "/v1/roundtrip", "/v1/models")


class Guard:
    """Refuses what a server does not take on before `app` sees it.

    Everything but health checks needs the `token`, as a bearer's or as the password that a browser asks for, and
    must not come from another site's page. Requests to the API that have a body are counted and limited in size and
    time; what is done for a client that has gone away is stopped.
    """

    def __init__(self, app: App, limits: Limits, token: str | None, metrics: Metrics, stopping: asyncio.Event) -> None:
        self._app, self._limits, self._token, self._metrics = app, limits, token, metrics
        self._stopping = stopping
        self._busy: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a connection on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        problem = None if path in _OPEN else self._stranger(headers)
        if scope["type"] == "websocket":
            if problem is None:
                await self._app(scope, receive, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": problem.detail})
            return
        start, answer = time.perf_counter(), _Answer(send)
        try:
            if problem is not None:
                raise problem
            if scope["method"] == "POST" and path.startswith(_API):
                await self._admitted(scope, headers, receive, answer)
            elif path.startswith(_PAGE):
                await self._until_stopped(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Problem as refusal:
            if not answer.begun:
                await refuse(refusal, answer)
        finally:
            if path.startswith(_API):
                route = path if path in _ROUTES else "other"  # strangers must not make up names that are kept
                self._metrics.requests.labels(route, str(answer.status or 499)).inc()
                self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)

    def _stranger(self, headers: Headers) -> Problem | None:
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return Problem(403, "pages of other sites may not use this server: call it from a program, or its own page")
        if self._token is None or hmac.compare_digest(_secret(headers), self._token.encode()):
            return None
        return Problem(401, "this server wants its token: send Authorization: Bearer TOKEN", WWW_Authenticate="Basic")

    async def _admitted(self, scope: Scope, headers: Headers, receive: Receive, send: "_Answer") -> None:
        limits, client = self._limits, (scope.get("client") or ("unknown",))[0]
        most = limits.upload_mb * 1_000_000
        if (length := headers.get("content-length")) is not None and (not length.isdigit() or int(length) > most):
            raise _too_large(limits)
        if self._busy.total() >= limits.requests:
            raise busy(f"{limits.requests} requests are in progress already: try again in a second")
        if self._busy[client] >= limits.per_client:
            raise Problem(429, f"{limits.per_client} requests of yours are in progress: wait for one", Retry_After="1")
        self._busy[client] += 1
        self._metrics.in_progress.inc()
        try:
            await self._timed(scope, _Body(receive, most, limits), send)
        finally:
            self._metrics.in_progress.dec()
            self._busy[client] -= 1
            self._busy += Counter()  # drops those that have none

    async def _until_stopped(self, scope: Scope, receive: Receive, send: "_Answer") -> None:
        """Run the app, but no longer than the server: an open page listens for as long as it can."""
        work = asyncio.ensure_future(self._app(scope, receive, send))
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    async def _timed(self, scope: Scope, body: "_Body", send: "_Answer") -> None:
        """Run the app until it ends, its time is over, or the client has gone."""
        work = asyncio.ensure_future(self._app(scope, body.receive, send))
        gone = asyncio.ensure_future(body.gone())
        try:
            await asyncio.wait({work, gone}, timeout=self._limits.request_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif not gone.done():
                raise busy(f"the request took more than {self._limits.request_s:g} s: send less at once, or try again")
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


class _Answer:
    """Passes a response on, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    @property
    def begun(self) -> bool:
        return self.status is not None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class _Body:
    """A request's body on its way, as far as it is small and fast enough; and the word that its client has gone."""

    def __init__(self, receive: Receive, most: int, limits: Limits) -> None:
        self._receive, self._most, self._limits = receive, most, limits
        self._deadline = time.perf_counter() + limits.upload_time_s
        self._size, self._whole = 0, asyncio.Event()

    async def receive(self) -> Message:
        if self._whole.is_set():
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - time.perf_counter()))
        except TimeoutError:
            raise Problem(
                408, f"the body did not come within {self._limits.upload_time_s:g} s", Connection="close"
            ) from None
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._limits)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._whole.set()
        return message

    async def gone(self) -> None:
        """Return when the client has gone after it sent all of the body."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _too_large(limits: Limits) -> Problem:
    return Problem(413, f"the body is larger than {limits.upload_mb} MB: send the audio in parts", Connection="close")


def _secret(headers: Headers) -> bytes:
    """The token of a request: a bearer's, or the password of any user."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""


async def refuse(problem: Problem, send: Send) -> None:
    """Answer with a problem."""
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(problem.body)), **problem.headers}
    coded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": coded})
    await send({"type": "http.response.body", "body": problem.body})
