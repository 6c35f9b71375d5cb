"""The connections of callers: aiohttp's server, with bounds on what one of them can make it do."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from aiohttp import StreamReader, web

from service import metrics
from service.api.state import SETTINGS
from service.settings import Settings

log = structlog.get_logger()

KEEPALIVE_S: Final = 75.0
"""Longer than the edge's 60 s, so that the edge is the one that closes idle connections."""
HANDLER_END_S: Final = 1.0
READ_BUFFER_BYTES: Final = 64 * 1024
"""How much of a body waits in a connection before its reading is paused, or twice that."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""How much of an answer the system keeps for a caller that does not read, or twice that."""
DRAIN_S: Final = 5.0
MAX_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""How long, and how much of, a body that nobody wants is read after its answer. Most clients look
for an answer only when they have sent all."""
TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
BYTES_ACKED: Final = struct.Struct("120xQ")
"""Where ``tcpi_bytes_acked`` stands in Linux's ``struct tcp_info``."""
STALL_CHECKS: Final = 4
"""How often, within the time that a caller may take nothing, it is looked whether they did."""

HANDLER_ARGUMENTS: Final[Mapping[str, Any]] = {
    # Bodies are unpacked where they are read, or not at all.
    "auto_decompress": False,
    "read_bufsize": READ_BUFFER_BYTES,
}
"""Those of a connection, whoever makes the server."""


class CallerProtocol(web.RequestHandler):
    """A connection. A caller who takes nothing of an answer for ``WRITE_TIMEOUT_SECONDS`` is taken
    for one who hung up."""

    __slots__ = ("_settings", "_stall_count", "_stall_timer", "_taken_bytes")

    def __init__(self, server: "CallerServer", settings: Settings, **arguments: Any) -> None:
        super().__init__(server, **arguments)
        self._settings = settings
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stall_count = 0
        self._taken_bytes: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what waits in the connection."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Watch it no more."""
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller reads more slowly than is written: see whether they read at all."""
        super().pause_writing()
        self._watch_unsent()

    def _watch_unsent(self) -> None:
        if self._stall_timer is None:
            self._stall_count, self._taken_bytes = 0, _taken(self.transport)
            self._check_later()

    def _check_later(self) -> None:
        wait_s = self._settings.write_timeout_s / STALL_CHECKS
        self._stall_timer = self._loop.call_later(wait_s, self._check_unsent)

    def _check_unsent(self) -> None:
        before, self._taken_bytes = self._taken_bytes, _taken(self.transport)
        if self.transport is None or not self.transport.get_write_buffer_size():
            self._stop_watching()
            return
        has_taken = self._taken_bytes is None or self._taken_bytes != before
        self._stall_count = 0 if has_taken else self._stall_count + 1
        if self._stall_count >= STALL_CHECKS:
            metrics.note(metrics.TURNED_AWAY, 1, "unread_answer")
            log.info("caller reads nothing", timeout_s=self._settings.write_timeout_s)
            self.transport.abort()
            return
        self._check_later()

    def _stop_watching(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, and read what is left of the body so that the client gets to see it."""
        response, is_lost = await super().finish_response(request, resp, start_time)
        if not is_lost:
            if self.transport is not None and self.transport.get_write_buffer_size():
                self._watch_unsent()
            if not request.content.is_eof():
                await _drain(request.content)
        return response, is_lost


def _taken(transport: asyncio.Transport | None) -> int | None:
    """How many bytes the other side has acknowledged since the connection began; None where the
    system does not tell."""
    if transport is None or TCP_INFO is None:
        return None
    try:
        info = transport.get_extra_info("socket").getsockopt(
            socket.IPPROTO_TCP, TCP_INFO, BYTES_ACKED.size
        )
        return int(BYTES_ACKED.unpack(info)[0])
    except (OSError, struct.error):
        return None


async def _drain(content: StreamReader) -> None:
    ends_at, size = time.monotonic() + DRAIN_S, 0
    # Should it not come, or have no end, aiohttp closes the connection.
    with contextlib.suppress(TimeoutError, web.RequestPayloadError):
        while not content.is_eof() and size < MAX_DRAINED_BYTES:
            async with asyncio.timeout(ends_at - time.monotonic()):
                size += len(await content.readany())


class CallerServer(web.Server):
    """Makes a :class:`CallerProtocol` of each connection."""

    def __init__(self, settings: Settings, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._settings = settings

    def __call__(self) -> CallerProtocol:
        return CallerProtocol(self, self._settings, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application behind a :class:`CallerServer`."""

    async def _make_server(self) -> CallerServer:
        plain: Any = await super()._make_server()
        return CallerServer(
            self.app[SETTINGS],
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **plain._kwargs,  # noqa: SLF001 - aiohttp has no public way to choose the protocol
        )


def make_runner(app: web.Application) -> Runner:
    """What serves the application, in every process and every test."""
    return Runner(
        app,
        handle_signals=False,
        access_log=None,
        # A hang-up must reach the handler at once, not at its next write.
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=HANDLER_END_S,
        # The drain is ours.
        lingering_time=0.0,
    )
