"""Usage and cost, read off an answer without re-encoding it.

Venice ends every stream with a chunk that has ``usage`` and ``cost``, so a stream needs no decoding
on its way: events are counted in the bytes, a tail is kept, and the tail is decoded once at the
end. When the numbers are missing, the events that went by are what there is to go on.
"""

import contextlib
from collections import deque
from decimal import Decimal
from typing import Any, Final

import msgspec

TAIL_BYTES: Final = 64 * 1024
LAST_EVENTS: Final = 8
"""How many events from the end are looked at for usage."""
DATA: Final = b"data:"
DONE: Final = b"[DONE]"
# A line that starts so starts an event: within JSON a line break is written \\n.
EVENT_START: Final = b"\n" + DATA
EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
MOST_HELD_BYTES: Final = 1024 * 1024


class CachedDetails(msgspec.Struct):
    """Parts of the input tokens."""

    cached_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class UsageObject(msgspec.Struct):
    """``usage`` of a chat completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedDetails | None = None


class CostObject(msgspec.Struct):
    """``cost``: what was charged, split by currency. One DIEM is one dollar of credit."""

    usd: Decimal | None = None
    diem: Decimal | None = None

    @property
    def is_stated(self) -> bool:
        return self.usd is not None or self.diem is not None


class Facts(msgspec.Struct):
    """What is read of an answer or of a stream's chunk."""

    id: str | None = None
    model: str | None = None
    usage: UsageObject | None = None
    cost: CostObject | None = None
    error: Any = None


class Metered(msgspec.Struct, kw_only=True):
    """What an answer says of itself. ``counted_tokens`` is what went by, for want of better."""

    upstream_request_id: str | None = None
    model: str | None = None
    usage: UsageObject | None = None
    cost_usd: Decimal | None = None
    counted_tokens: int = 0
    is_error: bool = False
    is_complete: bool = False

    def take(self, facts: Facts) -> None:
        """Note what a decoded object says. What is known already, from later on, stays."""
        self.upstream_request_id = self.upstream_request_id or facts.id
        self.model = self.model or facts.model
        self.usage = self.usage or facts.usage
        self.is_error = self.is_error or facts.error is not None
        if self.cost_usd is None and facts.cost is not None and facts.cost.is_stated:
            self.cost_usd = (facts.cost.usd or Decimal(0)) + (facts.cost.diem or Decimal(0))


def read_plain(body: bytes) -> Metered:
    """What a JSON answer says of itself; one that is no JSON object is an error."""
    metered = Metered(is_complete=True, counted_tokens=len(body) // 4)
    try:
        metered.take(msgspec.json.decode(body, type=Facts))
    except (msgspec.DecodeError, UnicodeDecodeError):
        metered.is_error = True
    return metered


class StreamMeter:
    """Follows a stream of server-sent events by its bytes."""

    def __init__(self) -> None:
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._events = 0
        # The first event has no line before it.
        self._seam = b"\n"

    def feed(self, chunk: bytes) -> None:
        """Take note of the next bytes, which may end anywhere."""
        # The last few bytes of the chunk before are looked at again: too few to hold an event's
        # start, enough to complete one.
        seen = self._seam + chunk
        self._events += seen.count(EVENT_START)
        self._seam = seen[1 - len(EVENT_START) :]
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())

    def result(self) -> Metered:
        """What the stream said, from its last events."""
        metered = Metered()
        decoded = 0
        for line in reversed(b"".join(self._tail).splitlines()):
            if not line.startswith(DATA):
                continue
            data = line[len(DATA) :].strip()
            if data == DONE:
                metered.is_complete = True
                continue
            decoded += 1
            # A cut stream ends in the middle of an event, which then says nothing.
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                metered.take(msgspec.json.decode(data, type=Facts))
            if metered.usage is not None or decoded == LAST_EVENTS:
                break
        # Each event carries a token or more, save [DONE] and the one with the usage.
        metered.counted_tokens = max(0, self._events - metered.is_complete - bool(metered.usage))
        return metered


class WholeEvents:
    """Passes server-sent events on in whole, so that a comment or an error can follow any of them
    and a stream that is cut never ends within one."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, chunk: bytes) -> bytes:
        """The events that are whole by now; an endless one is passed as it comes."""
        if not self._held and chunk.endswith(EVENT_ENDS):
            return chunk
        held = self._held + chunk
        ends = [held.rfind(ending) + len(ending) for ending in EVENT_ENDS if ending in held]
        end = max(ends, default=0)
        if not end and len(held) > MOST_HELD_BYTES:
            end = len(held)
        self._held = held[end:]
        return held[:end]

    def rest(self) -> bytes:
        """What is left when the stream has ended well."""
        rest, self._held = self._held, b""
        return rest
