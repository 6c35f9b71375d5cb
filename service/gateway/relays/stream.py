"""Streams of server-sent events: how they begin, are metered, and end with an error."""

import asyncio
import contextlib
import time
from typing import Final

from service.errors import ServiceError, UpstreamCut, UpstreamError
from service.gateway.attempts import Attempts
from service.gateway.open_call import OpenCall
from service.gateway.relays.relay import OK_STATUS, AnswerRelay
from service.ledger import Outcome
from service.upstream import MAX_HELD_BYTES, Metered, StreamMeter, UpstreamResponse, split_at_error

MAX_REMAINDER_S: Final = 5.0
MAX_REMAINDER_BYTES: Final = 1024 * 1024
"""How much of a stream is read after its error, for its usage and cost."""
OTHER_TYPES: Final = ("application/json", "application/problem+json", "text/html")
MOMENT_CHOSEN_BY_CALLER: Final = frozenset({Outcome.CLIENT_CLOSED, Outcome.INTERNAL_ERROR})
"""Outcomes whose moment the caller may have chosen."""
ENDED_BY_UPSTREAM: Final = frozenset({Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_TIMEOUT})
"""Outcomes where Venice ended the answer early, without an error."""


class StreamRelay(AnswerRelay):
    """Follows a stream of server-sent events with a meter."""

    max_event_bytes = MAX_HELD_BYTES
    """The longest event that is kept whole."""
    is_held_up = False
    """Whether the caller let the stream wait."""
    _answer: UpstreamResponse
    """There after ``begin``."""

    def __init__(self, open_call: OpenCall, attempts: Attempts) -> None:
        super().__init__(open_call, attempts)
        self.meter = StreamMeter(self.max_event_bytes)
        self._first_events = b""

    async def _begin(self) -> None:
        open_call = self.open_call
        self._answer = answer = await self.attempts.send("text/event-stream")
        if answer.status != OK_STATUS or answer.content_type in OTHER_TYPES:
            await self._read_whole(answer)
            raise UpstreamError("Venice's answer is no stream of events.")
        first_chunk = await answer.next_chunk()
        open_call.first_byte_at = time.monotonic()
        self._first_events = self.meter.feed(first_chunk)
        open_call.route.sent.upstream_request_id = self.meter.first_id()
        before, error = split_at_error(first_chunk)
        if error is not None and not before:
            await self._fail_in_band(error)
        self.headers = answer.headers

    def _end_stream(self) -> None:
        """Record the end of a stream that Venice ended.

        :raises UpstreamCut: when it ended early.
        """
        self._record_end(self._meter_end())

    def _meter_end(self) -> Metered:
        self.metered = metered = self.meter.result()
        if not metered.is_error and not metered.is_complete:
            raise UpstreamCut("Venice ended the stream before its end.")
        return metered

    def _record_end(self, metered: Metered) -> None:
        outcome = Outcome.UPSTREAM_ERROR if metered.is_error else Outcome.OK
        self.open_call.end(outcome, OK_STATUS)

    async def _fail_in_band(self, error: UpstreamError) -> None:
        """Raise the error with which Venice ended the stream. What came before it may have been
        charged, and what comes after it may state how much."""
        await self._read_remainder()
        self.metered = self.meter.result()
        self.open_call.end(Outcome.UPSTREAM_ERROR, None)
        raise error

    async def _read_remainder(self) -> None:
        """Meter the end of a stream that nobody gets, if it comes soon."""
        size = 0
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(MAX_REMAINDER_S):
                while size < MAX_REMAINDER_BYTES and (chunk := await self._answer.next_chunk()):
                    self.meter.feed(chunk)
                    size += len(chunk)

    def _metered_so_far(self) -> Metered:
        return self.meter.result()

    def _chargeable(self, metered: Metered, outcome: Outcome) -> Metered | None:
        return metered.without_counts() if self._may_be_more(metered, outcome) else metered

    def _may_be_more(self, metered: Metered, outcome: Outcome) -> bool:
        """Whether more output may be charged than was metered: the caller chose when to leave, or
        no output was metered."""
        if metered.is_final:
            return False
        if self.may_go_on is not None:
            return self.may_go_on
        if outcome in MOMENT_CHOSEN_BY_CALLER:
            return True
        if metered.counted_tokens:
            return outcome in ENDED_BY_UPSTREAM and self.is_held_up
        return not self.open_call.has_failed
