"""The connections of callers: aiohttp's server, with bounds on what one of them can make it do.

A connection waits for a head, which has a deadline and a size; then its request is answered. What
cannot be read as a request is answered in our own form and leaves nothing of its bytes behind.
"""

import asyncio
import contextlib
import functools
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import _ErrInfo

from service.accounts import Caller
from service.api.dialects import dialect_of
from service.api.middleware import finish_headers, observed
from service.api.refusals import record_refusal
from service.api.requests import Request, known_routes
from service.api.response_headers import UnsignedResponse, let_origin_read
from service.api.stalls import UnreadWatch, ask_if_there, has_tcp_info, is_reset
from service.api.state import SETTINGS
from service.api.strangers import Strangers
from service.api.wire import error_response
from service.errors import ClientError, HeadTooLarge, RequestTimeout, ServiceError
from service.ids import uuid7
from service.settings import Settings
from service.shares import Share, Shares
from service.telemetry import metrics

log = structlog.get_logger()

KEEPALIVE_S: Final = 75.0
"""Longer than the edge's 60 s, so that the edge is the one that closes idle connections."""
HANDLER_END_S: Final = 1.0
READ_BUFFER_BYTES: Final = 64 * 1024
"""How much of a body waits in a connection before its reading is paused, or twice that."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""How much of an answer the system keeps for a caller that does not read, or twice that."""
HEAD_FACTOR: Final = 2
"""How many times ``HEAD_MAX_BYTES`` a whole head may have: edges add headers of their own."""
REQUEST_LINE: Final = re.compile(rb"[A-Za-z]+ ([^ ?\r\n]{1,200})")
DRAIN_S: Final = 5.0
MAX_DRAINED_BYTES: Final = 64 * 1024 * 1024
"""How long, and how much of, a body that nobody wants is read after its answer. Most clients look
for an answer only when they have sent all."""
FIRST_LOOK_S: Final = 0.02
"""The delay before the first check that a client answered a probe. Each further delay is twice as
long."""
MAX_LOOK_S: Final = 1.0
CONNECTIONS_PER_REQUEST: Final = 4
"""How many connections there may be with a key for each request that may be under way."""


def handler_arguments(settings: Settings) -> Mapping[str, Any]:
    """What holds for a connection, whoever makes the server."""
    return {
        # Bodies are unpacked where they are read, or not at all.
        "auto_decompress": False,
        "read_bufsize": READ_BUFFER_BYTES,
        "max_line_size": settings.head_max_bytes,
        "max_field_size": settings.head_max_bytes,
    }


class _Head:
    """The head that a connection waits for, of which some has come."""

    __slots__ = ("size", "start", "timer")

    def __init__(self) -> None:
        self.size = 0
        self.start = b""
        self.timer: asyncio.TimerHandle | None = None

    def clear(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.size, self.start = 0, b""


class CallerProtocol(web.RequestHandler):
    """A connection."""

    __slots__ = (
        "_failed_at_path",
        "_head",
        "_is_half_closed",
        "_known",
        "_look_timer",
        "_server",
        "_unread",
        "_was_paused",
        "is_known",
    )

    def __init__(self, server: "CallerServer", **arguments: Any) -> None:
        super().__init__(server, **arguments)
        self._server = server
        self._head = _Head()
        self._unread: UnreadWatch | None = None
        self._known: Share | None = None
        self.is_known = False
        """Whether a request of it has shown a key, and it counts among those of the caller."""
        self._failed_at_path: str | None = None
        """Set once it has sent what is no request: it sends nothing sound any more."""
        self._is_half_closed = False
        """Whether its client sends no more."""
        self._look_timer: asyncio.TimerHandle | None = None
        self._was_paused = False
        """Whether its reading was paused once. Since then the parser may keep bytes back."""

    # What the connection is.

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of one's head."""
        return self._waiter is not None and not self._waiter.done()

    def end(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()

    def show_key(self, caller: Caller) -> None:
        """One of its requests has the key of this caller: it counts among their connections, if
        they may have one more."""
        key_id = caller.api_key_id or caller.organization_id
        share = Share(self._server.known, caller.organization_id, key_id)
        if share.grow(1):
            self._known, self.is_known = share, True
            self._server.strangers.remove(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what waits in the connection."""
        super().connection_made(transport)
        assert self.transport is not None  # noqa: S101 - for the type checker
        self._unread = UnreadWatch(
            self._loop, self.transport, self._server.settings.write_timeout_s
        )
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        peer = self.peername
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        self._server.strangers.add(self, address)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything that is kept for it."""
        self._head.clear()
        if self._unread is not None:
            self._unread.stop()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._server.strangers.remove(self)
        if self._known is not None:
            self._known.close()
        super().connection_lost(exc)

    # What it sends.

    def data_received(self, data: bytes) -> None:
        """Read on, as long as what comes can be a request."""
        if self._failed_at_path is not None:
            self._drop(data)
            return
        super().data_received(data)
        if self._messages:
            if isinstance(self._messages[-1][0], _ErrInfo):
                self._fail(data)
                return
        elif data and self.is_idle:
            self._wait_for_head(data)
            return
        if self._head.size:
            self._head.clear()

    def pause_reading(self) -> None:
        """A body arrives faster than it is read."""
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading. aiohttp asks for it with each body, paused or not, and would run the
        parser and resume the transport each time."""
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _wait_for_head(self, data: bytes) -> None:
        head, settings = self._head, self._server.settings
        if not head.size:
            head.start = data[:256]
            head.timer = self._loop.call_later(settings.head_timeout_s, self._head_is_late)
        head.size += len(data)
        if head.size > HEAD_FACTOR * settings.head_max_bytes:
            self._refuse_head(_head_too_large(settings))

    def _head_is_late(self) -> None:
        timeout_s = self._server.settings.head_timeout_s
        self._refuse_head(RequestTimeout(f"The headers did not arrive within {timeout_s:g} s."))

    def _refuse_head(self, error: ServiceError) -> None:
        """Answer the request though its head is not there."""
        if self.is_idle and self._waiter is not None:
            self._messages.append((_ErrInfo(error.status, error, ""), EMPTY_PAYLOAD))
            self._waiter.set_result(None)
            self._fail(b"")

    def _fail(self, data: bytes) -> None:
        """The last that came is no request: where the next would begin nobody knows."""
        match = REQUEST_LINE.match(self._head.start or data)
        self._failed_at_path = match[1].decode("latin-1") if match else ""
        self._head.clear()
        info = self._messages[-1][0]
        assert isinstance(info, _ErrInfo)  # noqa: S101 - for the type checker
        error = self._error_of(info)
        log.debug("malformed request", code=error.code, kind=type(info.exc).__name__)
        metrics.note(metrics.MALFORMED, 1, error.code)
        request = self._current_request
        if request is not None and not request.content.is_eof():
            # It is the body of this one that cannot be read; it is the one that is answered.
            self._messages.pop()
            if request.content.exception() is None:
                request.content.set_exception(web.RequestPayloadError("malformed body"))
            self.close()

    def _error_of(self, info: _ErrInfo) -> ServiceError:
        if isinstance(info.exc, ServiceError):
            return info.exc
        if isinstance(info.exc, LineTooLong):
            return _head_too_large(self._server.settings)
        return ClientError("This is not a request that HTTP/1.1 has.", code="malformed_request")

    def _make_error_handler(
        self, err_info: _ErrInfo
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """What answers in place of a request that could not be read."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, Request)  # noqa: S101 - the server makes them
            request.request_id = uuid7().hex
            request.dialect = dialect_of(self._failed_at_path or "")
            failure = self._error_of(err_info)
            record_refusal(request, failure, "other", "none", is_http=False)
            error = error_response(failure, request)
            response = UnsignedResponse(body=error.body, status=error.status, headers=error.headers)
            response.force_close()
            response.headers["Connection"] = "close"
            await finish_headers(request, response)
            if origins := self._server.settings.cors_origins:
                let_origin_read(request, response, origins)
            return response

        return answer

    def _drop(self, data: bytes) -> None:
        self._head.size += len(data)
        if self._head.size > MAX_DRAINED_BYTES:
            self.end()

    # What it is sent.

    def pause_writing(self) -> None:
        """The caller reads more slowly than is written: see whether they read at all."""
        super().pause_writing()
        if self._unread is not None:
            self._unread.start()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, and read what is left of the body so that the client gets to see it."""
        response, is_lost = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if is_lost or transport is None:
            return response, is_lost
        if transport.get_write_buffer_size() and self._unread is not None:
            self._unread.start()
        if self._failed_at_path is not None and not self._messages:
            if not self._is_half_closed:
                await self._linger(transport)
        elif not request.content.is_eof():
            await _drain(request.content)
        if self._is_half_closed and not self._messages:
            self.close()
        return response, is_lost

    async def _linger(self, transport: asyncio.Transport) -> None:
        """Drop what still comes until the client ends the connection: it reads the answer last."""
        with contextlib.suppress(OSError, RuntimeError):
            transport.write_eof()
        # The end of the connection cancels this.
        await asyncio.sleep(DRAIN_S)

    # How it ends.

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. One that has closed the connection looks like one that waits
        for its answer, until something is sent."""
        request = self._current_request
        is_cut = request is not None and not request.content.is_eof()
        if self.is_idle or is_cut or not has_tcp_info():
            return False
        self._is_half_closed = True
        if self.transport is not None:
            ask_if_there(self.transport)
        self._look(FIRST_LOOK_S)
        return True

    def _look(self, wait_s: float) -> None:
        """End the connection once it is known that nobody is there."""
        if self.transport is None:
            return
        if is_reset(self.transport):
            self.transport.abort()
            return
        wait_s = min(wait_s, MAX_LOOK_S)
        self._look_timer = self._loop.call_later(wait_s, self._look, 2 * wait_s)


def _head_too_large(settings: Settings) -> HeadTooLarge:
    return HeadTooLarge(
        f"The URL and each header may have {settings.head_max_bytes} bytes, and all of them"
        f" together {HEAD_FACTOR * settings.head_max_bytes}."
    )


async def _drain(content: StreamReader) -> None:
    ends_at, size = time.monotonic() + DRAIN_S, 0
    # Should it not come, or have no end, aiohttp closes the connection.
    with contextlib.suppress(TimeoutError, web.RequestPayloadError):
        while not content.is_eof() and size < MAX_DRAINED_BYTES:
            async with asyncio.timeout(ends_at - time.monotonic()):
                size += len(await content.readany())


class CallerServer(web.Server):
    """Makes a :class:`CallerProtocol` of each connection, and knows all of them."""

    def __init__(self, settings: Settings, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.settings = settings
        self.strangers = Strangers(settings.unknown_connections)
        self.known = Shares(CONNECTIONS_PER_REQUEST * settings.open_requests)

    def __call__(self) -> CallerProtocol:
        return CallerProtocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application behind a :class:`CallerServer`."""

    async def _make_server(self) -> CallerServer:
        plain: Any = await super()._make_server()
        return CallerServer(
            self.app[SETTINGS],
            observed(self.app, plain.request_handler),
            request_factory=functools.partial(Request, self.app, known_routes(self.app)),
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
