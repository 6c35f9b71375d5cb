"""The answer to a plain call, which is there whole before any of it is sent."""

import functools
import time
from email.utils import formatdate
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from service.api.requests import Request
from service.api.response_headers import SECURITY_HEADERS, id_headers, let_origin_read
from service.api.state import SETTINGS

STATUS_LINE: Final = "HTTP/1.1 200 OK"


class WholeResponse(web.StreamResponse):
    """Sends a body whose head is built in one go. aiohttp would look each header up, add it by
    itself and then ask the application for more.

    ``headers`` are those of the answer alone. Only an answer to POST, with status 200, can be sent
    so.
    """

    def __init__(self, request: Request, headers: dict[str, str], body: bytes) -> None:
        super().__init__(
            headers={
                **headers,
                "Content-Length": str(len(body)),
                "Date": _date(int(time.time())),
                **id_headers(request),
                **SECURITY_HEADERS,
            }
        )
        self._whole_body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Build the head. aiohttp sends it with the body."""
        if request.version != HttpVersion11 or "Expect" in request.headers:
            return await super().prepare(request)
        assert isinstance(request, Request)  # noqa: S101 - the server makes them
        if origins := request.app[SETTINGS].cors_origins:
            let_origin_read(request, self, origins)
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._keep_alive:
            self.headers["Connection"] = "close"
        self._payload_writer = writer = request.writer
        await writer.write_headers(STATUS_LINE, self.headers)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the answer. aiohttp calls this without ``data``."""
        await super().write_eof(data or self._whole_body)


@functools.lru_cache(maxsize=2)
def _date(unix_s: int) -> str:
    """Cached, because many answers share a second."""
    return formatdate(unix_s, usegmt=True)
