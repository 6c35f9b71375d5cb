"""Headers of every answer: what browsers may do with it, and which pages may read it."""

import functools
import re
import time
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from service.api.dialects import ID_HEADERS
from service.api.requests import Request
from service.api.state import SETTINGS
from service.settings.allow_lists import ANY_ORIGIN
from service.upstream import PASSED_HEADERS

SECURITY_HEADERS: Final = {
    # What Venice sends is passed on with its type, whatever the bytes are.
    "X-Content-Type-Options": "nosniff",
    # Should a browser show an answer as a page, the page can do nothing and stands in no frame.
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    # Every answer is for the key that asked.
    "Cache-Control": "no-store",
}
KEY_EXPIRES_AT: Final = "x-rialto-key-expires-at"
"""The header by which a client learns that it has to change to the new secret of its key."""
OWN_HEADERS: Final = (
    "Retry-After",
    "request-id",
    "x-request-id",
    "x-rialto-attempts",
    "x-rialto-cost-usd",
    KEY_EXPIRES_AT,
    "x-rialto-max-output-tokens",
    "x-rialto-model",
    "x-should-retry",
    *(
        f"x-ratelimit-{what}-{unit}"
        for unit in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
)
EXPOSED_HEADERS: Final = ", ".join((*OWN_HEADERS, *sorted(PASSED_HEADERS - {"content-type"})))
METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
STATUS_LINE: Final = "HTTP/1.1 200 OK"
PREFLIGHT_S: Final = 600
"""How long a browser may go by the answer to a preflight."""
HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
MAX_HEADER_NAMES_LENGTH: Final = 2000


class UnsignedResponse(web.Response):
    """An answer whose headers are all there before aiohttp prepares it, and that does not name the
    software that answers."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class WholeResponse(web.StreamResponse):
    """The answer to a plain call, which is there whole before any of it is sent. Its head is built
    in one go: aiohttp would look each header up, add it by itself and then ask the application for
    more.

    ``headers`` are those that only this answer has. The request must be a POST, and the status is
    200.
    """

    def __init__(self, request: Request, headers: dict[str, str], body: bytes) -> None:
        super().__init__(
            headers={
                **headers,
                "Content-Length": str(len(body)),
                "Date": _date(int(time.time())),
                **dict.fromkeys(ID_HEADERS[request.dialect], request.request_id),
                **SECURITY_HEADERS,
            }
        )
        if (until := request.caller.previous_until) is not None:
            self.headers[KEY_EXPIRES_AT] = format_time(until)
        # Not in the dict above, because Venice may spell the name in any case.
        self.headers.setdefault("Content-Type", "application/octet-stream")
        self._whole_body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the answer."""
        if request.version != HttpVersion11 or "Expect" in request.headers:
            writer = await super().prepare(request)
        else:
            assert isinstance(request, Request)  # noqa: S101 - the server makes them
            if origins := request.app[SETTINGS].cors_origins:
                let_origin_read(request, self, origins)
            if self._keep_alive is None:
                self._keep_alive = request.keep_alive
            if not self._keep_alive:
                self.headers["Connection"] = "close"
            self._payload_writer = writer = request.writer
            await writer.write_headers(STATUS_LINE, self.headers)
        await self.write_eof(self._whole_body)
        return writer


def format_time(at: datetime) -> str:
    """The time in a header of ours, as ``2026-11-01T08:00:00Z``."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@functools.lru_cache(maxsize=2)
def _date(unix_s: int) -> str:
    """Cached, because many answers share a second."""
    return formatdate(unix_s, usegmt=True)


def let_origin_read(
    request: web.BaseRequest, response: web.StreamResponse, origins: Collection[str]
) -> None:
    """Let a page of one of the origins read the answer. Credentials of a browser's own, such as
    cookies, are never let in: a page has to state a key."""
    is_any = ANY_ORIGIN in origins
    if not is_any:
        response.headers.add("Vary", "Origin")
    origin = request.headers.get("Origin")
    if origin is None or not (is_any or origin in origins):
        return
    response.headers["Access-Control-Allow-Origin"] = ANY_ORIGIN if is_any else origin
    response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def preflight(request: web.Request, origins: Collection[str]) -> web.Response | None:
    """The answer to a browser that asks with OPTIONS whether a page may make a request, for which
    no key is asked; None where it does not ask that."""
    if "Access-Control-Request-Method" not in request.headers or "Origin" not in request.headers:
        return None
    response = web.Response(status=204)
    if ANY_ORIGIN in origins or request.headers["Origin"] in origins:
        names = request.headers.get("Access-Control-Request-Headers", "").strip()
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
        if len(names) <= MAX_HEADER_NAMES_LENGTH and HEADER_NAMES.fullmatch(names):
            response.headers["Access-Control-Allow-Headers"] = names
    response.headers.add("Vary", "Access-Control-Request-Headers")
    return response
