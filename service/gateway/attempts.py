"""Sending a call, to one key after another, until it is answered or may not be repeated."""

import asyncio
import time
from typing import Final
from uuid import UUID

import structlog

from service.errors import ServiceError, UpstreamError
from service.gateway.call import Call
from service.upstream import Answer, UpstreamKey, Venice, pause_s

log = structlog.get_logger()

OK: Final = "ok"


class Attempts:
    """What was tried for one call."""

    def __init__(self, venice: Venice, call: Call, organization_id: UUID) -> None:
        self._venice = venice
        self._call = call
        self._organization_id = organization_id
        self._key: UpstreamKey | None = None
        self._ids: set[UUID] = set()
        self._tried: list[tuple[str, str]] = []

    @property
    def codes(self) -> tuple[str, ...]:
        """The code of each attempt, ``ok`` that of the answer."""
        return tuple(code for _, code in self._tried)

    async def send(self, body: bytes, accept: str) -> Answer:
        """The answer, whose status is 2xx.

        :raises UpstreamError: the last one, with all codes as its ``attempts``.
        """
        ends_at = time.monotonic() + self._venice.retry_s
        while True:
            try:
                answer = await self._attempt(body, accept)
            except UpstreamError as error:
                wait_s = self._wait_s(error)
                if (
                    wait_s is None
                    or time.monotonic() + wait_s > ends_at
                    or not self._venice.budget.spend()
                ):
                    self._say()
                    error.attempts = self.codes
                    raise
                await asyncio.sleep(wait_s)
            else:
                self._venice.budget.earn()
                self._say()
                return answer

    def close(self) -> None:
        """The call is over: its key has room for another."""
        if self._key is not None:
            self._venice.keys.in_flight[self._key.id] -= 1
            self._key = None

    async def _attempt(self, body: bytes, accept: str) -> Answer:
        keys, model = self._venice.keys, self._call.model
        try:
            key = keys.choose(self._organization_id, model, self._ids)
        except UpstreamError as error:
            self._tried.append(("none", error.code))
            raise
        self._key = key
        self._ids.add(key.id)
        keys.in_flight[key.id] += 1
        try:
            answer = await self._send(key, body, accept)
        except ServiceError as error:
            keys.failed(key, model, error)
            self._tried.append((key.name, error.code))
            self.close()
            raise
        keys.succeeded(key, model)
        self._tried.append((key.name, OK))
        return answer

    async def _send(self, key: UpstreamKey, body: bytes, accept: str) -> Answer:
        call = self._call
        headers = {**call.headers, "Content-Type": call.content_type, "Accept": accept}
        if call.method != "POST":
            return await self._venice.forward(call.method, call.upstream_path, body, headers, key)
        return await self._venice.post(call.upstream_path, body, headers, key)

    def _wait_s(self, error: UpstreamError) -> float | None:
        ready = self._venice.keys.ready(self._organization_id, self._call.model)
        return pause_s(
            error,
            len(self._tried),
            is_inference=self._call.endpoint.is_inference,
            has_key=bool(ready),
            has_fresh_key=any(key.id not in self._ids for key in ready),
        )

    def _say(self) -> None:
        if len(self._tried) > 1:
            log.info("attempts", model=self._call.model, tried=self._tried)
