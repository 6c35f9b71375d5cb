"""Connections to Venice.

aiohttp 3.14 asks a connection to go on after each chunk of a body that is read, whether or not it
had been told to wait: the parser is run for nothing and the transport told what it knows. Of a
stream whose many small chunks arrive together that is a quarter of all the work.
"""

import asyncio
import functools
from collections.abc import AsyncIterable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.payload import AsyncIterablePayload


class VeniceProtocol(ResponseHandler):
    """Is not asked to go on before it has waited for the first time; after that aiohttp's parser
    may have kept something back, and has to be asked. For bodies that are not decompressed here:
    of those it keeps something back at any time."""

    __slots__ = ("_has_waited",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._has_waited = False

    def pause_reading(self) -> None:
        self._has_waited = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._has_waited:
            super().resume_reading(resume_parser)


class StreamedBody(AsyncIterablePayload):
    """A body that is sent as it arrives. What it is framed by is what is sent: its length where
    ``length_bytes`` states it, else chunks. A body of another length than it should have breaks the
    request, and aiohttp then closes the connection: what the next request would be taken for on it
    nobody knows."""

    def __init__(self, chunks: AsyncIterable[bytes], length_bytes: int | None) -> None:
        super().__init__(self._counted(chunks, length_bytes))
        self._size = length_bytes

    @staticmethod
    async def _counted(
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
        """Write all of it: that it has the length of its head is checked on the way."""
        await self.write(writer)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it, uncut."""
        await super().write_with_length(writer, None)


class Connector(aiohttp.TCPConnector):
    """aiohttp's own, for the length of a session."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        # There is no public way to say which protocol its connections have.
        self._factory = functools.partial(VeniceProtocol, loop=self._loop)  # type: ignore[assignment]
