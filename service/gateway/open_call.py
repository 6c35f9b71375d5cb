"""One admitted call on its way: sent, read, and turned into its one ledger entry."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final, overload

import structlog

from service import money
from service.catalog import Catalog
from service.catalog.prices import Usage
from service.errors import ClientError, ServiceError, UpstreamCut, UpstreamError
from service.gateway.assembly import Assembly
from service.gateway.attempts import Attempts
from service.gateway.call import Bound, Call, Cost, Relay
from service.gateway.ending import Ending
from service.gateway.route import Route
from service.gateway.waiting import is_done_within
from service.ledger import CostSource, Entry, Outcome, Sent
from service.telemetry import metrics
from service.upstream import (
    MAX_HELD_BYTES,
    PLAIN_BODY_BYTES,
    Answer,
    Metered,
    StreamMeter,
    Venice,
    read_headers,
    read_plain,
    split_at_error,
)

log = structlog.get_logger()

MAX_FINISH_S: Final = 900.0
"""How long an answer is read on for the books when its caller has gone."""
MAX_HELD_UP_S: Final = 1.0
"""A caller that reads nothing for longer has a part in it should Venice then end the stream."""
MAX_REST_S: Final = 5.0
MAX_REST_BYTES: Final = 1024 * 1024
"""How much of a stream is read after its error, for its usage and cost."""
OK_STATUS: Final = 200
"""The only status that Venice's answers to paid calls have."""
HTML: Final = "text/html"
NO_EVENTS: Final = ("application/json", "application/problem+json", HTML)
NO_ANSWER: Final = re.compile(
    rb'\s*(?:(?:null|\{\s*\}|\[\s*\])\s*\Z|\{\s*"error"\s*:(?!\s*null\b))'
)
"""JSON that holds nothing, or an error in place of what was asked for."""
STREAM_HEADERS: Final = {"Content-Type": "text/event-stream"}

LEFT: Final = frozenset({Outcome.CLIENT_CLOSED, Outcome.SHUTDOWN})
"""The call was ended on this side."""


class Reply:
    """Venice's answer to a call: ``body`` of one that is whole, ``whole()`` of one that will be
    after a while, ``chunks()`` of any other."""

    def __init__(self, open_call: "OpenCall", headers: dict[str, str], body: bytes | None) -> None:
        self._open_call = open_call
        self.headers = headers
        self.body = body
        relay = open_call.route.call.relay
        self.is_events = relay is Relay.EVENTS
        self.is_awaited = relay is Relay.ASSEMBLED and body is None
        """Whether the answer takes so long that the caller should hear something first."""
        self.is_late = False
        """The same of a stream."""
        admission = open_call.route.admission
        self.rates = admission.rates if admission else None
        self.model = open_call.route.call.model
        self.output_cap = open_call.route.bound.output_cap
        self.cost_usd: str | None = None
        """What the answer cost, where that is known; a stream ends before it can be said."""
        self.attempts = open_call.tried

    def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes; of a stream of events each whole.

        :raises UpstreamError: when it fails on the way.
        """
        return self._open_call.chunks()

    async def whole(self, timeout: float) -> bytes | None:
        """The body of an answer that is awaited; None while it is not there.

        :raises UpstreamError: when it fails.
        """
        return await self._open_call.assembled(timeout)

    def hold_back(self) -> None:
        """Nothing of the answer will be sent before all of it is there and can be said."""
        self._open_call.is_held_back = True

    async def fail(self, error: ServiceError) -> None:
        """Record that the answer cannot be translated for the caller."""
        await self._open_call.fail_to_translate(error)

    @property
    def is_ended_by_shutdown(self) -> bool:
        """Whether the task that relays was cancelled to end the call, not by its client."""
        return self._open_call.is_ended_by_shutdown


class OpenCall:
    """The state of one call. Once it is admitted it ends in exactly one ledger entry."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.task = asyncio.current_task()
        self.is_ended_by_shutdown = False
        self.is_held_back = route.call.relay in (Relay.WHOLE, Relay.ASSEMBLED)
        """Whether a failure is all that its caller gets to hear."""
        # An event of an assembled answer is needed whole; the answer's size bounds it.
        is_assembled = route.call.relay is Relay.ASSEMBLED
        self.stream_meter = StreamMeter(PLAIN_BODY_BYTES if is_assembled else MAX_HELD_BYTES)
        self.metered: Metered | None = None
        self.answer: Answer | None = None
        self._attempts: Attempts | None = None
        self._begun: asyncio.Task[Reply] | None = None
        self._assembling: asyncio.Task[bytes] | None = None
        self._first_chunk = b""
        self._first_events = b""
        self._ending = Ending()
        self._is_sending = False
        """Whether the caller may not have had all that was read."""
        self._cost_read: Cost | None = None
        """What the call cost by its whole answer, or by the headers of one that is passed on."""
        self._started_at = time.monotonic()
        self._first_byte_at: float | None = None

    @property
    def call(self) -> Call:
        """The call as it goes to the model that it is at."""
        return self.route.call

    @property
    def tried(self) -> tuple[str, ...]:
        """The codes of all attempts so far."""
        return self._attempts.codes if self._attempts is not None else ()

    @property
    def is_left_unfinished(self) -> bool:
        """Whether the caller has gone, and its key wants such answers read to their end."""
        return (
            self._ending.outcome is Outcome.CLIENT_CLOSED
            and self.metered is None
            and self._attempts is not None
            and self.route.caller.settings.on_disconnect == "finish"
        )

    async def begin(self, venice: Venice, patience_s: float) -> Reply:
        """Send the call; the reply is there when Venice's first byte is.

        A stream that stays silent for ``patience_s`` is begun all the same, so that its caller can
        be kept waiting with heartbeats; if it fails after that, ``chunks`` says so. So is an
        assembled answer that takes longer, once its first byte is there.
        """
        self._attempts = Attempts(venice, self.route)
        relay = self.route.call.relay
        if relay is Relay.WHOLE:
            beginning = self._begin_whole
        elif relay is Relay.PASSED:
            beginning = self._begin_passed
        else:
            beginning = self._begin_events
        is_stream = relay is Relay.EVENTS
        if not is_stream and self.route.caller.settings.on_disconnect == "cancel":
            reply = await beginning(self._attempts)
        else:
            self._begun = asyncio.create_task(beginning(self._attempts))
            patience = patience_s if is_stream else None
            if not await is_done_within(self._begun, patience):
                reply = Reply(self, STREAM_HEADERS, None)
                reply.is_late = True
                return reply
            reply = self._begun.result()
        if relay is Relay.ASSEMBLED:
            self._assembling = asyncio.create_task(self._assemble())
            content = await self.assembled(patience_s)
            self.is_held_back = content is not None
            return Reply(self, {**reply.headers, "Content-Type": "application/json"}, content)
        return reply

    async def _begin_whole(self, attempts: Attempts) -> Reply:
        self.answer = await attempts.send("application/json")
        self._first_byte_at = time.monotonic()
        content = await self._read_metered(self.answer)
        assert self.metered is not None  # noqa: S101 - for the type checker
        upstream_request_id = self.metered.upstream_request_id
        self.route.note_sent(
            Sent(upstream_key_id=attempts.key_id, upstream_request_id=upstream_request_id)
        )
        if self.metered.is_error or self.answer.status != OK_STATUS:
            raise UpstreamError("Venice's answer is not a completion.")
        self._ending.note(Outcome.OK, self.answer.status)
        return Reply(self, self.answer.headers, content)

    async def _read_metered(self, answer: Answer) -> bytes:
        """The whole body. Its usage and cost are noted first, be it an answer or not."""
        member = self.call.endpoint.answer_member
        try:
            content = await answer.read()
        except UpstreamError:
            received = read_plain(answer.received)
            # It may be all of the answer, of another length than was stated.
            self.metered = None if received.is_error else received
            raise
        self.metered = read_plain(content, member)
        return content

    async def _begin_passed(self, attempts: Attempts) -> Reply:
        self.answer = await attempts.send("*/*")
        self._first_byte_at = time.monotonic()
        self.metered = read_headers(self.answer.raw_headers)
        if self.call.endpoint.is_known:
            self._first_chunk = await self.answer.next_chunk()
            if self.answer.status != OK_STATUS or self._is_no_answer(self.answer.content_type):
                raise UpstreamError("Venice's answer is not what was asked for.")
        self._ending.status = self.answer.status
        return Reply(self, self.answer.headers, None)

    def _is_no_answer(self, content_type: str) -> bool:
        """Whether the first bytes of an answer that is passed on show that it is none."""
        if not self._first_chunk or content_type == HTML:
            return True
        if content_type not in NO_EVENTS or self.call.endpoint.may_state_error:
            return False
        return NO_ANSWER.match(self._first_chunk) is not None

    async def _begin_events(self, attempts: Attempts) -> Reply:
        self.answer = await attempts.send("text/event-stream")
        if self.answer.status != OK_STATUS or self.answer.content_type in NO_EVENTS:
            await self._read_metered(self.answer)
            raise UpstreamError("Venice's answer is no stream of events.")
        self._first_chunk = await self.answer.next_chunk()
        self._first_byte_at = time.monotonic()
        self._first_events = self.stream_meter.feed(self._first_chunk)
        sent = Sent(
            upstream_key_id=attempts.key_id, upstream_request_id=self.stream_meter.first_id()
        )
        self.route.note_sent(sent)
        before, error = split_at_error(self._first_chunk)
        if error is not None and not before:
            await self._fail_in_band(error)
        return Reply(self, self.answer.headers, None)

    async def _assemble(self) -> bytes:
        """The stream as the one answer that the caller asked for."""
        assert self.answer is not None  # noqa: S101 - for the type checker
        assembly: Assembly = self.call.endpoint.assembly()
        size = len(self._first_chunk)
        await self._put(assembly, self._first_events)
        while chunk := await self.answer.next_chunk():
            events = self.stream_meter.feed(chunk)
            size += len(chunk)
            # What is put together is never larger than its events.
            if size > PLAIN_BODY_BYTES:
                raise UpstreamError("Venice's answer is too large.")
            await self._put(assembly, events)
        await self._put(assembly, self.stream_meter.end())
        self._meter_stream()
        content = assembly.result()
        self._end_metered()
        return content

    async def _put(self, assembly: Assembly, events: bytes) -> None:
        _, error = split_at_error(events)
        if error is not None:
            await self._fail_in_band(error)
        assembly.feed(events)

    async def assembled(self, timeout: float) -> bytes | None:
        """See :meth:`Reply.whole`."""
        assert self._assembling is not None  # noqa: S101 - for the type checker
        is_there = await is_done_within(self._assembling, timeout)
        return self._assembling.result() if is_there else None

    def chunks(self) -> AsyncGenerator[bytes]:
        """See :meth:`Reply.chunks`."""
        return self._passed() if self.call.relay is Relay.PASSED else self._whole_events()

    async def _passed(self) -> AsyncGenerator[bytes]:
        assert self.answer is not None  # noqa: S101 - for the type checker
        with self._noting_failure():
            if self._first_chunk:
                yield self._first_chunk
            while chunk := await self.answer.next_chunk():
                yield chunk
            self._ending.note(Outcome.OK, None)

    async def _whole_events(self) -> AsyncGenerator[bytes]:
        with self._noting_failure():
            assert self._begun is not None  # noqa: S101 - for the type checker
            # Should the caller leave, this goes on where its key wants that.
            await is_done_within(self._begun, None)
            self._begun.result()
            assert self.answer is not None  # noqa: S101 - for the type checker
            self._ending.status = 200
            chunk, events = self._first_chunk, self._first_events
            while chunk:
                events, error = split_at_error(events)
                if events:
                    sent_at, self._is_sending = time.monotonic(), True
                    yield events
                    self._is_sending = False
                    if time.monotonic() - sent_at > MAX_HELD_UP_S:
                        self._ending.is_held_up = True
                if error is not None:
                    await self._fail_in_band(error)
                if chunk := await self.answer.next_chunk():
                    events = self.stream_meter.feed(chunk)
            rest, error = split_at_error(self.stream_meter.end())
            if error is not None:
                await self._fail_in_band(error)
            self._end_stream()
            if rest:
                yield rest

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self.fail(error)
            raise

    async def _fail_in_band(self, error: UpstreamError) -> None:
        """Venice ended the stream with an error: what came before it may have been charged, and
        what comes after it may state how much."""
        await self._read_rest()
        self.metered = self.stream_meter.result()
        self._ending.note(Outcome.UPSTREAM_ERROR, None)
        raise error

    async def _read_rest(self) -> None:
        """Let the meter see the end of a stream that nobody gets, if it comes soon."""
        assert self.answer is not None  # noqa: S101 - for the type checker
        size = 0
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(MAX_REST_S):
                while size < MAX_REST_BYTES and (chunk := await self.answer.next_chunk()):
                    self.stream_meter.feed(chunk)
                    size += len(chunk)

    async def fail_to_translate(self, error: ServiceError) -> None:
        """Record that Venice's answer cannot be translated for the caller."""
        is_first = self._ending.outcome is None
        self.fail(error)
        if is_first and self.answer is not None:
            self._ending.is_left = True
            await self._read_rest()

    def _end_stream(self) -> None:
        self._meter_stream()
        self._end_metered()

    def _meter_stream(self) -> None:
        self.metered = self.stream_meter.result()
        if not self.metered.is_error and not self.metered.is_complete:
            raise UpstreamCut("Venice ended the stream before its end.")

    def _end_metered(self) -> None:
        assert self.metered is not None  # noqa: S101 - for the type checker
        self._ending.note(Outcome.UPSTREAM_ERROR if self.metered.is_error else Outcome.OK, 200)

    def fail(self, error: BaseException) -> None:
        """Note how the call failed, if its end is not known yet."""
        self._ending.note_failure(error)
        if isinstance(error, UpstreamError) and self.is_held_back:
            # Even if Venice's answer was there: it cannot be said to the caller.
            self._ending.forget()
        if isinstance(error, ServiceError) and self._ending.status is None:
            self._ending.status = error.status
        if self.is_ended_by_shutdown:
            self._ending.note(Outcome.SHUTDOWN, None)
        elif isinstance(error, UpstreamError):
            self._ending.note(Outcome(error.code), None)
        elif isinstance(error, asyncio.CancelledError | ConnectionError | ClientError):
            # What is still a mistake of the caller's after admission is the end of an upload.
            self._ending.note(Outcome.OK if self._is_all_sent() else Outcome.CLIENT_CLOSED, None)
        else:
            self._ending.note(Outcome.INTERNAL_ERROR, None)

    def _is_all_sent(self) -> bool:
        """Whether a stream was complete when its caller left: clients do not wait for the end of
        the body."""
        if self.call.relay is not Relay.EVENTS or self._is_sending:
            return False
        metered = self.stream_meter.result()
        is_all = metered.is_final and not metered.is_error and metered.output_tokens is not None
        if is_all:
            self.metered = metered
        return is_all

    async def finish(self) -> None:
        """Read what is left of the answer, for the books alone. What fails on the way leaves them
        with what is known by then; what Venice refuses after all is not charged."""
        try:
            async with asyncio.timeout(MAX_FINISH_S):
                if self._begun is not None:
                    await self._begun
                if self._assembling is not None:
                    await self._assembling
                elif self.call.relay is Relay.EVENTS and self.answer is not None:
                    size = 0
                    while chunk := await self.answer.next_chunk():
                        self.stream_meter.feed(chunk)
                        size += len(chunk)
                        if size > PLAIN_BODY_BYTES:
                            log.warning("answer not finished", size_bytes=size)
                            return
                    self._end_stream()
        except TimeoutError:
            log.warning("answer not finished", timeout_s=MAX_FINISH_S)
        except ServiceError as error:
            self._ending.note_failure(error)
            self._ending.is_broken = True

    async def close(self) -> None:
        """Let go of Venice's connection, whatever state it is in."""
        tasks = [task for task in (self._begun, self._assembling) if task is not None]
        for task in tasks:
            task.cancel()
        try:
            for task in tasks:
                await _end_of(task)
        finally:
            if self.answer is not None:
                self.answer.close()
            if self._attempts is not None:
                self._attempts.close()
            # A task's result leads back here: without this the call, with the end of its stream,
            # would stay until Python looks for cycles.
            self._begun = self._assembling = None

    def entry(self, catalog: Catalog) -> Entry:
        """What the books get."""
        outcome = self._outcome_by_now()
        metered = self.metered or self.stream_meter.result()
        assert self.route.hold is not None  # noqa: S101 - it was admitted
        cost = self._cost_read or self._cost(outcome, metered, catalog)
        usage, cost_nanos, source = cost
        return Entry(
            hold=self.route.hold,
            model=metered.model or self.call.model.partition(":")[0],
            outcome=outcome,
            status=self._ending.status,
            input_tokens=usage.input_tokens if usage else None,
            cached_input_tokens=usage.cached_input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cost_nanos=cost_nanos,
            cost_source=source,
            most_nanos=self._exceeded_most(cost, catalog),
            upstream_key_id=self._attempts.key_id if self._attempts else None,
            upstream_request_id=metered.upstream_request_id,
            first_byte_ms=self._milliseconds_to(self._first_byte_at),
            duration_ms=self._milliseconds_to(time.monotonic()),
        )

    def _exceeded_most(self, cost: Cost, catalog: Catalog) -> int | None:
        """The most that any call of the model costs, if Venice states more for this one."""
        bound_nanos = self.route.bound.nanos
        if cost.nanos is None or bound_nanos is None or cost.nanos <= 2 * bound_nanos:
            # The bound is for one attempt, of which there may have been two.
            return None
        most = self.call.endpoint.most_nanos(self.call, self.route.bound, catalog)
        if most is None or cost.nanos <= most:
            return None
        metrics.note(metrics.IMPLAUSIBLE, 1, "cost")
        return most

    def _outcome_by_now(self) -> Outcome:
        if self._ending.outcome is not None:
            return self._ending.outcome
        return Outcome.SHUTDOWN if self.is_ended_by_shutdown else Outcome.CLIENT_CLOSED

    def read_cost(self, catalog: Catalog) -> int | None:
        """What an answer cost that is there, or whose headers say all that there is; in
        nano-dollars."""
        assert self.metered is not None  # noqa: S101 - for the type checker
        self._cost_read = self._cost(self._outcome_by_now(), self.metered, catalog)
        return self._cost_read.nanos

    def _cost(self, outcome: Outcome, metered: Metered, catalog: Catalog) -> Cost:
        cost = self._cost_of_last(outcome, metered, catalog)
        if self._attempts is not None and self._attempts.has_failed:
            bound: Bound = self.route.bound
            failed = self.call.endpoint.cost(self.call, bound, Metered(), catalog)
            cost = _sum(cost, failed, bound)
        return cost

    def _cost_of_last(self, outcome: Outcome, metered: Metered, catalog: Catalog) -> Cost:
        if self._ending.stated_usd:
            return Cost(None, money.parse_usd(self._ending.stated_usd), CostSource.REPORTED)
        call = self.route.call
        is_sent = self._attempts is not None and self._attempts.may_be_charged
        if not is_sent or metered.is_withheld:
            return Cost(None, 0, CostSource.NOT_CHARGED)
        is_upload_cut = call.upload is not None and not call.upload.is_whole
        if is_upload_cut and self.answer is None:
            # Venice never had the whole of it, and said nothing.
            return Cost(None, 0, CostSource.NOT_CHARGED)
        is_blind = call.relay is Relay.PASSED or (call.relay is Relay.WHOLE and outcome in LEFT)
        if self.metered is None and is_blind:
            # Nothing was counted, and Venice may have gone on: so leaving saves no money.
            return Cost(None, None, CostSource.UNKNOWN)
        relay, is_read = call.relay, self.metered is not None
        if self._ending.may_be_more(outcome, metered, relay, is_read=is_read):
            metered = metered.without_counts()
        return call.endpoint.cost(call, self.route.bound, metered, catalog)

    @overload
    def _milliseconds_to(self, at: float) -> int: ...

    @overload
    def _milliseconds_to(self, at: None) -> None: ...

    def _milliseconds_to(self, at: float | None) -> int | None:
        return None if at is None else round((at - self._started_at) * 1000)


async def _end_of(task: asyncio.Task[Any]) -> None:
    """Wait for a task that is done, as a rule, or was cancelled."""
    await is_done_within(task, None)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ServiceError):
        log.error("a call failed in a way that is not known", exc_info=error)


def _sum(cost: Cost, failed: Cost, bound: Bound) -> Cost:
    """What two attempts cost, of which the first is known by an estimate at best."""
    if cost.nanos is None or failed.nanos is None:
        return Cost(cost.usage, None, CostSource.UNKNOWN)
    if cost.usage is None or failed.usage is None:
        usage = cost.usage or failed.usage
    else:
        usage = Usage(
            input_tokens=cost.usage.input_tokens + failed.usage.input_tokens,
            output_tokens=cost.usage.output_tokens + failed.usage.output_tokens,
            cached_input_tokens=cost.usage.cached_input_tokens,
            cache_write_tokens=cost.usage.cache_write_tokens,
        )
    # An estimate is booked within the bound; what Venice charges above it, in full.
    is_above = bound.nanos is not None and cost.nanos > bound.nanos
    source = cost.source if is_above else CostSource.ESTIMATED
    return Cost(usage, cost.nanos + failed.nanos, source)
