"""One response as it arrives over a connection."""

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

from service.errors import UpstreamCut, UpstreamError
from service.upstream.http.errors import InvalidResponse
from service.upstream.http.head import Headers

if TYPE_CHECKING:
    from service.upstream.http.connection import Connection

READ_BUFFER_BYTES: Final = 64 * 1024
"""The unread bytes at which a connection stops to read. One read may bring up to 256 KB at once."""
CHUNK_BYTES: Final = 16 * 1024
"""The most bytes of a response that are processed before other tasks get a turn."""


class Response:
    """The response to one request. The connection fills it, and one task reads it.

    The connection does not wait for the reader: once ``is_complete``, it may serve another request.
    """

    has_body = True
    """False for a response to HEAD."""
    has_begun = False
    """Whether a part of the head has arrived."""
    status = 0
    """Zero until the head has arrived."""
    raw_headers: Headers
    """Every header as Venice sent it, of any case. There with the status."""
    unread_bytes = 0
    is_last = False
    """Whether the connection ends with this response."""
    ends_with_connection = False
    """Whether the end of the connection is the end of the body."""
    is_complete = False
    """Whether the whole body has arrived."""
    error: UpstreamError | None = None
    """Why the rest of the response will not arrive."""

    def __init__(self, connection: "Connection", loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self.unread: deque[bytes] = deque()
        self.waiter: asyncio.Future[None] = loop.create_future()
        """Done once something has changed for the reader."""

    def fail(self, error: UpstreamError, *, drops_unread: bool) -> None:
        """End the response with an error, which the reader gets after the unread bytes."""
        self.error = error
        if drops_unread:
            self.unread.clear()
            self.unread_bytes = 0
        self.wake()

    @property
    def is_readable(self) -> bool:
        """Whether there is a head, even if the body has failed since."""
        return self.status > 0 and not isinstance(self.error, InvalidResponse)

    @property
    def is_untouched(self) -> bool:
        """Whether the connection ended before any byte of the response."""
        return isinstance(self.error, UpstreamCut) and not (self.has_begun or self.status)

    def wake(self) -> None:
        """Let the reader go on."""
        if not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until something has changed: bytes have arrived, or the end, or an error."""
        waiter = self.waiter
        if waiter.done():
            self.waiter = waiter = waiter.get_loop().create_future()
        await waiter

    def take(self, max_bytes: int = sys.maxsize) -> bytes:
        """Return up to ``max_bytes`` of the unread bytes; none when there are none now.

        :raises UpstreamError: when the response has failed and nothing is left to read.
        """
        unread = self.unread
        if self.unread_bytes <= max_bytes:
            if not unread:
                if self.error is not None:
                    raise self.error
                return b""
            chunk = unread[0] if len(unread) == 1 else b"".join(unread)
            unread.clear()
        else:
            chunk = self._take_part(max_bytes)
        self.unread_bytes -= len(chunk)
        if not self.is_complete and self._connection.is_paused:
            self._resume()
        return chunk

    def _take_part(self, max_bytes: int) -> bytes:
        unread, parts, size = self.unread, [], 0
        while size + len(unread[0]) <= max_bytes:
            parts.append(unread.popleft())
            size += len(parts[-1])
        if not parts:
            first = unread[0]
            parts.append(first[:max_bytes])
            unread[0] = first[max_bytes:]
        return b"".join(parts)

    def _resume(self) -> None:
        if self.unread_bytes < READ_BUFFER_BYTES and self.error is None:
            self._connection.resume()

    def close(self) -> None:
        """End the exchange. The connection is closed unless the whole body has arrived."""
        self.unread.clear()
        self.unread_bytes = 0
        if not self.is_complete and self.error is None:
            self._connection.abort()
