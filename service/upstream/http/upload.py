"""Bodies of requests that are sent as they arrive, with backpressure."""

import asyncio
import contextlib
from collections.abc import AsyncIterable
from typing import Final

from service.upstream.http.deadline import Deadline

CONTINUE_S: Final = 1.0
"""How long an upload waits for ``100 Continue``, which a server need not send."""


class StreamedBody:
    """A body that is sent as it arrives.

    It is sent with ``Content-Length`` when ``length_bytes`` is given, and chunked otherwise. A body
    of any other length fails the request and closes the connection: a later request on it could be
    misread as part of the body.
    """

    def __init__(self, chunks: AsyncIterable[bytes], length_bytes: int | None) -> None:
        self.chunks = chunks
        self.length_bytes = length_bytes

    @property
    def framing(self) -> str:
        """The lines of the head that frame the body."""
        if self.length_bytes is None:
            return "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
        return f"Content-Length: {self.length_bytes}\r\nExpect: 100-continue\r\n"


class WrongLengthError(ValueError):
    """A streamed body is longer or shorter than stated."""


class Upload:
    """A streamed body on its way to one connection."""

    def __init__(self, body: StreamedBody) -> None:
        self._body = body
        self._may_begin = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.is_whole = False
        """Whether all of the body was handed to the transport."""

    def begin(self) -> None:
        """Do not wait for ``100 Continue`` any longer."""
        self._may_begin.set()

    def pause(self) -> None:
        """Hold the body back while the transport's buffer is full."""
        self._may_write.clear()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._may_write.set()

    async def send(self, transport: asyncio.WriteTransport, deadline: Deadline) -> None:
        """Write the whole body, unless the connection ends before. Each part that the transport
        takes counts as activity.

        :raises WrongLengthError: when its length is not the stated one.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONTINUE_S):
                await self._may_begin.wait()
        length_bytes, sent_bytes = self._body.length_bytes, 0
        async for chunk in self._body.chunks:
            if not chunk:
                continue
            sent_bytes += len(chunk)
            if length_bytes is None:
                transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            elif sent_bytes > length_bytes:
                break
            else:
                transport.write(chunk)
            await self._may_write.wait()
            if transport.is_closing():
                return
            deadline.note_activity()
        if length_bytes is None:
            transport.write(b"0\r\n\r\n")
        elif sent_bytes != length_bytes:
            raise WrongLengthError("The body has another length than was stated.")
        self.is_whole = True
