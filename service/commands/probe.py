"""Asks a running service over HTTP, as its callers reach it."""

import asyncio
import http.client
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import msgspec

from service.settings import Settings
from service.settings.hosts import local_host

TIMEOUT_S: Final = 6.0
"""A little more than ``/health/full`` takes at most."""
MAX_BODY_BYTES: Final = 64 * 1024
UNREACHED: Final = (OSError, http.client.HTTPException, ValueError)
"""What :func:`ask` raises when it gets no answer."""


class Answer(NamedTuple):
    """The answer to a request. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object, empty if it is something else."""
        try:
            decoded = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return {}
        return decoded if isinstance(decoded, dict) else {}


def own_url(settings: Settings) -> str:
    """Return the address at which a service with these settings answers on this machine."""
    return f"http://{local_host(settings.host)}:{settings.port}"


async def ask(
    url: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request without a body.

    :raises OSError: when nobody answers.
    :raises http.client.HTTPException: when the answer is no HTTP.
    :raises ValueError: when the URL is none.
    """
    return await asyncio.to_thread(_ask, urlsplit(url), path, method, headers or {})


def _ask(url: SplitResult, path: str, method: str, headers: Mapping[str, str]) -> Answer:
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("must be an http(s) URL, as https://rialto.example.com")
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(
            url.hostname, url.port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, url.path.rstrip("/") + path, headers=dict(headers))
        response = connection.getresponse()
        stated = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, stated, response.read(MAX_BODY_BYTES))
    finally:
        connection.close()


def why(error: Exception) -> str:
    """Describe in a few words why nobody answered."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
