"""Connections to Venice, and what is sent on them.

A request that was never sent costs nothing, so each records whether it was.

aiohttp 3.14 resumes a connection after each chunk of a body that is read, even when it was never
paused. Each time, the parser runs for nothing and the transport is resumed for nothing. For a
stream whose many small chunks arrive together that is a quarter of all the work.
"""

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterable
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import AsyncIterablePayload


class Departure(msgspec.Struct, eq=False):
    """Records whether any byte of a request was handed to a connection."""

    has_left: bool = False


DEPARTURE: Final[contextvars.ContextVar[Departure | None]] = contextvars.ContextVar(
    "DEPARTURE", default=None
)
"""The departure record of the request that the current task sends."""


class VeniceRequest(aiohttp.ClientRequest):
    """Records its departure once it has a connection and could write its head."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        response = await super().send(conn)
        if (departure := DEPARTURE.get()) is not None:
            departure.has_left = True
        return response


class VeniceProtocol(ResponseHandler):
    """Skips ``resume_reading()`` until reading has been paused once.

    After that, aiohttp's parser may hold data back and must be resumed. Suitable only for bodies
    that aiohttp does not decompress, because its decompressor may hold data back at any time.
    """

    __slots__ = ("_was_paused",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._was_paused = False

    def pause_reading(self) -> None:
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._was_paused:
            super().resume_reading(resume_parser)


class StreamedBody(AsyncIterablePayload):
    """A body that is sent as it arrives.

    It is sent with ``Content-Length`` when ``length_bytes`` is given, and chunked otherwise. A body
    of any other length fails the request, and aiohttp then closes the connection: a later request
    on it could be misread as part of the body.
    """

    def __init__(self, chunks: AsyncIterable[bytes], length_bytes: int | None) -> None:
        super().__init__(self._check_length(chunks, length_bytes))
        self._size = length_bytes

    @staticmethod
    async def _check_length(
        chunks: AsyncIterable[bytes], length_bytes: int | None
    ) -> AsyncIterable[bytes]:
        sent_bytes = 0
        async for chunk in chunks:
            sent_bytes += len(chunk)
            if length_bytes is not None and sent_bytes > length_bytes:
                break
            yield chunk
        if length_bytes is not None and sent_bytes != length_bytes:
            raise aiohttp.ClientPayloadError("The body has another length than was stated.")

    async def write_with_length(
        self,
        writer: AbstractStreamWriter,
        content_length: int | None,  # noqa: ARG002 - aiohttp gives it
    ) -> None:
        """Write the whole body. Its length is checked while it is sent."""
        await self.write(writer)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body without truncation."""
        await super().write_with_length(writer, None)


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector with :class:`VeniceProtocol`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # aiohttp has no public way to choose the protocol class.
        self._factory = functools.partial(VeniceProtocol, loop=self._loop)  # type: ignore[assignment]
