"""Health: what the platform and the operator ask. No key, no cost, no secrets, and a deadline."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, Literal

import msgspec
from aiohttp import web

from service.api.requests import Request
from service.api.state import BOOKS, DATABASE, SETTINGS, STATUS, VENICE
from service.api.wire import json_response
from service.errors import ServiceError, UpstreamExhausted
from service.settings.rules import Environment
from service.upstream import Finding

DATABASE_TIMEOUT_S: Final = 1.8
"""``/health`` answers within 2 s in all."""
VENICE_TIMEOUT_S: Final = 5.0
CACHED_S: Final = 5.0


class Health(msgspec.Struct, kw_only=True):
    """Whether the process serves, and why it does not."""

    status: Literal["ok", "error", "draining"]
    environment: Environment
    database: str


class WholeHealth(msgspec.Struct, kw_only=True):
    """Each part: ``ok``, ``error: …``, or ``unknown`` for what was not reached."""

    backend: Literal["ok", "draining"]
    database: str
    venice_api: str
    environment: Environment


class HealthChecks:
    """Answers the routes of health. They need no key, so requests share the check that is running,
    and a flood of them takes one connection to the database. Venice's answer is kept for five
    seconds."""

    def __init__(self) -> None:
        self._asking_database: asyncio.Task[str] | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[tuple[str, str]] | None = None

    async def brief(self, request: Request) -> web.Response:
        """``GET /health``: 200 only when calls can be admitted and the process is staying."""
        is_draining = request.app[STATUS].is_draining
        database = await self._database(request.app)
        answer = Health(
            status="draining" if is_draining else ("ok" if database == "ok" else "error"),
            environment=request.app[SETTINGS].environment,
            database=database,
        )
        return json_response(answer, 200 if answer.status == "ok" else 503)

    async def full(self, request: Request) -> web.Response:
        """``GET /health/full``: also whether Venice answers and takes the key, asked at no cost."""
        backend: Literal["ok", "draining"]
        if request.app[STATUS].is_draining:
            backend = "draining"
            database, venice = await self._database(request.app), "unknown"
        else:
            backend = "ok"
            database, venice = await asyncio.shield(self._ask(request.app))
        answer = WholeHealth(
            backend=backend,
            database=database,
            venice_api=venice,
            environment=request.app[SETTINGS].environment,
        )
        is_well = backend == database == venice == "ok"
        return json_response(answer, 200 if is_well else 503)

    async def _database(self, app: web.Application) -> str:
        asking = self._asking_database
        if asking is None or asking.done():
            asking = self._asking_database = asyncio.create_task(_database(app))
        return await asyncio.shield(asking)

    def _ask(self, app: web.Application) -> asyncio.Task[tuple[str, str]]:
        asking = self._asking
        is_old = time.monotonic() - self._asked_at > CACHED_S
        if asking is None or (asking.done() and is_old):
            self._asked_at = time.monotonic()
            asking = self._asking = asyncio.create_task(self._both(app))
        return asking

    async def _both(self, app: web.Application) -> tuple[str, str]:
        return await asyncio.gather(self._database(app), _venice(app))


async def _venice(app: web.Application) -> str:
    """Whether Venice answers and takes a key; the names of the keys that it refuses, and why."""
    venice = app[VENICE]
    try:
        key = venice.keys.any()
    except ServiceError as error:
        return f"error: {error.code}"
    examination = await venice.examine(key, VENICE_TIMEOUT_S)
    if examination.finding is Finding.WELL:
        return "ok"
    if not examination.finding.is_about_key and examination.error is not None:
        return f"error: {examination.error.code}"
    refused = ", ".join(f"{name}: {why}" for name, why in venice.keys.unusable().items())
    return f"error: {UpstreamExhausted.code} ({refused})"


async def _database(app: web.Application) -> str:
    """Whether the database answers, takes writes, and took the last one."""
    answer = await _tried(app[DATABASE].ping(DATABASE_TIMEOUT_S, must_write=True))
    problem = app[BOOKS].condition.problem
    return f"error: {problem}" if answer == "ok" and problem is not None else answer


async def _tried(asking: Awaitable[None]) -> str:
    """``ok``, or the class of what went wrong: messages may hold hosts and users."""
    try:
        await asking
    except ServiceError as error:
        return f"error: {error.code}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not well
        # A timeout's cause is only the cancellation that it is made of.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return f"error: {type(cause).__name__}"
    return "ok"
