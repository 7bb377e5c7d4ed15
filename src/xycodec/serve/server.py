"""The server's process: a socket, uvicorn, and connections that have to speak in time."""

import asyncio
import logging
import socket
import sys
from contextlib import ExitStack, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from xycodec.errors import XycodecError
from xycodec.serve.settings import Limits

_LOOPBACK = ("127.", "::1", "localhost")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises XycodecError where the port is taken or the host is not here."""
    with ExitStack() as undone:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            listening = undone.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(1024)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise XycodecError(f"{host}:{port}: cannot listen there ({why}): choose another --port or --host") from None
        undone.pop_all()
    return listening


def is_local(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    return host.startswith(_LOOPBACK)


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """The server of an application. Told to stop, it lets requests in progress end within `drain_s` seconds."""
    config = uvicorn.Config(
        app,
        http=_protocol(limits.header_s),
        ws="websockets-sansio",
        loop="asyncio",
        lifespan="on",
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=round(limits.drain_s),
        ws_max_size=1 << 20,
        # A stream that waits for its turn reads nothing, pings neither; `Limits.idle_s` finds those that are gone.
        ws_ping_interval=None,
    )
    return _Server(config)


def serve(app: FastAPI, listening: socket.socket, limits: Limits) -> None:
    """Serve until a signal says stop (SIGINT, SIGTERM). Raises XycodecError where the server cannot start."""
    server = make_server(app, limits)
    with suppress(KeyboardInterrupt):  # raised again when all has ended
        server.run(sockets=[listening])
    if not server.started:
        raise XycodecError("the server could not start: see the lines above")


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self.config.app.state.service  # type: ignore[union-attr]
        service.ready = False
        service.stopping.set()
        await super().shutdown(sockets)


def _protocol(header_s: float) -> type[H11Protocol]:
    """The protocol of connections that are closed where a request's headers do not come within `header_s`."""

    class Impatient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _upgraded = False  # a stream has other limits

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def handle_events(self) -> None:
            super().handle_events()
            if self._upgraded or (self.cycle is not None and not self.cycle.response_complete):
                self._stop()
            else:
                self._wait()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._upgraded = True
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(header_s, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient


def announce(app: FastAPI, url: str, *, local: bool, quiet: bool) -> None:
    """Say where the server is, and warn where more than this machine reaches it."""
    service = app.state.service
    if not local:
        guarded = "its token is needed" if service.settings.token else "anyone who reaches it may use it (--token)"
        print(f"warning: {url} is open to other machines; {guarded}", file=sys.stderr)
    if not quiet:
        print(f"{url}  page: /, API: /docs, streams: /v1/stream; Ctrl-C stops it", file=sys.stderr)
