"""The database for the requests of one organization, which get one connection at a time.

The pool is small, and whoever asks first is served first. Without a bound the administrators of one
organization could have all of its connections, and every call of the others would wait behind them.
Admission and settlement have statements of their own, for the calls of all, and take no lane.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID
from weakref import WeakValueDictionary

from service.database.database import READ_TIMEOUT_S, Database
from service.database.errors import translated

STRANGERS: Final = UUID(int=2)
"""Whose lane looks up keys that nobody has shown before, which anybody can make up."""


class Lane(Database):
    """The database for one organization. What its requests ask waits for its turn here, and for a
    connection of the pool after that. A report has a turn of its own, since it may take long."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._settings)  # noqa: SLF001 - it is a Database too
        self._database = database
        self._statements = asyncio.Semaphore(1)
        self._reports = asyncio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def reading(self, timeout: float = READ_TIMEOUT_S) -> AsyncIterator[Any]:
        """See :meth:`Database.reading`."""
        with translated():
            async with self._turn(self._reports), self._database.reading(timeout) as reader:
                yield reader

    @contextlib.asynccontextmanager
    async def _connection(
        self, *, certain: bool, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        # One deadline for both waits: that for the turn, and that for a connection of the pool.
        timeout = timeout or self._settings.database_acquire_timeout_s
        ends_at = time.monotonic() + timeout
        async with self._turn(self._statements):
            left_s = max(0.001, ends_at - time.monotonic())
            whole = self._database
            async with whole._connection(certain=certain, timeout=left_s) as connection:  # noqa: SLF001
                yield connection

    @contextlib.asynccontextmanager
    async def _turn(self, turns: asyncio.Semaphore) -> AsyncIterator[None]:
        """:raises TimeoutError: when it does not come within the time for a connection."""
        async with asyncio.timeout(self._settings.database_acquire_timeout_s):
            await turns.acquire()
        try:
            yield
        finally:
            turns.release()


class Lanes:
    """The lanes that are in use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lanes: WeakValueDictionary[UUID, Lane] = WeakValueDictionary()

    def of(self, organization_id: UUID) -> Lane:
        """The organization's lane, for the length of a request."""
        lane = self._lanes.get(organization_id)
        if lane is None:
            lane = self._lanes[organization_id] = Lane(self._database)
        return lane
