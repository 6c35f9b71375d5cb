"""Admission and settlement of calls."""

import asyncio
import enum
from typing import Final
from uuid import UUID

import msgspec
import structlog

from service.db import Database
from service.errors import Forbidden, Unauthenticated, Unavailable

log = structlog.get_logger()

LEASE_S: Final = 60
RETRY_FIRST_S: Final = 0.2
RETRY_MOST_S: Final = 5.0

# Whether the key is in force is asked here again, since the cache that authenticated it may lag.
ADMIT: Final = """
    WITH caller AS (
        SELECT CASE
            WHEN k.revoked_at IS NOT NULL THEN 'revoked_api_key'
            WHEN k.expires_at <= clock_timestamp() THEN 'expired_api_key'
            WHEN o.status <> 'active' THEN 'organization_inactive'
            ELSE 'admitted'
        END AS verdict
        FROM public.api_keys k
        JOIN public.organizations o ON o.id = k.organization_id
        WHERE k.id = $3
          AND k.organization_id = $1
    ), hold AS (
        INSERT INTO public.holds (
            organization_id, id, api_key_id, request_id, endpoint, model, is_stream, process_id,
            lease_until
        )
        SELECT $1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + make_interval(secs => $9)
        FROM caller
        WHERE verdict = 'admitted'
        ON CONFLICT ON CONSTRAINT holds_pkey DO NOTHING
    )
    SELECT verdict
    FROM caller
"""
# The entry takes the place of the hold: without one there was no call, or it is settled already.
SETTLE: Final = """
    WITH hold AS (
        DELETE FROM public.holds
        WHERE organization_id = $1
          AND id = $2
        RETURNING bound_nanos, bound_tokens, limit_ids, limit_windows, tags
    )
    INSERT INTO public.ledger_entries (
        organization_id, id, kind, api_key_id, request_id, endpoint, model, requested_model,
        is_stream, outcome, status, requests, input_tokens, cached_input_tokens, output_tokens,
        cost_nanos, cost_source, upstream_request_id, first_byte_ms, duration_ms, counted_at,
        bound_nanos, bound_tokens, limit_ids, limit_windows, tags
    )
    SELECT $1, $2, 'call', $3, $4, $5, $6, $7, $8, $9, $10, 1, $11, $12, $13, $14, $15, $16, $17,
           $18, clock_timestamp(), hold.bound_nanos, hold.bound_tokens, hold.limit_ids,
           hold.limit_windows, hold.tags
    FROM hold
    ON CONFLICT (organization_id, id) DO NOTHING
"""


class Outcome(enum.StrEnum):
    """How a call ended."""

    OK = "ok"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_EXHAUSTED = "upstream_exhausted"
    UPSTREAM_BUSY = "upstream_busy"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_CUT = "upstream_cut"
    CLIENT_CLOSED = "client_closed"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"


class CostSource(enum.StrEnum):
    """Where the cost of an entry comes from, best first."""

    REPORTED = "reported"
    """Venice said it."""
    COMPUTED = "computed"
    """Venice's usage times the catalogue's price."""
    ESTIMATED = "estimated"
    """Tokens counted on the way, times the catalogue's price."""
    NOT_CHARGED = "not_charged"
    """Venice surely charged nothing."""
    UNKNOWN = "unknown"
    """There is no price; the cost is null, never zero."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted call in flight."""

    organization_id: UUID
    id: UUID
    api_key_id: UUID
    request_id: str
    endpoint: str
    model: str
    is_stream: bool


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a hold. ``status`` is what the caller was answered, if anything."""

    hold: Hold
    model: str
    outcome: Outcome
    status: int | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    cost_nanos: int | None
    cost_source: CostSource
    upstream_request_id: str | None
    first_byte_ms: int | None
    duration_ms: int


class Ledger:
    """Admits and settles the calls of one process."""

    def __init__(self, database: Database, process_id: UUID) -> None:
        self._database = database
        self._process_id = process_id
        self._settling: set[asyncio.Task[None]] = set()

    async def admit(self, hold: Hold) -> None:
        """Take the hold.

        :raises Unauthenticated, Forbidden: when key or organization are no longer in force.
        :raises Unavailable: when the database cannot say: no new calls without books.
        """
        verdict = await self._database.fetchval(
            ADMIT,
            hold.organization_id,
            hold.id,
            hold.api_key_id,
            hold.request_id,
            hold.endpoint,
            hold.model,
            hold.is_stream,
            self._process_id,
            LEASE_S,
        )
        if verdict == "organization_inactive":
            raise Forbidden("The organization is not active.", code=verdict)
        if verdict != "admitted":
            raise Unauthenticated(
                "The API key is no longer in force.", code=verdict or "invalid_api_key"
            )

    def settle(self, entry: Entry) -> asyncio.Task[None]:
        """Write the entry, in a task of its own that outlives its caller.

        It is tried until it is written; there are never more such tasks than admitted calls. If
        the process ends first, the hold is what remains of the call. Where there is no hold (the
        call was never admitted, or is settled) nothing is written.
        """
        task = asyncio.create_task(self._settle(entry))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _settle(self, entry: Entry) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._write(entry)
            except Unavailable:
                log.warning("settlement waits for the database", **_facts(entry), retry_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MOST_S)
            except Exception:
                # The books must say what they could not take.
                log.exception("settlement failed", **_facts(entry))
                return
            else:
                return

    async def _write(self, entry: Entry) -> None:
        hold = entry.hold
        await self._database.fetchval(
            SETTLE,
            hold.organization_id,
            hold.id,
            hold.api_key_id,
            hold.request_id,
            hold.endpoint,
            entry.model,
            hold.model,
            hold.is_stream,
            entry.outcome.value,
            entry.status,
            entry.input_tokens,
            entry.cached_input_tokens,
            entry.output_tokens,
            entry.cost_nanos,
            entry.cost_source.value,
            entry.upstream_request_id,
            entry.first_byte_ms,
            entry.duration_ms,
        )

    async def flush(self, timeout: float) -> int:
        """Wait for the settlements under way; returns how many were not written in time."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=timeout)
        left = len(self._settling)
        if left:
            log.error("settlements not written; their holds remain", count=left)
        for task in self._settling:
            task.cancel()
        return left


def _facts(entry: Entry) -> dict[str, object]:
    return {
        "organization_id": str(entry.hold.organization_id),
        "entry_id": str(entry.hold.id),
        "outcome": entry.outcome.value,
        "cost_nanos": entry.cost_nanos,
        "cost_source": entry.cost_source.value,
        "input_tokens": entry.input_tokens,
        "output_tokens": entry.output_tokens,
    }
