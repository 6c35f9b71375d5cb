"""What the four relays share."""

import abc
import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final

import structlog

from service import money
from service.catalog.prices import Usage
from service.errors import ServiceError, UpstreamError
from service.gateway.attempts import Attempts
from service.gateway.call import Bound, Cost, Translation
from service.gateway.open_call import OpenCall
from service.gateway.waiting import is_done_within
from service.ledger import CostSource, Entry, Outcome
from service.upstream import Metered, Sink, UpstreamResponse, read_plain

log = structlog.get_logger()

MAX_FINISH_S: Final = 900.0
"""How long an answer is read for the books alone after its caller has left."""
OK_STATUS: Final = 200
"""The only status of Venice's answers to paid calls."""
NO_HEADERS: Final[Mapping[str, str]] = {}
NO_FACTS: Final[Mapping[str, Any]] = {}


class AnswerRelay(abc.ABC):
    """Sends a call, passes Venice's answer on and computes what the call cost.

    The methods are called in the order ``begin``, ``pass_to``, ``finish`` (only for a caller that
    has left), ``entry``, ``close``.
    """

    is_held_back = False
    """Whether the caller still gets a failure as an error with its own status."""
    cost: Cost | None = None
    """The cost by a whole answer or by the headers; None while the answer is under way."""
    may_go_on: bool | None = None
    """Whether Venice may have gone on after the last chunk that was read; None where the outcome
    decides."""
    headers: Mapping[str, str] = NO_HEADERS
    """Venice's headers that the caller gets, complete after ``begin``."""
    metered: Metered | None = None
    """The usage and cost that Venice stated, once all of it was read."""
    facts: Mapping[str, Any] = NO_FACTS
    """What the log states of the call, once it is being settled."""
    _task: asyncio.Task[None] | None = None
    """The work that goes on when the caller leaves."""

    def __init__(self, open_call: OpenCall, attempts: Attempts) -> None:
        self.open_call = open_call
        self.attempts = attempts

    def begin(self, patience_s: float) -> Awaitable[object]:
        """Send the call and wait for the first byte of the answer. Where the caller's key wants
        answers to be finished, that goes on without the caller.

        ``patience_s`` is how long the caller can be kept waiting before it gets a first byte.
        """
        if self.open_call.route.caller.settings.on_disconnect == "finish":
            return self._run_apart(self._begin(), None)
        return self._begin()

    @abc.abstractmethod
    async def _begin(self) -> None:
        """Send the call and wait for the first byte of the answer.

        :raises UpstreamError: when Venice fails, or its answer is not what was asked for.
        """

    @abc.abstractmethod
    async def pass_to(self, sink: Sink) -> None:
        """Give the body to the sink as it arrives.

        :raises UpstreamError: when it fails on the way.
        """

    async def finish(self) -> None:
        """Read the rest of the answer for the books alone. After a failure they have what is known
        by then; what Venice refuses after all is not charged."""
        try:
            async with asyncio.timeout(MAX_FINISH_S):
                await self._finish()
        except TimeoutError:
            log.warning("answer not finished", timeout_s=MAX_FINISH_S)
        except ServiceError as error:
            self.open_call.record_failure(error)
            self.may_go_on = False

    async def _finish(self) -> None:
        if self._task is not None:
            await self._task

    def fail(self, error: BaseException) -> None:
        """Record how the call failed, unless its outcome is known already."""
        if self.is_held_back and isinstance(error, UpstreamError):
            # Even if Venice answered: the caller gets the error in place of the answer.
            self.open_call.forget_end()
        self.open_call.fail(error)

    @property
    def is_translated(self) -> bool:
        """Whether the caller speaks another API than Venice, so that the answer is translated."""
        return self.open_call.route.call.translation is not None

    def translation(self) -> Translation | None:
        """Make what translates the answer, where the caller speaks another API. The model that
        answers decides, so it is known with the first byte."""
        make = self.open_call.route.call.translation
        return None if make is None else make()

    @property
    def is_left_unfinished(self) -> bool:
        """Whether the caller has left, and its key wants such answers to be finished."""
        route = self.open_call.route
        return (
            self.open_call.outcome is Outcome.CLIENT_CLOSED
            and self.metered is None
            and route.hold is not None
            and route.caller.settings.on_disconnect == "finish"
        )

    def entry(self) -> Entry | None:
        """The ledger entry of the call; None where it was not admitted."""
        hold = self.open_call.route.hold
        if hold is None:
            return None
        metered = self.metered or self._metered_so_far()
        cost = self.cost or self._cost_by(metered)
        return self.open_call.entry(hold, metered, cost, self.attempts.key_id)

    def _metered_so_far(self) -> Metered:
        """What was counted of an answer that was not read to its end."""
        return Metered()

    @abc.abstractmethod
    def _chargeable(self, metered: Metered, outcome: Outcome) -> Metered | None:
        """The part of ``metered`` that bounds what Venice charged, so without counts where Venice
        may have gone on; None where nothing bounds it."""

    def _cost_by(self, metered: Metered) -> Cost:
        """What the call cost, by what was metered, with the attempts before the last one."""
        open_call, attempts, route = self.open_call, self.attempts, self.open_call.route
        call, endpoint = route.call, route.call.endpoint
        upload = call.upload
        # Venice never had all of the body, and answered nothing.
        is_upload_cut = upload is not None and not upload.is_whole and attempts.answer is None
        outcome = open_call.outcome or open_call.early_outcome()
        if open_call.stated_usd:
            cost = Cost(None, money.parse_usd(open_call.stated_usd), CostSource.REPORTED)
        elif is_upload_cut or metered.is_withheld or not attempts.may_be_charged:
            cost = Cost(None, 0, CostSource.NOT_CHARGED)
        elif chargeable := self._chargeable(metered, outcome):
            cost = endpoint.cost(call, route.bound, chargeable, route.catalog)
        else:
            cost = Cost(None, None, CostSource.UNKNOWN)
        if attempts.has_failed:
            failed = endpoint.cost(call, route.bound, Metered(), route.catalog)
            cost = _sum(cost, failed, route.bound)
        return cost

    async def _read_whole(self, answer: UpstreamResponse) -> tuple[bytes, Metered]:
        """The whole body, and what it states; that is recorded even if the body is cut."""
        try:
            content = await answer.read()
        except UpstreamError:
            received = read_plain(answer.received)
            # It may be all of the answer, of another length than was stated.
            self.metered = None if received.is_error else received
            raise
        member = self.open_call.route.call.endpoint.answer_member
        self.metered = metered = read_plain(content, member)
        return content, metered

    async def _run_apart(self, work: Coroutine[Any, Any, None], timeout_s: float | None) -> bool:
        """Run the work in a task that goes on when the caller leaves; see ``_is_done_within``."""
        self._task = asyncio.create_task(work)
        return await self._is_done_within(timeout_s)

    async def _is_done_within(self, timeout_s: float | None) -> bool:
        """Whether the work that goes on without the caller is done within so many seconds.

        :raises ServiceError: when it failed.
        """
        if self._task is not None:
            if not await is_done_within(self._task, timeout_s):
                return False
            self._task.result()
        return True

    async def close(self) -> None:
        """Release the connection to Venice, in whatever state it is."""
        task = self._task
        try:
            if task is not None:
                task.cancel()
                await is_done_within(task, None)
                _log_unexpected(task)
        finally:
            self.attempts.close()
            # The traceback of a task that failed leads back here. Without this the call would stay
            # in memory until Python looks for cycles.
            self._task = None


def _log_unexpected(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ServiceError):
        log.error("a call failed in a way that is not known", exc_info=error)


def _sum(cost: Cost, failed: Cost, bound: Bound) -> Cost:
    """The cost of two attempts, the first of which is known by an estimate at best."""
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
