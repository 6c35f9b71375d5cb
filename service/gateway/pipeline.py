"""The life of a paid call: admit, send, meter, settle."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Final
from uuid import UUID

import msgspec
import structlog

from service import money
from service.accounts import Caller
from service.catalog import Catalog
from service.derived import Recorder
from service.errors import Forbidden, NotFound, Unavailable
from service.gateway.attempts import Attempts
from service.gateway.call import Call, Quote
from service.gateway.free_requests import FreeRequests
from service.gateway.open_call import OpenCall
from service.gateway.relays import RELAYS, AnswerRelay
from service.gateway.route import Route
from service.gateway.waiting import is_done_within
from service.ledger import Ledger, Limit, Outcome
from service.shares import Share, Shares
from service.telemetry import metrics
from service.upstream import Source, Venice

log = structlog.get_logger()

MAX_OPEN_CALLS: Final = 10_000
MAX_FINISHING_OF_KEY: Final = 32
MAX_FINISHING_OF_ORGANIZATION: Final = 100
"""How many answers are read to their end at a time for callers that have left. Other calls are
booked at their bound."""
FINISHING_BODY_BYTES: Final = 128 * 1024 * 1024
"""How much memory the bodies of these calls may use together. Organizations and keys share it."""
SETTLE_WAIT_S: Final = 5.0
"""How long the end of a body waits for its ledger entry. The entry is written even after that."""


class Gateway:
    """Admits, sends and settles paid calls."""

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        venice: Venice,
        heartbeat_s: float,
        free_requests: FreeRequests,
        recorder: Recorder,
    ) -> None:
        self._ledger = ledger
        self._recorder = recorder
        self._free_requests = free_requests
        self._catalog = catalog
        self._venice = venice
        self._heartbeat_s = heartbeat_s
        self._open_calls: set[OpenCall] = set()
        self._finishing: set[asyncio.Task[None]] = set()
        self._finishing_of: Counter[UUID | None] = Counter()
        """How many calls of each key and organization are being finished."""
        self._finishing_bytes = Shares(FINISHING_BODY_BYTES)

    @property
    def open_calls(self) -> int:
        """How many calls are in flight."""
        return len(self._open_calls)

    def call(self, caller: Caller, call: Call) -> "CallContext":
        """Prepare a call. It is made when the context is entered, and its entry is in the books
        when the context is left, however it is left.

        :raises ServiceError: here and on entering, of the class that names what went wrong.
        """
        if len(self._open_calls) >= MAX_OPEN_CALLS:
            raise Unavailable("Too many calls are in flight.", retry_after_s=1)
        route = self._route(caller, call)
        source = Source(caller.organization_id, caller.api_key_id)
        attempts = Attempts(self._venice, route, source)
        return CallContext(self, RELAYS[call.relay](OpenCall(route), attempts))

    async def begin(self, relay: AnswerRelay) -> AnswerRelay:
        """Admit and send the call; returns its relay once Venice's first byte is there."""
        try:
            route = relay.open_call.route
            self._open_calls.add(relay.open_call)
            # A refused call whose price Venice was asked for has reached Venice all the same.
            counting: Sequence[Limit] = ()
            if route.caller.has_rate_limit:
                counting = await self._free_requests.check(
                    route.caller, route.call.model_name, asks_venice=route.call.is_priced_by_venice
                )
            if (refusal := await route.admit()) is not None:
                await route.admit_later(refusal)
            if counting:
                self._free_requests.give_back(counting)
            await relay.begin(self._heartbeat_s)
        except BaseException as error:
            await self.end(relay, error)
            raise
        return relay

    async def quote(self, caller: Caller, call: Call) -> Quote:
        """Compute what the call could cost at most, which limits it would meet, and whether it
        would be admitted now. The call is not sent, and nothing is held.

        :raises Unavailable: when the books cannot decide.
        """
        return await self._route(caller, call).quote()

    async def count_free(self, caller: Caller) -> None:
        """Count a request that costs nothing against its caller's limits on requests.

        :raises RateLimited: when they have no room for it.
        """
        await self._free_requests.take(caller)

    def _route(self, caller: Caller, call: Call) -> Route:
        """The route to each model that the call may go to, by the model's own name. Limits and
        prices go by that name: a name that only Venice translates would evade both.

        :raises NotFound, Forbidden: when there is no such model, or none for this key.
        """
        is_restricted = caller.has_model_limit or caller.allowed_models is not None
        if is_restricted and not call.endpoint.is_known:
            raise Forbidden(
                "Rialto cannot tell which model this path calls, and the key or organization is"
                " restricted to some models. Use a documented endpoint.",
                code="model_not_allowed",
            )
        calls: Sequence[Call] = (call,)
        if call.has_model:
            if call.fallbacks or call.other_models:
                call = self._with_other_models(caller, call)
            try:
                names = self._catalog.targets(
                    caller.organization_id,
                    call.model,
                    caller.allowed_models,
                    call.endpoint.model_type,
                )
            except NotFound:
                if not call.is_default_model or is_restricted:
                    raise
            else:
                calls = call.for_models(names)
        is_repeated = caller.settings.repeat_failed and call.endpoint.is_inference
        return Route(
            self._ledger,
            self._catalog,
            self._venice,
            caller,
            calls[0],
            [*calls],
            2 if is_repeated else 1,
        )

    def _with_other_models(self, caller: Caller, call: Call) -> Call:
        """The call with the own names of the other models that may answer.

        :raises NotFound, Forbidden: when there is no such model, or none for this key.
        """
        if caller.has_model_limit:
            raise Forbidden(
                "A limit on one model applies, so the body may name no model beside its own.",
                code="model_not_allowed",
            )

        def target(name: str, model_type: str | None = None) -> str:
            targets = self._catalog.targets(
                caller.organization_id, name, caller.allowed_models, model_type
            )
            return targets[0]

        if caller.allowed_models is not None:
            for name in call.other_models:
                target(name)
        return call.with_fallbacks(
            [target(name, call.endpoint.model_type) for name in call.fallbacks]
        )

    async def end(self, relay: AnswerRelay, error: BaseException | None) -> None:
        """Settle a call, whatever became of it; ``error`` is what ended it."""
        open_call = relay.open_call
        try:
            if open_call.is_ended_by_shutdown and isinstance(error, asyncio.CancelledError):
                uncancel()
                restarting = Unavailable("The service is restarting.", retry_after_s=1)
                relay.fail(restarting)
                raise restarting from error
            if error is not None:
                relay.fail(error)
        finally:
            if relay.is_left_unfinished and (share := self._share_to_finish(open_call)):
                self._finish_apart(relay, share)
            else:
                await self.settle(relay)

    def _finish_apart(self, relay: AnswerRelay, share: Share) -> None:
        """Read the rest of the answer in a task, and settle the call then."""
        # Counted before the task runs: many callers may hang up in one turn of the loop.
        self._count_finishing(relay.open_call.route.caller, 1)
        # A task that is cancelled before it runs does nothing at all, so it sets this itself.
        relay.open_call.task = None
        finishing = asyncio.create_task(self._finish(relay, share))
        self._finishing.add(finishing)
        finishing.add_done_callback(self._finishing.discard)

    def _share_to_finish(self, open_call: OpenCall) -> Share | None:
        """Take memory for the call's body, if one more answer may be finished; else None."""
        caller = open_call.route.caller
        if (
            self._finishing_of[caller.api_key_id] >= MAX_FINISHING_OF_KEY
            or self._finishing_of[caller.organization_id] >= MAX_FINISHING_OF_ORGANIZATION
        ):
            return None
        key_id = caller.api_key_id or caller.organization_id
        share = Share(self._finishing_bytes, caller.organization_id, key_id)
        return share if share.grow(len(open_call.route.call.body)) else None

    async def _finish(self, relay: AnswerRelay, share: Share) -> None:
        """Settle a call that its caller has left, once its answer was read to its end."""
        open_call = relay.open_call
        open_call.task = asyncio.current_task()
        try:
            await relay.finish()
        except asyncio.CancelledError:
            # Only the rest of an answer that nobody reads is lost.
            uncancel()
        except Exception:
            log.exception("answer not finished")
        finally:
            share.close()
            self._count_finishing(open_call.route.caller, -1)
        await self.settle(relay)

    def _count_finishing(self, caller: Caller, change: int) -> None:
        for owner in (caller.api_key_id, caller.organization_id):
            self._finishing_of[owner] += change
            if not self._finishing_of[owner]:
                del self._finishing_of[owner]

    async def settle(self, relay: AnswerRelay) -> None:
        """Write the entry of a call that has ended, and release what it holds."""
        open_call = relay.open_call
        try:
            entry = relay.entry()
        except BaseException:
            # The sweeper settles the hold; the connection and the memory are released here.
            self._open_calls.discard(open_call)
            await relay.close()
            raise
        if entry is None:
            # A refused call holds nothing, and the ledger undoes an admission whose outcome nobody
            # knows.
            self._open_calls.discard(open_call)
            return
        # The ledger writes it in a task of its own, so a cancelled handler loses no entry.
        settling = self._ledger.settle(entry)
        facts = relay.facts = {"model": entry.hold.model, "outcome": entry.outcome}
        if entry.output_tokens is not None:
            facts["input_tokens"], facts["output_tokens"] = entry.input_tokens, entry.output_tokens
        if entry.cost_nanos is not None:
            facts["cost_usd"] = money.format_usd(entry.cost_nanos)
        try:
            if relay.attempts.ended or entry.outcome is not Outcome.OK:
                self._recorder.add_attempts(relay.attempts.records(entry.hold, entry.outcome))
            endpoint, noted = entry.hold.endpoint, metrics.noted
            noted.append((metrics.CALLS, 1, (endpoint, entry.outcome.value)))
            if entry.first_byte_ms is not None:
                first_byte_s = entry.first_byte_ms / 1000
                noted.append((metrics.FIRST_BYTE_SECONDS, first_byte_s, (endpoint,)))
            await relay.close()
            await is_done_within(settling, SETTLE_WAIT_S)
        finally:
            if settling.done():
                self._open_calls.discard(open_call)
            else:
                settling.add_done_callback(lambda _: self._open_calls.discard(open_call))

    def end_open_calls(self) -> int:
        """End the calls in flight for the shutdown, and return how many. Each caller gets an error,
        and each call is settled."""
        ended = 0
        for open_call in list(self._open_calls):
            if open_call.task is not None and not open_call.is_ended_by_shutdown:
                open_call.is_ended_by_shutdown = True
                open_call.task.cancel()
                ended += 1
        return ended

    async def close(self) -> None:
        """End the calls in flight, and wait for answers that are read for the books alone."""
        self.end_open_calls()
        if self._finishing:
            await asyncio.wait(set(self._finishing), timeout=SETTLE_WAIT_S)


class CallContext(msgspec.Struct, eq=False):
    """A call in flight: an asynchronous context with the relay of its answer.

    A class of its own, since Python enters a generator of ``contextlib`` again each time that the
    call goes on. For the same reason the methods return the gateway's coroutines.
    """

    gateway: Gateway
    relay: AnswerRelay

    def __aenter__(self) -> Awaitable[AnswerRelay]:
        return self.gateway.begin(self.relay)

    def __aexit__(self, _: object, error: BaseException | None, __: object) -> Awaitable[None]:
        if error is None and self.relay.open_call.outcome is Outcome.OK:
            return self.gateway.settle(self.relay)
        return self.gateway.end(self.relay, error)


def uncancel() -> None:
    """Take back the cancellation that ended the call, so that its task can write a last event."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
