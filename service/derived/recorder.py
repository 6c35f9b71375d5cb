"""Records refusals and attempts in the background.

What is recorded waits in memory until the next write. Nothing waits for a write, and what has no
place is dropped and counted.
"""

import asyncio
import time
from collections.abc import Hashable, Sequence
from typing import Any, Final

import msgspec
import structlog

from service.database.database import Database
from service.database.lanes import STRANGERS
from service.derived.queues import DropReason, Queue
from service.derived.records import Attempt, Refusal
from service.errors import Unavailable
from service.telemetry import metrics

log = structlog.get_logger()

WRITE_EVERY_S: Final = 1.0
BATCH_ROWS: Final = 500
"""How many rows one statement writes, which takes a few milliseconds."""
REFUSAL_PLACES: Final = 5_000
REFUSALS_OF_OWNER: Final = 1_000
REFUSALS_OF_SOURCE: Final = 200
ATTEMPT_PLACES: Final = 5_000
ATTEMPTS_OF_OWNER: Final = 1_000
LOG_EVERY_S: Final = 60.0

INSERT_REFUSALS: Final = """
    INSERT INTO derived.refusals (
        id, refused_at, request_id, method, route, status, code, message, param, organization_id,
        api_key_id, key_prefix, end_user, endpoint, model, requested_model, is_stream, limit_state,
        retry_after_s, repeats
    )
    SELECT id, refused_at, request_id, method, route, status, code, message, param, organization_id,
           api_key_id, key_prefix, decode(end_user, 'hex'), endpoint, model, requested_model,
           is_stream, limit_state, retry_after_s, repeats
    FROM jsonb_to_recordset($1::text::jsonb) AS r (
        id uuid, refused_at timestamptz, request_id text, method text, route text, status smallint,
        code text, message text, param text, organization_id uuid, api_key_id uuid, key_prefix text,
        end_user text, endpoint text, model text, requested_model text, is_stream boolean,
        limit_state jsonb, retry_after_s integer, repeats integer
    )
    ON CONFLICT (id) DO NOTHING
"""
INSERT_ATTEMPTS: Final = """
    INSERT INTO derived.attempts (
        id, organization_id, entry_id, number, started_at, duration_ms, model, upstream_key_id,
        status, code
    )
    SELECT id, organization_id, entry_id, number, started_at, duration_ms, model, upstream_key_id,
           status, code
    FROM jsonb_to_recordset($1::text::jsonb) AS r (
        id uuid, organization_id uuid, entry_id uuid, number smallint, started_at timestamptz,
        duration_ms integer, model text, upstream_key_id uuid, status smallint, code text
    )
    ON CONFLICT (id) DO NOTHING
"""


class Recorder:
    """Takes what is to be recorded, and writes it when :meth:`write` is called.

    Only the event loop's thread may use it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._refusals = Queue[Refusal](
            "refusals",
            places=REFUSAL_PLACES,
            of_owner=REFUSALS_OF_OWNER,
            of_source=REFUSALS_OF_SOURCE,
        )
        self._attempts = Queue[Attempt](
            "attempts",
            places=ATTEMPT_PLACES,
            of_owner=ATTEMPTS_OF_OWNER,
            of_source=ATTEMPTS_OF_OWNER,
        )
        self._latest: dict[tuple[Hashable, str], Refusal] = {}
        """The newest queued refusal of each source and code, which counts those without a place."""
        self._writing = asyncio.Lock()
        self._logged_at = -LOG_EVERY_S

    @property
    def queued(self) -> int:
        """How many rows wait to be written."""
        return len(self._refusals) + len(self._attempts)

    def add_refusal(self, refusal: Refusal, address: str) -> None:
        """Record a refusal. ``address`` is where a request without a known key came from."""
        owner = refusal.organization_id or STRANGERS
        source = refusal.api_key_id or address
        if (reason := self._refusals.add(refusal, owner, source)) is None:
            self._latest[source, refusal.code] = refusal
            return
        if (latest := self._latest.get((source, refusal.code))) is not None:
            latest.repeats += 1
        _count_dropped(self._refusals, 1, reason)

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Record attempts of a call."""
        for attempt in attempts:
            owner = attempt.organization_id
            if (reason := self._attempts.add(attempt, owner, owner)) is not None:
                _count_dropped(self._attempts, 1, reason)

    async def write(self) -> None:
        """Write what is queued. While the database is unavailable it stays queued."""
        async with self._writing:
            for queue, statement in (
                (self._refusals, INSERT_REFUSALS),
                (self._attempts, INSERT_ATTEMPTS),
            ):
                while len(queue):
                    if not await self._write_some(queue, statement):
                        return

    async def flush(self, timeout_s: float) -> int:
        """Write what is queued within so many seconds; returns how many rows are left."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.write()
        except TimeoutError:
            log.info("records not written in time", rows=self.queued)
        return self.queued

    async def _write_some(self, queue: Queue[Any], statement: str) -> bool:
        """Write the oldest rows of a queue; False if the database is unavailable."""
        queued = queue.first(BATCH_ROWS)
        for row, _, source in queued:
            # Nothing can be counted on a row that is on its way.
            kind = source, row.code
            if self._latest.get(kind) is row:
                del self._latest[kind]
        rows = [row for row, _, _ in queued]
        try:
            await self._database.fetch(statement, msgspec.json.encode(rows).decode())
        except Unavailable as error:
            if self._may_log():
                log.warning("records wait for the database", rows=self.queued, error=error.message)
            return False
        except Exception:
            # Another attempt would fail as this one has.
            if self._may_log():
                log.exception("records not written", table=queue.table, rows=len(rows))
            _count_dropped(queue, len(rows), "database")
        queue.remove(len(rows))
        return True

    def _may_log(self) -> bool:
        """Whether nothing was logged for a while. A database can fail for hours."""
        now = time.monotonic()
        if now - self._logged_at < LOG_EVERY_S:
            return False
        self._logged_at = now
        return True


def _count_dropped(queue: Queue[Any], rows: int, reason: DropReason) -> None:
    metrics.note(metrics.UNRECORDED, rows, queue.table, reason)
