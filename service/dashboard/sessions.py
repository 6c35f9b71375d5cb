"""Sessions: who has signed in, kept in a sealed cookie and nowhere else.

A cookie has the digest of the key that signed in. Each request looks the key up by it, so a session
ends with its key.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from service import crypto

COOKIE: Final = "rialto_session"
COOKIE_PATH: Final = "/dashboard"
SESSION_S: Final = 12 * 3600
CLOCK_SKEW_S: Final = 60
"""How far in the future the start of a session may be, since the clocks of processes differ."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session. ``token`` is in each of its forms, which no other origin can read."""

    key_digest: bytes
    token: str
    started_at: int

    def is_over(self, now: float) -> bool:
        """Return whether the session is older than it may be."""
        return not -CLOCK_SKEW_S <= now - self.started_at < SESSION_S


class Sessions:
    """Makes cookies, and reads those that are still good."""

    def __init__(self, master_keys: Sequence[str], *, is_secure: bool) -> None:
        self._sealer = crypto.Sealer(master_keys, "dashboard session")
        self._is_secure = is_secure

    def start(self, response: web.StreamResponse, key_digest: bytes) -> Session:
        """Begin a session of the key, whose cookie the response sets."""
        session = Session(
            key_digest=key_digest, token=secrets.token_urlsafe(24), started_at=int(time.time())
        )
        self._set_cookie(response, self._sealer.seal(msgspec.msgpack.encode(session)), SESSION_S)
        return session

    def end(self, response: web.StreamResponse) -> None:
        """Take the browser's cookie away."""
        self._set_cookie(response, "", 0)

    def read(self, request: web.BaseRequest) -> Session | None:
        """Return the session of the request's cookie; None without a good one."""
        sealed = self._sealer.unseal(request.cookies.get(COOKIE, ""))
        if sealed is None:
            return None
        try:
            session = msgspec.msgpack.decode(sealed, type=Session)
        except msgspec.MsgspecError:
            # A cookie of another version.
            return None
        return None if session.is_over(time.time()) else session

    def _set_cookie(self, response: web.StreamResponse, value: str, max_age_s: int) -> None:
        response.set_cookie(
            COOKIE,
            value,
            max_age=max_age_s,
            path=COOKIE_PATH,
            secure=self._is_secure,
            httponly=True,
            samesite="Strict",
        )
