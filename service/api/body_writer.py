"""Writes bodies that are sent while they arrive."""

import time
from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter


class BodyWriter:
    """Writes the body of a response whose head was sent; the sink of a caller's connection.

    For each chunk ``StreamResponse.write`` runs two coroutines and three functions. This class
    writes to the transport at once, and waits for the connection only in :meth:`drain`.
    """

    __slots__ = ("_is_chunked", "_protocol", "_writer", "written_at")

    def __init__(
        self, request: web.Request, response: web.StreamResponse, writer: AbstractStreamWriter
    ) -> None:
        self._protocol = request.protocol
        self._writer = writer
        self.written_at = time.monotonic()
        """When the last chunk was written, or the head."""
        self._is_chunked = "Transfer-Encoding" in response.headers

    @property
    def is_paused(self) -> bool:
        """Whether more waits to be sent than the connection should hold."""
        return self._protocol.writing_paused

    def write(self, chunk: bytes) -> bool:
        """Send a chunk, and return whether the connection keeps up.

        :raises ConnectionError: when the caller is gone.
        """
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The caller has closed the connection.")
        # An empty chunk would end the body.
        if chunk:
            self.written_at = time.monotonic()
            transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._is_chunked else chunk)
        return not self._protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the connection keeps up.

        :raises ConnectionError: when the caller is gone.
        """
        await self._writer.drain()


async def begin_body(
    request: web.Request, headers: Mapping[str, str]
) -> tuple[web.StreamResponse, BodyWriter]:
    """Send the head of a response of unknown length; return the response, which the handler has to
    return once the body is written, and what writes the body."""
    response = web.StreamResponse(headers=headers)
    writer = await response.prepare(request)
    assert writer is not None  # noqa: S101 - for the type checker
    return response, BodyWriter(request, response, writer)
