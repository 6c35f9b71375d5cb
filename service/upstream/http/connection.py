"""A connection to Venice, which carries one exchange at a time."""

import asyncio
import functools
import math
import re
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from service.errors import UpstreamError
from service.upstream.http.deadline import Deadline
from service.upstream.http.errors import InvalidResponse, cut, invalid, timed_out
from service.upstream.http.head import RESPONSE_HEAD, find_head, read_head
from service.upstream.http.response import READ_BUFFER_BYTES, Response
from service.upstream.http.upload import StreamedBody, Upload

JOINED_BYTES: Final = 64 * 1024
"""Bodies up to this size are copied behind their head, so that both are sent at once. Larger ones
are written in pieces of it: TLS hides what the socket did not take of one write, and shows what it
holds back of the next one."""
CONTINUE: Final = 100
SWITCHING_PROTOCOLS: Final = 101
BEGIN: Final = "begin"
END: Final = "end"
MESSAGE_BEGUN: Final = [BEGIN]
WHOLE_MESSAGE: Final = [BEGIN, END]
MIN_FINAL: Final = 200
"""The first status that is not informational."""


class Limits(NamedTuple):
    """Bounds and deadlines of the exchanges with one origin."""

    connect_s: float
    """For a place among the connections, the name, the connection and its TLS together."""
    silence_s: float
    """Without any byte of a response, or of an upload."""
    upload_s: float
    """How much longer the head of a response may take when a body is streamed."""
    head_max_bytes: int
    max_headers: int
    max_connections: int


class Owner(Protocol):
    """Keeps connections between exchanges."""

    limits: Limits

    def give_back(self, connection: "Connection") -> None:
        """Take a connection whose exchange is complete."""

    def forget(self, connection: "Connection") -> None:
        """Count a connection as closed. May be called again."""


class Connection(asyncio.Protocol):
    """One connection. Its callbacks are those of asyncio and of llhttp."""

    transport: asyncio.Transport
    """There once the connection is made."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._response: Response | None = None
        """The response that is expected or arriving; None between exchanges."""
        self._head = b""
        """The beginning of a head whose end has not arrived."""
        self._pieces: list[bytes] = []
        """The parts of the body that llhttp found in the bytes at hand."""
        self._events: list[str] = []
        """The beginnings and ends of messages that llhttp found in this exchange."""
        self._bodiless_bytes = 0
        """The bytes that came since the last part of the body: of chunk extensions, of trailers."""
        self._upload: Upload | None = None
        self.is_paused = False
        self.opened_at = loop.time()
        self._deadline = Deadline(loop, owner.limits.silence_s, self._time_out)
        self._parser = HttpResponseParser(self)

    def send(
        self,
        response: Response,
        head: bytes,
        body: bytes | StreamedBody,
        head_timeout_s: float,
    ) -> None:
        """Send a request whose response is then filled. A streamed body follows by
        :meth:`send_body`. ``head_timeout_s`` is at least as long as silence may last."""
        self._response = response
        deadline = self._deadline
        deadline.active_at = now = deadline.now()
        deadline.due_at = now + head_timeout_s
        if deadline.timer is None:
            deadline.watch()
        if isinstance(body, StreamedBody):
            self._upload = Upload(body)
            self.transport.write(head)
        elif len(body) <= JOINED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            view = memoryview(body)
            for start in range(0, len(body), JOINED_BYTES):
                if not self.transport.is_closing():
                    self.transport.write(view[start : start + JOINED_BYTES])

    async def send_body(self) -> None:
        """Send the streamed body of the current request.

        :raises WrongLengthError: when its length is not the stated one.
        """
        if self._upload is not None:
            await self._upload.send(self.transport, self._deadline)

    def pause(self) -> None:
        """Read no more until :meth:`resume`. Venice's silence does not count meanwhile."""
        if not self.is_paused:
            self.is_paused = True
            self._deadline.pause()
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_paused:
            self.is_paused = False
            self._deadline.resume()
            self.transport.resume_reading()

    def close(self) -> None:
        """Close the connection, which has no exchange and nothing left to send."""
        self._owner.forget(self)
        self.transport.close()

    def abort(self) -> None:
        """Close the connection at once. A response that is arriving gets nothing more."""
        self._response = None
        self._owner.forget(self)
        self.transport.abort()

    def cut(self) -> None:
        """Close the connection at once. A response that is arriving fails."""
        if self._response is None:
            self.abort()
        else:
            self._fail(cut())

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio gives it
        self._deadline.cancel()
        self._owner.forget(self)
        if self._upload is not None:
            self._upload.resume()
            self._upload = None
        self.cut()

    def pause_writing(self) -> None:
        if self._upload is not None:
            self._upload.pause()

    def resume_writing(self) -> None:
        if self._upload is not None:
            self._upload.resume()

    def eof_received(self) -> None:
        response = self._response
        if response is not None and response.ends_with_connection:
            self._response = None
            response.is_complete = True
            response.wake()
        # Venice may still keep its end open for what was not sent yet, and never read it.
        self.cut()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            # Nobody asked for these bytes, so they must not become part of the next response.
            self.abort()
            return
        if not self.is_paused:
            self._deadline.active_at = self._deadline.now()
        try:
            if not response.status:
                data = self._receive_head(response, data)
            self._parser.feed_data(data)
        except (InvalidResponse, HttpParserError, HttpParserUpgrade) as error:
            self._refuse(error)
            return
        events = self._events
        if pieces := self._pieces:
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._bodiless_bytes = 0
            response.unread.append(chunk)
            response.unread_bytes += len(chunk)
            if response.unread_bytes >= READ_BUFFER_BYTES:
                self.pause()
        else:
            self._count_bodiless(len(data))
        if len(events) > len(MESSAGE_BEGUN) or response.is_complete:
            self._end_exchange(response)
        if response.flow is not None:
            response.flow.go_on()
        elif response.status and not response.waiter.done():
            response.waiter.set_result(None)

    # What llhttp calls. It reads these once, and each call of a method of a list costs no call of
    # Python's.

    @property
    def on_body(self) -> Callable[[bytes], None]:
        return self._pieces.append

    @property
    def on_message_begin(self) -> Callable[[], None]:
        return functools.partial(self._events.append, BEGIN)

    @property
    def on_message_complete(self) -> Callable[[], None]:
        return functools.partial(self._events.append, END)

    def _receive_head(self, response: Response, data: bytes) -> bytes:
        """Read the head once all of it has arrived, and return what llhttp is to parse."""
        limits, start = self._owner.limits, 0
        if known_bytes := len(self._head):
            data, head = self._head + data, None
            self._head = b""
        else:
            head = RESPONSE_HEAD.match(data)
        if head is None or int(head[2]) < MIN_FINAL:
            start, head = self._skip_interim(data, known_bytes)
            if head is None:
                self._head, response.has_begun = data[start:], True
                return b""
        read_head(response, head, limits.head_max_bytes, limits.max_headers)
        self._bodiless_bytes = 0
        self._deadline.due_at = math.inf
        if response.has_body:
            return data[start:] if start else data
        # llhttp would wait for the body that the headers of a response to HEAD describe.
        if head.end() != len(data):
            raise invalid("a response to HEAD has a body")
        response.is_complete = response.is_last = True
        return b""

    def _skip_interim(self, data: bytes, known_bytes: int) -> tuple[int, re.Match[bytes] | None]:
        """Return where the last head begins, and that head if it is a final one and complete."""
        start, max_bytes = 0, self._owner.limits.head_max_bytes
        while (head := find_head(data, start, known_bytes, max_bytes)) is not None:
            status = int(head[2])
            if status >= MIN_FINAL:
                break
            if status == SWITCHING_PROTOCOLS:
                raise invalid("it switches to a protocol that was not asked for")
            if head[1] == b"0":
                raise invalid("HTTP/1.0 has no informational responses")
            if status == CONTINUE and self._upload is not None:
                self._upload.begin()
            start, known_bytes = head.end(), 0
        return start, head

    def _count_bodiless(self, size_bytes: int) -> None:
        """Bound chunk extensions and trailers, of which llhttp takes any number."""
        self._bodiless_bytes += size_bytes
        is_within_message = self._events == MESSAGE_BEGUN
        if is_within_message and self._bodiless_bytes > 2 * self._owner.limits.head_max_bytes:
            self._fail(invalid("its trailers or chunk extensions are too long"))

    def _end_exchange(self, response: Response) -> None:
        if self._events and self._events != WHOLE_MESSAGE:
            self._fail(invalid("there are bytes after its end"))
            return
        self._events.clear()
        upload, self._upload = self._upload, None
        self._response = None
        response.is_complete = True
        is_upload_whole = upload is None or upload.is_whole
        if not is_upload_whole or self.transport.get_write_buffer_size():
            # A next request would be read as the rest of this one, or wait behind it for ever if
            # Venice reads no more of it.
            self.abort()
        elif response.is_last:
            self.close()
        else:
            if self.is_paused:
                self.resume()
            self._owner.give_back(self)

    def _refuse(self, error: Exception) -> None:
        if isinstance(error, InvalidResponse):
            self._fail(error)
        else:
            self._fail(invalid("its body is framed wrongly"))

    def _time_out(self) -> None:
        if self._response is not None:
            self._fail(timed_out())

    def _fail(self, error: UpstreamError) -> None:
        response = self._response
        self.abort()
        if response is not None:
            response.fail(error, drops_unread=isinstance(error, InvalidResponse))
