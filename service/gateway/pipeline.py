"""The life of a paid call: admit, send, meter, settle."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, TypeVar, overload

import msgspec
import structlog

from service import metrics, money
from service.accounts import Caller
from service.catalog import Catalog
from service.db import uuid7
from service.errors import (
    Forbidden,
    LimitExceeded,
    NotFound,
    RateLimited,
    ServiceError,
    Unavailable,
    UpstreamCut,
    UpstreamError,
)
from service.gateway.attempts import Attempts
from service.gateway.call import Bound, Call, Cost, Quote, Relay
from service.ledger import Admission, CostSource, Entry, Hold, Ledger, Outcome
from service.upstream import (
    Answer,
    Metered,
    StreamMeter,
    Venice,
    WholeEvents,
    read_headers,
    read_plain,
)

log = structlog.get_logger()

C = TypeVar("C", bound=Call)

MOST_OPEN_CALLS: Final = 10_000
SETTLE_WAIT_S: Final = 5.0
"""How long the end of a body waits for its entry to be written; the writing goes on after that."""
STREAM_HEADERS: Final = {"Content-Type": "text/event-stream"}

FREE_OUTCOMES: Final = frozenset(
    {
        Outcome.UPSTREAM_UNREACHABLE,
        Outcome.UPSTREAM_REJECTED,
        Outcome.UPSTREAM_EXHAUSTED,
        Outcome.UPSTREAM_BUSY,
    }
)
"""Venice surely charged nothing: it was never reached, or refused before any work."""


LEFT: Final = frozenset({Outcome.CLIENT_CLOSED, Outcome.SHUTDOWN})
"""The call was ended on this side."""


class Reply:
    """Venice's answer to a call: ``body`` of one that is whole, ``chunks()`` of any other."""

    def __init__(self, open_call: "OpenCall", headers: dict[str, str], body: bytes | None) -> None:
        self._open_call = open_call
        self.headers = headers
        self.body = body
        self.is_events = open_call.call.relay is Relay.EVENTS
        self.is_late = False
        """Whether Venice was silent for so long that the caller should hear something first."""
        self.rates = open_call.admission.rates if open_call.admission else None
        self.output_cap = open_call.bound.output_cap
        self.cost_usd: str | None = None
        """What the answer cost, where that is known; a stream ends before it can be said."""
        self.attempts = open_call.tried

    def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes; of a stream of events each whole.

        :raises UpstreamError: when it fails on the way.
        """
        return self._open_call.chunks()

    @property
    def is_ended_by_shutdown(self) -> bool:
        """Whether the task that relays was cancelled to end the call, not by its client."""
        return self._open_call.is_ended_by_shutdown


class OpenCall:
    """The state of one admitted call. It ends in exactly one ledger entry."""

    def __init__(self, call: Call, bound: Bound, hold: Hold) -> None:
        self.call = call
        self.bound = bound
        self.hold = hold
        self.admission: Admission | None = None
        self.task = asyncio.current_task()
        self.is_ended_by_shutdown = False
        self.is_refused = False
        self.stream_meter = StreamMeter()
        self.metered: Metered | None = None
        self.answer: Answer | None = None
        self._is_sent = False
        self._attempts: Attempts | None = None
        self._begun: asyncio.Task[dict[str, str]] | None = None
        self._chunks: AsyncGenerator[bytes] | None = None
        self._first_chunk = b""
        self._events = WholeEvents()
        self._outcome: Outcome | None = None
        self._status: int | None = None
        self._started_at = time.monotonic()
        self._first_byte_at: float | None = None

    async def begin(self, venice: Venice, body: bytes, patience_s: float) -> Reply:
        """Send the call; the reply is there when Venice's first byte is.

        A stream that stays silent for ``patience_s`` is begun all the same, so that its caller can
        be kept waiting with heartbeats; if it fails after that, ``chunks`` says so.
        """
        self._is_sent = True
        if self.call.relay is Relay.WHOLE:
            return await self._begin_plain(venice, body)
        if self.call.relay is Relay.PASSED:
            return await self._begin_passed(venice, body)
        self._begun = asyncio.create_task(self._begin_stream(venice, body))
        done, _ = await asyncio.wait({self._begun}, timeout=patience_s)
        reply = Reply(self, self._begun.result() if done else STREAM_HEADERS, None)
        reply.is_late = not done
        return reply

    async def _begin_plain(self, venice: Venice, body: bytes) -> Reply:
        self.answer = await self._send(venice, body, "application/json")
        self._first_byte_at = time.monotonic()
        content = await self.answer.read()
        self.metered = read_plain(content)
        if self.metered.is_error:
            raise UpstreamError("Venice's answer is not a completion.")
        self._outcome, self._status = Outcome.OK, self.answer.status
        return Reply(self, self.answer.headers, content)

    async def _begin_passed(self, venice: Venice, body: bytes) -> Reply:
        self.answer = await self._send(venice, body, "*/*")
        self._first_byte_at = time.monotonic()
        self._status = self.answer.status
        self.metered = read_headers(self.answer.said)
        return Reply(self, self.answer.headers, None)

    async def _begin_stream(self, venice: Venice, body: bytes) -> dict[str, str]:
        self.answer = await self._send(venice, body, "text/event-stream")
        self._chunks = self.answer.chunks()
        self._first_chunk = await anext(self._chunks, b"")
        self._first_byte_at = time.monotonic()
        return self.answer.headers

    async def _send(self, venice: Venice, body: bytes, accept: str) -> Answer:
        self._attempts = Attempts(venice, self.call, self.hold.organization_id)
        return await self._attempts.send(body, accept)

    @property
    def tried(self) -> tuple[str, ...]:
        """The codes of all attempts so far."""
        return self._attempts.codes if self._attempts is not None else ()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """See :meth:`Reply.chunks`."""
        if self._begun is None:
            async for chunk in self._passed_chunks():
                yield chunk
            return
        try:
            await self._begun
            assert self._chunks is not None  # noqa: S101 - for the type checker
            self._status = 200
            self.stream_meter.feed(self._first_chunk)
            yield self._events.push(self._first_chunk)
            async for chunk in self._chunks:
                self.stream_meter.feed(chunk)
                if events := self._events.push(chunk):
                    yield events
            self._end_stream()
            if rest := self._events.rest():
                yield rest
        except ServiceError as error:
            self.fail(error)
            raise

    async def _passed_chunks(self) -> AsyncGenerator[bytes]:
        assert self.answer is not None  # noqa: S101 - for the type checker
        self._chunks = self.answer.chunks()
        try:
            async for chunk in self._chunks:
                yield chunk
            self._outcome = Outcome.OK
        except ServiceError as error:
            self.fail(error)
            raise

    def _end_stream(self) -> None:
        self.metered = self.stream_meter.result()
        if self.metered.is_error:
            self._outcome = Outcome.UPSTREAM_ERROR
        elif self.metered.is_complete:
            self._outcome = Outcome.OK
        else:
            raise UpstreamCut("Venice ended the stream before its end.")

    def fail(self, error: BaseException) -> None:
        """Note how the call ended, if that is not known yet."""
        if self._outcome is not None:
            return
        if self.is_ended_by_shutdown:
            self._outcome = Outcome.SHUTDOWN
        elif isinstance(error, UpstreamError):
            self._outcome = Outcome(error.code)
        elif isinstance(error, asyncio.CancelledError | ConnectionError):
            self._outcome = Outcome.CLIENT_CLOSED
        else:
            self._outcome = Outcome.INTERNAL_ERROR
        if isinstance(error, ServiceError) and self._status is None:
            self._status = error.status

    async def close(self) -> None:
        """Let go of Venice's connection, whatever state it is in."""
        if self._begun is not None:
            self._begun.cancel()
            with contextlib.suppress(asyncio.CancelledError, ServiceError):
                await self._begun
        if self._chunks is not None:
            await self._chunks.aclose()
        if self.answer is not None:
            self.answer.close()
        if self._attempts is not None:
            self._attempts.close()

    def entry(self, catalog: Catalog) -> Entry:
        """What the books get."""
        outcome = self._outcome
        if outcome is None:
            outcome = Outcome.SHUTDOWN if self.is_ended_by_shutdown else Outcome.CLIENT_CLOSED
        metered = self.metered or self.stream_meter.result()
        model = metered.model or self.call.model.partition(":")[0]
        usage, cost_nanos, source = self._cost(outcome, metered, catalog)
        return Entry(
            hold=self.hold,
            model=model,
            outcome=outcome,
            status=self._status,
            input_tokens=usage.input_tokens if usage else None,
            cached_input_tokens=usage.cached_input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cost_nanos=cost_nanos,
            cost_source=source,
            upstream_request_id=metered.upstream_request_id,
            first_byte_ms=self._milliseconds_to(self._first_byte_at),
            duration_ms=self._milliseconds_to(time.monotonic()),
        )

    def _cost(self, outcome: Outcome, metered: Metered, catalog: Catalog) -> Cost:
        if not self._is_sent or outcome in FREE_OUTCOMES or metered.is_withheld:
            return Cost(None, 0, CostSource.NOT_CHARGED)
        is_blind = self.call.relay is Relay.PASSED or (
            self.call.relay is Relay.WHOLE and outcome in LEFT
        )
        if self.metered is None and is_blind:
            # Nothing was counted, and Venice may have gone on: so leaving saves no money.
            return Cost(None, None, CostSource.UNKNOWN)
        return self.call.endpoint.cost(self.call, self.bound, metered, catalog)

    @overload
    def _milliseconds_to(self, at: float) -> int: ...

    @overload
    def _milliseconds_to(self, at: None) -> None: ...

    def _milliseconds_to(self, at: float | None) -> int | None:
        return None if at is None else round((at - self._started_at) * 1000)


def _hold(caller: Caller, call: Call, bound: Bound) -> Hold:
    """What the call asks admission for.

    :raises Forbidden: when the caller is not one of calls.
    """
    if caller.role != "inference" or caller.api_key_id is None:
        raise Forbidden("Only a key of role inference can make this call.")
    return Hold(
        organization_id=caller.organization_id,
        id=uuid7(),
        api_key_id=caller.api_key_id,
        request_id=call.request_id,
        endpoint=call.endpoint.path,
        model=call.model,
        is_stream=call.is_stream,
        bound_nanos=bound.nanos,
        bound_tokens=bound.tokens,
        least_nanos=bound.least_nanos,
        least_tokens=bound.least_tokens,
        end_user=caller.end_user_digest(call.end_user).hex() if call.end_user else None,
        tags=call.tags,
    )


def _told(refusal: ServiceError, *, are_prices_known: bool) -> ServiceError:
    """What the caller of a refused call is told."""
    if isinstance(refusal, LimitExceeded | RateLimited) and not are_prices_known:
        # Without prices and windows the bound is no bound to refuse a call by, even if they have
        # come since.
        return Unavailable("The prices are not known yet.", retry_after_s=1)
    return refusal


class Gateway:
    """Takes paid calls."""

    def __init__(
        self, ledger: Ledger, catalog: Catalog, venice: Venice, heartbeat_s: float
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._venice = venice
        self._heartbeat_s = heartbeat_s
        self._open_calls: set[OpenCall] = set()

    @property
    def open_calls(self) -> int:
        """How many calls are under way."""
        return len(self._open_calls)

    @contextlib.asynccontextmanager
    async def call(self, caller: Caller, call: Call) -> AsyncIterator[Reply]:
        """Make the call; its entry is in the books when the block is left, however it is left.

        :raises ServiceError: of the class that says what went wrong.
        """
        if len(self._open_calls) >= MOST_OPEN_CALLS:
            raise Unavailable("Too many calls are under way.", retry_after_s=1)
        call = self._resolved(caller, call)
        call = await call.priced(self._venice)
        are_prices_known = self._catalog.is_loaded
        bound = call.endpoint.bound(call, caller, self._catalog)
        open_call = OpenCall(call, bound, _hold(caller, call, bound))
        self._open_calls.add(open_call)
        try:
            await self._admit(open_call, are_prices_known=are_prices_known)
            body = call.endpoint.upstream_body(call, caller, open_call.bound)
            reply = await open_call.begin(self._venice, body, self._heartbeat_s)
            if not reply.is_events:
                cost_nanos = open_call.entry(self._catalog).cost_nanos
                reply.cost_usd = None if cost_nanos is None else money.format_usd(cost_nanos)
            yield reply
        except asyncio.CancelledError as error:
            if not open_call.is_ended_by_shutdown:
                open_call.fail(error)
                raise
            uncancel()
            restarting = Unavailable("The service is restarting.", retry_after_s=1)
            open_call.fail(restarting)
            raise restarting from error
        except BaseException as error:
            open_call.fail(error)
            raise
        finally:
            await self._settle(open_call)

    async def quote(self, caller: Caller, call: Call) -> Quote:
        """What the call could cost at most, the limits that it would meet, and whether it would be
        made now. Venice hears nothing of it, and nothing is held.

        :raises Unavailable: when the books cannot say.
        """
        call = self._resolved(caller, call)
        call = await call.priced(self._venice)
        are_prices_known = self._catalog.is_loaded
        bound = call.endpoint.bound(call, caller, self._catalog)
        standing = await self._ledger.would_admit(_hold(caller, call, bound))
        outcome = standing.outcome
        if isinstance(outcome, ServiceError):
            refusal = _told(outcome, are_prices_known=are_prices_known)
            return Quote(bound=bound, limits=standing.limits, refusal=refusal)
        bound = call.endpoint.cut(call, bound, outcome, self._catalog)
        return Quote(bound=bound, limits=standing.limits, refusal=None)

    async def _admit(self, open_call: OpenCall, *, are_prices_known: bool) -> None:
        open_call.is_refused = True
        try:
            admission = await self._ledger.admit(open_call.hold)
        except (LimitExceeded, RateLimited) as error:
            raise _told(error, are_prices_known=are_prices_known) from error
        # Whatever else comes of admission, there is nothing to settle here: what was refused holds
        # nothing, and what nobody knows of the ledger undoes itself.
        open_call.is_refused = False
        open_call.admission = admission
        call, bound = open_call.call, open_call.bound
        open_call.bound = call.endpoint.cut(call, bound, admission, self._catalog)

    def _resolved(self, caller: Caller, call: C) -> C:
        """The call by its model's own name. Limits go by it: where there are some of money, or of a
        model, a name that only Venice knows for another would pass by them.

        :raises NotFound: when the model is not in Venice's list.
        """
        name = self._catalog.resolve(call.model)
        if name != call.model:
            call = msgspec.structs.replace(call, model=name)
        is_limited = caller.has_money_limit or caller.has_model_limit
        if call.is_default_model and not caller.has_model_limit:
            return call
        if is_limited and self._catalog.is_loaded and not self._catalog.lists(call.model):
            raise NotFound(
                f"There is no model {call.model!r}.", code="model_not_found", param="model"
            )
        return call

    async def _settle(self, open_call: OpenCall) -> None:
        if open_call.is_refused:
            self._open_calls.discard(open_call)
            return
        # A task of its own: neither a hang-up nor a shutdown of the handler takes the entry along.
        entry = open_call.entry(self._catalog)
        metrics.CALLS.labels(entry.hold.endpoint, entry.outcome.value).inc()
        if entry.first_byte_ms is not None:
            metrics.FIRST_BYTE_SECONDS.labels(entry.hold.endpoint).observe(
                entry.first_byte_ms / 1000
            )
        settling = self._ledger.settle(entry)
        settling.add_done_callback(lambda _: self._open_calls.discard(open_call))
        await open_call.close()
        await asyncio.wait({settling}, timeout=SETTLE_WAIT_S)

    def end_open_calls(self) -> int:
        """End what is still under way, for the shutdown; each is told and settled."""
        ended = 0
        for open_call in list(self._open_calls):
            if open_call.task is not None and not open_call.is_ended_by_shutdown:
                open_call.is_ended_by_shutdown = True
                open_call.task.cancel()
                ended += 1
        return ended


def uncancel() -> None:
    """Take back the cancellation that ended the call, so that its task can say goodbye."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
