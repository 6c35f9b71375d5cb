"""The connections of callers: aiohttp's server, with bounds on what one of them can make it do."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import StreamReader, web

KEEPALIVE_S: Final = 75.0
"""Longer than the edge's 60 s, so that the edge is the one that closes idle connections."""
HANDLER_END_S: Final = 1.0
READ_BUFFER_BYTES: Final = 64 * 1024
"""How much of a body waits in a connection before its reading is paused, or twice that."""
DRAIN_S: Final = 5.0
MAX_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""How long, and how much of, a body that nobody wants is read after its answer. Most clients look
for an answer only when they have sent all."""


HANDLER_ARGUMENTS: Final[Mapping[str, Any]] = {
    # Bodies are unpacked where they are read, or not at all.
    "auto_decompress": False,
    "read_bufsize": READ_BUFFER_BYTES,
}
"""Those of a connection, whoever makes the server."""


class CallerProtocol(web.RequestHandler):
    """A connection."""

    __slots__ = ()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, and read what is left of the body so that the client gets to see it."""
        response, is_lost = await super().finish_response(request, resp, start_time)
        if not is_lost and not request.content.is_eof():
            await _drain(request.content)
        return response, is_lost


async def _drain(content: StreamReader) -> None:
    ends_at, size = time.monotonic() + DRAIN_S, 0
    try:
        while not content.is_eof() and size < MAX_DRAINED_BYTES:
            async with asyncio.timeout(ends_at - time.monotonic()):
                size += len(await content.readany())
    except (TimeoutError, web.RequestPayloadError):
        # It did not come, or has no end: aiohttp closes the connection.
        pass


class CallerServer(web.Server):
    """Makes a :class:`CallerProtocol` of each connection."""

    def __call__(self) -> CallerProtocol:
        return CallerProtocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application behind a :class:`CallerServer`."""

    async def _make_server(self) -> CallerServer:
        plain: Any = await super()._make_server()
        return CallerServer(
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
