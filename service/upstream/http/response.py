"""One response as it arrives over a connection."""

import asyncio
import contextvars
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from multidict import CIMultiDict

from service.errors import UpstreamCut, UpstreamError
from service.upstream.http.errors import InvalidResponse, closed

if TYPE_CHECKING:
    from service.upstream.http.connection import Connection

READ_BUFFER_BYTES: Final = 64 * 1024
"""The unread bytes at which a connection stops to read. One read may bring up to 256 KB at once,
over TLS twice that."""
CHUNK_BYTES: Final = 16 * 1024
"""The most bytes of a response that are processed before other tasks get a turn."""


class Flow:
    """Gives each chunk to a sink in the moment in which the connection receives it, while the
    reader waits. To wake a task for a chunk takes as long as all else that is done with it.

    It ends with the body, when a chunk is large, and when the sink cannot take the next one at
    once.
    """

    __slots__ = ("_response", "_run", "_write", "error", "may_follow")

    def __init__(self, response: "Response", write: Callable[[bytes], bool]) -> None:
        self._response = response
        self._write = write
        # The connection's callbacks run in the context of the request that opened it, whose id
        # would stand in what the sink logs.
        self._run = contextvars.copy_context().run
        self.may_follow = True
        """Whether the sink can take the next chunk at once."""
        self.error: Exception | None = None
        """What the sink raised."""

    def go_on(self) -> None:
        """Give the sink the chunk that has just arrived, if any, or wake the reader."""
        response = self._response
        is_small = response.unread_bytes <= CHUNK_BYTES
        if response.unread and is_small:
            response.unread_bytes = 0
            try:
                self.may_follow = self._run(self._write, response.unread.pop())
            except Exception as error:  # noqa: BLE001 - raised again in the task of the reader
                self.error, self.may_follow = error, False
        if response.is_complete or not is_small or not self.may_follow:
            response.flow = None
            response.wake()


class Response(msgspec.Struct, eq=False):
    """The response to one request. The connection fills it, and one task reads it.

    The connection does not wait for the reader: once ``is_complete``, it may serve another request.
    """

    connection: "Connection"
    waiter: asyncio.Future[None]
    """Done once something has changed for the reader: bytes have arrived, the end, or an error."""
    has_body: bool = True
    """False for a response to HEAD."""
    has_begun: bool = False
    """Whether a part of the head has arrived."""
    status: int = 0
    """Zero until the head has arrived."""
    raw_headers: CIMultiDict[str] = msgspec.field(default_factory=CIMultiDict)
    """Every header as Venice sent it. There with the status."""
    is_last: bool = False
    """Whether the connection ends with this response."""
    ends_with_connection: bool = False
    """Whether the end of the connection is the end of the body."""
    unread: list[bytes] = msgspec.field(default_factory=list)
    unread_bytes: int = 0
    flow: Flow | None = None
    """What takes each chunk at once, while there is nothing else to read."""
    is_complete: bool = False
    """Whether the whole body has arrived."""
    error: UpstreamError | None = None
    """Why the rest of the response will not arrive."""

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

    def renew_waiter(self) -> asyncio.Future[None]:
        """Return what is done once something changes from now on.

        :raises UpstreamError: when the response has failed, so that nothing will change.
        """
        if self.error is not None:
            raise self.error
        waiter = self.waiter
        if waiter.done():
            self.waiter = waiter = waiter.get_loop().create_future()
        return waiter

    def take(self, max_bytes: int = sys.maxsize) -> bytes:
        """Return up to ``max_bytes`` of the unread bytes; none when there are none now."""
        unread = self.unread
        if self.unread_bytes <= max_bytes:
            chunk = unread[0] if len(unread) == 1 else b"".join(unread)
            unread.clear()
            self.unread_bytes = 0
        else:
            chunk = self._take_part(max_bytes)
        if self.connection.is_paused and not self.is_complete and self.error is None:
            self._resume()
        return chunk

    def _take_part(self, max_bytes: int) -> bytes:
        unread, count, size = self.unread, 0, 0
        while size + len(unread[count]) <= max_bytes:
            size += len(unread[count])
            count += 1
        if count:
            chunk = b"".join(unread[:count])
            del unread[:count]
        else:
            chunk = unread[0][:max_bytes]
            unread[0] = unread[0][max_bytes:]
        self.unread_bytes -= len(chunk)
        return chunk

    def _resume(self) -> None:
        if self.unread_bytes < READ_BUFFER_BYTES:
            self.connection.resume()

    def close(self) -> None:
        """End the exchange. Unless the whole body has arrived, the connection is closed, and a task
        that still reads gets an error."""
        self.unread.clear()
        self.unread_bytes = 0
        if not self.is_complete and self.error is None:
            self.connection.abort()
            self.fail(closed(), drops_unread=True)
