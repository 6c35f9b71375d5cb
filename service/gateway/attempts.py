"""Sending a call: to one key after another, then to the next model, until it is answered or may not
be repeated."""

import asyncio
import math
import time
from typing import Final
from uuid import UUID

import structlog

from service.errors import ServiceError, UpstreamError
from service.gateway.route import Route
from service.ledger import Outcome, Sent
from service.upstream import (
    Answer,
    Departure,
    Source,
    StreamedBody,
    UpstreamKey,
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
"""Venice surely charged nothing: it was never reached, or refused before any work."""


class Attempts:
    """What was tried for one call."""

    def __init__(self, venice: Venice, route: Route) -> None:
        self._venice = venice
        self._route = route
        caller = route.caller
        self._source = Source(caller.organization_id, caller.api_key_id)
        self._budget = venice.budgets.of(caller.api_key_id)
        self._key: UpstreamKey | None = None
        self._ids: set[UUID] = set()
        self._tried: list[tuple[str, str, str]] = []
        self.key_id: UUID | None = None
        """The key of the last attempt."""
        self._departure: Departure | None = None
        self.has_failed = False
        """Whether an attempt before the last one failed in a way that may have been charged."""

    @property
    def codes(self) -> tuple[str, ...]:
        """The code of each attempt, ``ok`` that of the answer."""
        return tuple([code for _, _, code in self._tried])

    async def send(self, accept: str) -> Answer:
        """The answer, whose status is 2xx. Nothing is tried again for a caller who, by what they
        said, has given up.

        :raises UpstreamError: the last one, with all codes as its ``attempts``.
        """
        began_at = time.monotonic()
        left_at = began_at + (self._route.call.timeout_s or math.inf)
        ends_at = min(began_at + self._venice.retry_s, left_at)
        while True:
            try:
                answer = await self._attempt(accept)
            except UpstreamError as error:
                if time.monotonic() >= left_at or not await self._goes_on(error, ends_at):
                    self._say()
                    error.attempts = self.codes
                    raise
            else:
                self._budget.earn()
                self._say()
                return answer

    @property
    def may_be_charged(self) -> bool:
        """Whether the last attempt left, and Venice did not refuse it before any work."""
        return self._departure is not None and self._departure.has_left

    def close(self) -> None:
        """The call is over: its key has room for another."""
        if self._key is not None:
            self._venice.keys.in_flight[self._key.id] -= 1
            self._key = None

    async def _goes_on(self, error: UpstreamError, ends_at: float) -> bool:
        """Whether there is another attempt, after the pause before it. Another key comes first,
        then another model; to wait for this one is what is left."""
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

    async def _attempt(self, accept: str) -> Answer:
        keys, model = self._venice.keys, self._route.call.model_name
        self._departure = None
        try:
            key = keys.choose(self._source, model, self._ids)
        except UpstreamError as error:
            self._tried.append(("none", model, error.code))
            raise
        self._key, self.key_id = key, key.id
        self._ids.add(key.id)
        keys.in_flight[key.id] += 1
        self._route.note_sent(Sent(upstream_key_id=key.id))
        self._departure = Departure()
        try:
            answer = await self._send(key, accept, self._departure)
        except ServiceError as error:
            is_charge_kept = isinstance(error, UpstreamError) and error.is_charge_kept
            if error.code in FREE_OUTCOMES and not is_charge_kept:
                self._departure = None
            self._tried.append((key.name, model, error.code))
            self.close()
            if self._route.call.endpoint.is_known:
                await self._venice.note_failed(key, model, self._source, error)
            raise
        keys.succeeded(key, model, self._source, answer.raw_headers)
        self._tried.append((key.name, model, OK))
        return answer

    async def _send(self, key: UpstreamKey, accept: str, departure: Departure) -> Answer:
        call = self._route.call
        headers = {**call.headers, "Content-Type": call.content_type, "Accept": accept}
        body: bytes | StreamedBody
        if call.upload is None:
            body = self._route.body()
        else:
            body = StreamedBody(call.upload, call.upload.length_bytes)
        try:
            if call.method != "POST":
                path = call.upstream_path
                return await self._venice.forward(call.method, path, body, headers, key, departure)
            return await self._venice.post(call.upstream_path, body, headers, key, departure)
        except UpstreamError as error:
            if call.upload is not None and call.upload.error is not None:
                raise call.upload.error from error
            raise

    def _pause_s(self, error: UpstreamError) -> float | None:
        call, keys = self._route.call, self._venice.keys
        ready = keys.ready(self._source, call.model_name)
        return pause_s(
            error,
            len(self._tried),
            is_inference=call.endpoint.is_inference,
            has_key=bool(ready),
            has_fresh_key=any(key.id not in self._ids for key in ready),
        )

    def _say(self) -> None:
        if len(self._tried) > 1:
            log.info("attempts", tried=self._tried)
