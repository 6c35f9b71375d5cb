"""Records the calls that reach the sandbox, for tests to inspect."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

MAX_CALLS: Final = 10_000
MAX_BODY_KEPT_BYTES: Final = 64 * 1024
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
REQUESTS_PER_MINUTE: Final = 500
TOKENS_PER_MINUTE: Final = 5_000_000


@dataclass(slots=True, kw_only=True)
class Call:
    """A received request and its outcome."""

    method: str
    path: str
    """The path as in Venice's reference, without ``/api/v1``."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """All headers that were sent, including the key, as a CIMultiDict."""
    received_at: float
    body: bytes = b""
    """At most the first 64 KiB."""
    body_bytes: int = 0
    status: int | None = None
    finished_at: float | None = None
    cut_at: float | None = None
    """When the client was found to have left before the response was complete."""
    is_dropped: bool = False
    """True if a fault closed the connection."""
    charged_nanos: int = 0

    def record_body(self, body: bytes) -> None:
        """Record the body, truncated to the limit."""
        self.body = body[:MAX_BODY_KEPT_BYTES]
        self.body_bytes = len(body)

    def note_cut(self) -> None:
        """Record that the client has left."""
        if self.cut_at is None and not self.is_dropped:
            self.cut_at = time.time()


class Calls:
    """The latest calls, oldest first, bounded in number and bytes, and sums over all calls."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._kept_bytes = 0
        self._minute = 0
        self._minute_requests = 0
        self._minute_tokens = 0
        self.received = 0
        self.charged_nanos = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(tuple(self._calls))

    def __getitem__(self, index: int) -> Call:
        return self._calls[index]

    def to(self, path: str) -> list[Call]:
        """Return the recorded calls to a path, oldest first."""
        return [call for call in self._calls if call.path == path]

    def clear(self) -> None:
        """Delete all recorded calls and sums."""
        self._calls.clear()
        self._kept_bytes = self.received = self.charged_nanos = 0

    def add(self, call: Call) -> None:
        """Record a call, dropping the oldest if necessary."""
        self.received += 1
        self._calls.append(call)
        self._kept_bytes += len(call.body)
        while len(self._calls) > MAX_CALLS or self._kept_bytes > MAX_KEPT_BYTES:
            self._kept_bytes -= len(self._calls.popleft().body)
        self._roll()
        self._minute_requests += 1

    def charge(self, call: Call, tokens: int, cost_nanos: int) -> None:
        """Charge a call."""
        call.charged_nanos += cost_nanos
        self.charged_nanos += cost_nanos
        self._roll()
        self._minute_tokens += tokens

    def _roll(self) -> None:
        minute = int(time.time() // 60)
        if minute != self._minute:
            self._minute, self._minute_requests, self._minute_tokens = minute, 0, 0

    def rate_headers(self) -> dict[str, str]:
        """Return Venice's rate limit headers.

        The limits are not enforced, so that the sandbox can serve benchmarks: the remaining amounts
        never reach zero.
        """
        reset_ms = str((self._minute + 1) * 60_000)
        return {
            "x-ratelimit-limit-requests": str(REQUESTS_PER_MINUTE),
            "x-ratelimit-remaining-requests": str(
                max(1, REQUESTS_PER_MINUTE - self._minute_requests)
            ),
            "x-ratelimit-reset-requests": reset_ms,
            "x-ratelimit-limit-tokens": str(TOKENS_PER_MINUTE),
            "x-ratelimit-remaining-tokens": str(max(1, TOKENS_PER_MINUTE - self._minute_tokens)),
            "x-ratelimit-reset-tokens": reset_ms,
        }


CALLS: Final = web.AppKey("CALLS", Calls)
CALL: Final = web.RequestKey("CALL", Call)
