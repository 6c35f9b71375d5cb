"""Sends a call to one key after another, then to the next model, until Venice answers or the call
may not be retried."""

import asyncio
import math
import time
from typing import Final
from uuid import UUID

import structlog

from service.errors import ServiceError, UpstreamError
from service.gateway.endpoints.splice import upstream_body
from service.gateway.route import Route
from service.ledger import Outcome
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


class Attempts:
    """Sends one call, as often as it may be repeated."""

    def __init__(self, venice: Venice, route: Route) -> None:
        self._venice = venice
        self._route = route
        caller = route.caller
        self._source = Source(caller.organization_id, caller.api_key_id)
        self._budget = venice.budgets.of(caller.api_key_id)
        self._key: UpstreamKey | None = None
        self._ids: set[UUID] = set()
        self._tried: list[tuple[str, str]] = []
        """The key and the model of each attempt."""
        self.codes: list[str] = []
        """The code of each attempt, ``ok`` for the answer."""
        self.key_id: UUID | None = None
        """The key of the last attempt."""
        self.answer: UpstreamResponse | None = None
        """Venice's answer, once there is one."""
        self._departure: Departure | None = None
        self.has_failed = False
        """Whether an attempt before the last one failed in a way that may have been charged."""

    async def send(self, accept: str) -> UpstreamResponse:
        """Send the call and return the answer, whose status is 2xx. Nothing is retried after the
        timeout that the caller stated.

        :raises UpstreamError: of the last attempt, with the codes of all in ``attempts``.
        """
        began_at = time.monotonic()
        left_at = began_at + (self._route.call.timeout_s or math.inf)
        ends_at = min(began_at + self._venice.retry_s, left_at)
        while True:
            try:
                answer = await self._attempt(accept)
            except UpstreamError as error:
                if time.monotonic() >= left_at or not await self._prepare_retry(error, ends_at):
                    if len(self.codes) > 1:
                        self._log_attempts()
                    error.attempts = tuple(self.codes)
                    raise
            else:
                self._budget.earn()
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
        self._release_key()

    def _release_key(self) -> None:
        if self._key is not None:
            self._venice.keys.in_flight[self._key.id] -= 1
            self._key = None

    async def _prepare_retry(self, error: UpstreamError, ends_at: float) -> bool:
        """Choose the next attempt and wait until it is due; False if there is none. Another key
        comes first, then another model, then the same model after a pause."""
        route, budget = self._route, self._budget
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
        if may_advance and budget.spend() and await route.advance():
            self._ids.clear()
            return True
        if wait_s is None or time.monotonic() + wait_s > ends_at or not budget.spend():
            return False
        self.has_failed = self.has_failed or may_be_charged
        await asyncio.sleep(wait_s)
        return True

    async def _attempt(self, accept: str) -> UpstreamResponse:
        route, venice, keys = self._route, self._venice, self._venice.keys
        call, model = route.call, route.model_name
        self._departure = None
        try:
            key = keys.choose(self._source, model, self._ids)
        except UpstreamError as error:
            self._tried.append(("none", model))
            self.codes.append(error.code)
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
        try:
            answer = await venice.send(call.method, path, body, headers, key, departure=departure)
        except ServiceError as error:
            failure = self._cause(error)
            is_charge_kept = isinstance(failure, UpstreamError) and failure.is_charge_kept
            if failure.outcome in FREE_OUTCOMES and not is_charge_kept:
                self._departure = None
            self.codes.append(failure.outcome)
            self._release_key()
            if call.endpoint.is_known:
                await venice.note_failed(key, model, self._source, failure)
            if failure is not error:
                raise failure from error
            raise
        self.answer = answer
        keys.succeeded(key, model, self._source, answer.raw_headers)
        self.codes.append(OK)
        return answer

    def _cause(self, error: ServiceError) -> ServiceError:
        """The error to raise: that of the caller's upload, where it is why the request failed."""
        upload = self._route.call.upload
        if isinstance(error, UpstreamError) and upload is not None and upload.error is not None:
            return upload.error
        return error

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
