"""Sends a call to one key after another, then to the next model, until Venice answers or the call
may not be retried."""

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import structlog

from service.derived import Attempt
from service.errors import ServiceError, UpstreamError
from service.gateway.endpoints.splice import upstream_body
from service.gateway.route import Route
from service.ledger import Hold, Outcome
from service.upstream import (
    Departure,
    Source,
    StreamedBody,
    UpstreamKey,
    UpstreamResponse,
    Venice,
    is_repeatable,
    is_uncharged,
    pause_s,
)

log = structlog.get_logger()

OK: Final = "ok"
FREE_OUTCOMES: Final = frozenset(
    {
        Outcome.UPSTREAM_UNREACHABLE,
        Outcome.UPSTREAM_REJECTED,
        Outcome.UPSTREAM_EXHAUSTED,
        Outcome.UPSTREAM_BUSY,
    }
)
"""Outcomes for which Venice charges nothing: it was not reached, or refused before any work."""
FAILURES: Final = FREE_OUTCOMES | {
    Outcome.UPSTREAM_ERROR,
    Outcome.UPSTREAM_TIMEOUT,
    Outcome.UPSTREAM_CUT,
}
"""Outcomes of calls that Venice failed, perhaps after it had answered."""


class Ended(NamedTuple):
    """An attempt that has ended. Times are those of :func:`time.monotonic`."""

    started_at: float
    ended_at: float
    model: str
    key_id: UUID | None
    status: int | None
    code: str


class Attempts(msgspec.Struct, eq=False):
    """Sends one call, as often as it may be repeated."""

    _venice: Venice
    _route: Route
    _source: Source
    codes: list[str] = []
    """The code of each attempt, ``ok`` for the answer."""
    key_id: UUID | None = None
    """The key of the last attempt."""
    answer: UpstreamResponse | None = None
    """Venice's answer, once there is one."""
    has_failed: bool = False
    """Whether an attempt before the last one failed in a way that may have been charged."""
    _key: UpstreamKey | None = None
    """The key whose calls in flight include this one."""
    _ids: set[UUID] = set()
    """The keys that were tried for the current model."""
    _tried: list[tuple[str, str]] = []
    """The key and the model of each attempt."""
    ended: list[Ended] = []
    """The attempts, once one has failed; none of a call that succeeds at once."""
    _started_at: float = 0.0
    """When the last attempt started."""
    _departure: Departure | None = None

    async def send(self, accept: str) -> UpstreamResponse:
        """Send the call and return the answer, whose status is 2xx. Nothing is retried after the
        timeout that the caller stated.

        :raises UpstreamError: of the last attempt, with the codes of all in ``attempts``.
        """
        venice, route = self._venice, self._route
        began_at = time.monotonic()
        left_at = began_at + (route.call.timeout_s or math.inf)
        ends_at = min(began_at + venice.retry_s, left_at)
        while True:
            self._started_at = time.monotonic()
            try:
                key, sending = self._start(accept)
                self.answer = answer = await sending
            except ServiceError as error:
                failure = await self._record_failure(error)
                if isinstance(failure, UpstreamError):
                    if time.monotonic() < left_at and await self._prepare_retry(failure, ends_at):
                        continue
                    if len(self.codes) > 1:
                        self._log_attempts()
                    failure.attempts = tuple(self.codes)
                if failure is error:
                    raise
                raise failure from error
            venice.keys.succeeded(key, route.model_name, self._source, answer.raw_headers)
            self.codes.append(OK)
            if self.ended:
                self._note_end(OK, answer.status)
            if venice.budgets.left:
                venice.budgets.earn(self._source.api_key_id)
            if len(self.codes) > 1:
                self._log_attempts()
            return answer

    @property
    def may_be_charged(self) -> bool:
        """Whether the last attempt left, and Venice did not refuse it before any work."""
        return self._departure is not None and self._departure.has_left

    def close(self) -> None:
        """Release the connection, and the key's room for another call."""
        if self.answer is not None:
            self.answer.close()
        if self._key is not None:
            self._venice.keys.in_flight[self._key.id] -= 1
            self._key = None

    async def _prepare_retry(self, error: UpstreamError, ends_at: float) -> bool:
        """Choose the next attempt and wait until it is due; False if there is none. Another key
        comes first, then another model, then the same model after a pause."""
        route, budgets, key_id = self._route, self._venice.budgets, self._source.api_key_id
        is_sent = route.call.upload is not None and route.call.upload.is_begun
        if is_sent or not route.call.endpoint.is_known:
            return False
        is_inference = route.call.endpoint.is_inference
        wait_s = self._pause_s(error)
        may_be_charged = is_repeatable(error) and route.may_repeat and not self.has_failed
        if may_be_charged:
            wait_s = 0.0
        may_advance = wait_s != 0.0 and is_uncharged(error, is_inference=is_inference)
        may_advance = may_advance and route.has_next and not self.has_failed
        if may_advance and budgets.spend(key_id) and await route.advance():
            self._ids.clear()
            return True
        if wait_s is None or time.monotonic() + wait_s > ends_at or not budgets.spend(key_id):
            return False
        self.has_failed = self.has_failed or may_be_charged
        await asyncio.sleep(wait_s)
        return True

    def _start(self, accept: str) -> tuple[UpstreamKey, Awaitable[UpstreamResponse]]:
        """Choose the key of the next attempt, and return it with the attempt, which is to be
        awaited at once.

        :raises UpstreamError: when no key is ready.
        """
        route, keys = self._route, self._venice.keys
        call, model = route.call, route.model_name
        self._departure = None
        try:
            key = keys.choose(self._source, model, self._ids)
        except UpstreamError:
            self._tried.append(("none", model))
            raise
        self._tried.append((key.name, model))
        self._key, self.key_id = key, key.id
        self._ids.add(key.id)
        keys.in_flight[key.id] += 1
        sent = route.sent
        sent.upstream_key_id, sent.upstream_request_id = key.id, None
        self._departure = departure = Departure()
        headers = {**call.headers, "Content-Type": call.content_type, "Accept": accept}
        body = (
            upstream_body(call, route.caller, route.bound)
            if call.upload is None
            else StreamedBody(call.upload, call.upload.length_bytes)
        )
        path = call.path or call.endpoint.path
        return key, self._venice.send(call.method, path, body, headers, key, departure=departure)

    async def _record_failure(self, error: ServiceError) -> ServiceError:
        """Record why an attempt failed, for the key and in the log. Returns the error to raise:
        that of the caller's upload, where it is why the request failed."""
        route, key = self._route, self._key
        call = route.call
        if key is None:
            self.codes.append(error.code)
            self._note_end(error.code, None)
            return error
        failure = error
        if isinstance(error, UpstreamError) and call.upload is not None:
            failure = call.upload.error or error
        is_charge_kept = isinstance(failure, UpstreamError) and failure.is_charge_kept
        if failure.outcome in FREE_OUTCOMES and not is_charge_kept:
            self._departure = None
        self.codes.append(failure.outcome)
        status = failure.upstream_status if isinstance(failure, UpstreamError) else None
        self._note_end(failure.outcome, status)
        # The key has room for another call, while Venice is asked about it.
        self._venice.keys.in_flight[key.id] -= 1
        self._key = None
        if call.endpoint.is_known:
            await self._venice.note_failed(key, route.model_name, self._source, failure)
        return failure

    def _note_end(self, code: str, status: int | None) -> None:
        key_id = None if self._key is None else self._key.id
        now, model = time.monotonic(), self._route.model_name
        self.ended.append(Ended(self._started_at, now, model, key_id, status, code))

    def records(self, hold: Hold, outcome: Outcome) -> Sequence[Attempt]:
        """What to record of a call that has ended: its attempts, if one of them failed."""
        if outcome in FAILURES and self.answer is not None:
            # Venice answered, and failed after that.
            if self.ended:
                self.ended.pop()
            self._note_end(outcome, self.answer.status)
        now, clock = datetime.now(UTC), time.monotonic()
        return [
            Attempt(
                organization_id=hold.organization_id,
                entry_id=hold.id,
                number=number,
                started_at=now - timedelta(seconds=clock - ended.started_at),
                duration_ms=round((ended.ended_at - ended.started_at) * 1000),
                model=ended.model,
                upstream_key_id=ended.key_id,
                status=ended.status,
                code=ended.code,
            )
            for number, ended in enumerate(self.ended, start=1)
        ]

    def _pause_s(self, error: UpstreamError) -> float | None:
        call, keys = self._route.call, self._venice.keys
        ready = keys.ready(self._source, call.model_name)
        return pause_s(
            error,
            len(self.codes),
            is_inference=call.endpoint.is_inference,
            has_key=bool(ready),
            has_fresh_key=any(key.id not in self._ids for key in ready),
        )

    def _log_attempts(self) -> None:
        tried = [(*pair, code) for pair, code in zip(self._tried, self.codes, strict=True)]
        log.info("attempts", tried=tried)
