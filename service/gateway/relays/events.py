"""Server-sent events that are passed on as they arrive and metered on their way."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from service.errors import ServiceError, UpstreamError
from service.gateway.attempts import Attempts
from service.gateway.open_call import OpenCall, has_left
from service.gateway.relays.relay import OK_STATUS
from service.gateway.relays.stream import StreamRelay
from service.ledger import Outcome
from service.upstream import (
    ERROR_MEMBER,
    PLAIN_BODY_BYTES,
    Sink,
    StreamMeter,
    split_at_error,
)

log = structlog.get_logger()

MAX_HELD_UP_S: Final = 1.0
"""A caller that reads nothing for longer is held responsible if Venice then ends the stream."""
LATE_HEADERS: Final[Mapping[str, str]] = {"Content-Type": "text/event-stream"}


class _Passage:
    """The sink of Venice's answer: meters each chunk, and gives the events that have become whole
    to the caller's sink, up to the one with an error.

    ``fail`` is awaited with that error, and raises it.
    """

    __slots__ = ("_error", "_fail", "_meter", "_sink", "is_held_up", "is_sending")

    def __init__(
        self, meter: StreamMeter, sink: Sink, fail: Callable[[UpstreamError], Awaitable[None]]
    ) -> None:
        self._meter = meter
        self._sink = sink
        self._fail = fail
        self._error: UpstreamError | None = None
        self.is_sending = False
        """Whether the caller may not have received all that was read."""
        self.is_held_up = False
        """Whether the caller let the stream wait."""

    def write(self, chunk: bytes) -> bool:
        """See :meth:`Sink.write`."""
        return self.pass_events(self._meter.feed(chunk))

    def pass_events(self, events: bytes) -> bool:
        """Pass on whole events, which were metered; see :meth:`Sink.write`."""
        if ERROR_MEMBER in events:
            events, self._error = split_at_error(events)
        if events:
            self.is_sending = True
            self.is_sending = not self._sink.write(events)
        return not self.is_sending and self._error is None

    async def drain(self) -> None:
        """See :meth:`Sink.drain`.

        :raises UpstreamError: when Venice ended the stream with an error.
        """
        began_at = time.monotonic()
        await self._sink.drain()
        self.is_sending = False
        if time.monotonic() - began_at > MAX_HELD_UP_S:
            self.is_held_up = True
        if self._error is not None:
            await self._fail(self._error)


class EventsRelay(StreamRelay):
    """Passes each event on once it is whole."""

    is_late = False
    """Whether Venice was silent for so long that the caller should get a heartbeat first."""

    def __init__(self, open_call: OpenCall, attempts: Attempts) -> None:
        super().__init__(open_call, attempts)
        self._is_sending = False
        """Whether the caller may not have received all that was read."""

    async def begin(self, patience_s: float) -> None:
        """See :meth:`AnswerRelay.begin`. After ``patience_s`` of silence the stream counts as
        begun, so that heartbeats keep the caller waiting. If it fails after that, ``pass_to``
        raises the error."""
        if not await self._run_apart(self._begin(), patience_s):
            self.is_late, self.headers = True, LATE_HEADERS

    async def pass_to(self, sink: Sink) -> None:
        """See :meth:`AnswerRelay.pass_to`; whole events only."""
        passage = _Passage(self.meter, sink, self._fail_in_band)
        try:
            if self.is_late:
                # If the caller leaves now, the work goes on where its key wants that.
                await self._is_done_within(None)
            self.open_call.status = OK_STATUS
            if not passage.pass_events(self._first_events):
                await passage.drain()
            await self._answer.pass_to(passage)
            events, error = split_at_error(self.meter.end())
            if error is not None:
                await self._fail_in_band(error)
            self._end_stream()
            if events:
                sink.write(events)
        except ServiceError as error:
            self.fail(error)
            raise
        finally:
            self._is_sending, self.is_held_up = passage.is_sending, passage.is_held_up

    def fail(self, error: BaseException) -> None:
        """See :meth:`AnswerRelay.fail`. A caller that leaves after the last event has had all of
        the answer: clients do not wait for the end of the body."""
        open_call = self.open_call
        if has_left(error) and not open_call.is_ended_by_shutdown and self._is_all_sent():
            open_call.end(Outcome.OK, None)
        super().fail(error)

    def _is_all_sent(self) -> bool:
        if self._is_sending:
            return False
        metered = self.meter.result()
        is_all = metered.is_final and not metered.is_error and metered.output_tokens is not None
        if is_all:
            self.metered = metered
        return is_all

    async def fail_to_translate(self, error: ServiceError) -> None:
        """Record that the answer cannot be translated for the caller, and meter its end."""
        is_first = self.open_call.outcome is None
        self.fail(error)
        if is_first and self.attempts.answer is not None:
            self.may_go_on = True
            await self._read_remainder()

    async def _finish(self) -> None:
        await super()._finish()
        size = 0
        while chunk := await self._answer.next_chunk():
            self.meter.feed(chunk)
            size += len(chunk)
            if size > PLAIN_BODY_BYTES:
                log.warning("answer not finished", size_bytes=size)
                return
        self._end_stream()
