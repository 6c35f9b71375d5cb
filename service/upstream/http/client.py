"""The client: sends one request and returns its response."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from service.upstream.http.connection import Connection, Limits
from service.upstream.http.dial import Dialer, Origin
from service.upstream.http.errors import upload_failed
from service.upstream.http.head import InvalidRequestError, write_head
from service.upstream.http.pool import Pool
from service.upstream.http.response import Response
from service.upstream.http.upload import StreamedBody

R = TypeVar("R", bound=Response)

BODILESS_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
REPEATABLE_METHODS: Final = frozenset({"GET", "HEAD"})
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Departure(msgspec.Struct, eq=False):
    """Records whether any byte of a request was handed to a connection."""

    has_left: bool = False


class _Base(NamedTuple):
    """What all requests below one base URL share."""

    pool: Pool
    path: str
    host_lines: str


class HttpClient(Generic[R]):
    """Sends requests over kept connections and returns their responses as ``response_class``."""

    def __init__(
        self,
        response_class: type[R],
        limits: Limits,
        headers: Mapping[str, str],
        *,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._response_class = response_class
        self._limits = limits
        self._head_timeout_s = limits.connect_s + limits.silence_s
        """How long to wait for the head of a response. The deadline for silence would not end the
        wait, because Venice may send any number of 1xx responses first."""
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._dialer = Dialer(context)
        self._bases: dict[str, _Base] = {}
        self._pools: dict[Origin, Pool] = {}
        self._create_future = asyncio.get_running_loop().create_future

    async def send(
        self,
        method: str,
        base_url: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | StreamedBody,
        departure: Departure | None = None,
    ) -> R:
        """Send a request and return its response once the head has arrived.

        ``departure`` notes that the request was sent, and says that it may cost something. A GET or
        HEAD without one is sent once more when the server has closed a kept connection meanwhile.

        :raises InvalidRequestError: when a part of it cannot be sent. Nothing was sent.
        :raises UpstreamUnreachable: when there is no connection. Nothing was sent.
        :raises UpstreamError: when no valid head arrives in time.
        """
        base = self._bases.get(base_url) or self._open_base(base_url)
        framing, head_timeout_s = "", self._head_timeout_s
        if isinstance(body, StreamedBody):
            framing, head_timeout_s = body.framing, head_timeout_s + self._limits.upload_s
        elif body or method not in BODILESS_METHODS:
            framing = f"Content-Length: {len(body)}\r\n"
        head = write_head(method, base.path + path, base.host_lines, headers, framing)
        may_repeat = departure is None and not body and method in REPEATABLE_METHODS
        while True:
            kept = base.pool.take()
            connection = kept or await base.pool.connect()
            response = self._response_class(
                connection, self._create_future(), has_body=method != "HEAD"
            )
            if departure is not None:
                departure.has_left = True
            try:
                connection.send(response, head, body, head_timeout_s)
                if isinstance(body, StreamedBody):
                    await self._send_body(connection, response)
                await response.waiter
            except BaseException:
                response.close()
                raise
            if (error := response.error) is None or response.is_readable:
                return response
            if kept is None or not may_repeat or not response.is_untouched:
                raise error
            may_repeat = False

    async def _send_body(self, connection: Connection, response: Response) -> None:
        """Send a streamed body until it ends, or until a response makes it useless.

        :raises UpstreamCut: when the body fails.
        """
        sending = asyncio.create_task(connection.send_body())
        try:
            await asyncio.wait((sending, response.waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not sending.done():
                sending.cancel()
                await asyncio.wait((sending,))
        error = None if sending.cancelled() else sending.exception()
        if error is not None and not response.waiter.done():
            raise upload_failed() from error

    def _open_base(self, base_url: str) -> _Base:
        """Parse a base URL, once.

        :raises InvalidRequestError: when it is not the URL of an HTTP server.
        """
        try:
            url = urlsplit(base_url)
            port = url.port or DEFAULT_PORTS[url.scheme]
        except (ValueError, KeyError):
            raise InvalidRequestError("The base URL is not valid.") from None
        if not url.hostname or not url.netloc.isascii() or "@" in url.netloc:
            raise InvalidRequestError("The base URL names no host.")
        origin = Origin(url.hostname, port, url.scheme == "https")
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._dialer, self._limits)
        base = _Base(pool, url.path, f"Host: {url.netloc}\r\n{self._headers}")
        self._bases[base_url] = base
        return base

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.close()
        self._dialer.close()
