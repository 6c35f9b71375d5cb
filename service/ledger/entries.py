"""Queries on the ledger's entries."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from service import money
from service.database.database import Database
from service.errors import NotFound, Unavailable

EntryKind = Literal["call", "correction", "credit", "unattributed"]

# ruff: noqa: S608 - statements are built from constants
COLUMNS: Final = """
    id, kind, amends_id, api_key_id, encode(end_user, 'hex') AS end_user, request_id, endpoint,
    model, requested_model, is_stream, outcome, status, input_tokens, cached_input_tokens,
    output_tokens,
    cost_nanos, cost_source, bound_nanos, bound_tokens, price_version, upstream_request_id,
    first_byte_ms, duration_ms, tags::text AS tags, note, counted_at, created_at
"""
FIND_ENTRY: Final = f"""
    SELECT {COLUMNS}
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id = $2
"""
# The primary key begins with the organization. One lookup per organization is far cheaper than a
# scan of the month, and OFFSET 0 keeps the planner from merging them.
FIND_OWNER: Final = """
    SELECT o.id
    FROM public.organizations o
    CROSS JOIN LATERAL (
        SELECT
        FROM public.ledger_entries e
        WHERE e.organization_id = o.id
          AND e.id = $1
        OFFSET 0
    ) e
"""
FIND_JOB: Final = """
    SELECT coalesce(amends_id, id) AS call_id, upstream_key_id
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND upstream_request_id = $2
      AND endpoint LIKE '%/queue'
    ORDER BY counted_at DESC, id DESC
    LIMIT 1
"""
# A call that is still held may have queued the job, when its process has trouble settling it. The
# process stores what it knows of the call whenever it renews the lease.
HAS_PENDING_CALL: Final = """
    SELECT EXISTS (
        SELECT
        FROM public.holds
        WHERE organization_id = $1
          AND endpoint LIKE '%/queue'
          AND (upstream_request_id = $2 OR upstream_request_id IS NULL)
    )
"""
# A correction's facts about a job were unknown when its call was settled.
LIST_JOBS: Final = """
    SELECT id, organization_id, coalesce(amends_id, id) AS call_id, api_key_id, endpoint, model,
           upstream_key_id, upstream_request_id, counted_at
    FROM public.ledger_entries
    WHERE endpoint LIKE '%/queue'
      AND (counted_at, id) > ($1, $2)
      AND kind IN ('call', 'correction')
      AND cost_nanos IS NOT NULL
      AND upstream_request_id IS NOT NULL
    ORDER BY counted_at, id
    LIMIT $3
"""

# Locked before the transaction takes its snapshot. If a month is dropped while this waits, its
# entries are gone at once, and only a later snapshot has the amounts that the limits carry for it.
LOCK_LEDGER: Final = "LOCK TABLE public.ledger_entries IN ACCESS SHARE MODE"


@contextlib.asynccontextmanager
async def reading_ledger(database: Database, timeout: float) -> AsyncIterator[Any]:
    """Open a transaction that reads the ledger and its limits as of one instant.

    :raises Unavailable: when the database is unavailable, or no connection is free in time.
    """
    async with database.reading(timeout) as conn:
        await conn.execute(LOCK_LEDGER)
        yield conn


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the operator sees it.

    ``cost_usd`` is a decimal string, null when unknown. Corrections and credits name the call that
    they amend in ``amends_id``. ``end_user`` is the hex digest of a name. ``counted_at`` is the
    time of settlement, which reports and limits use.
    """

    id: UUID
    kind: str
    amends_id: UUID | None
    api_key_id: UUID | None
    end_user: str | None
    request_id: str | None
    endpoint: str | None
    model: str | None
    requested_model: str | None
    is_stream: bool | None
    outcome: str | None
    status: int | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    cost_usd: str | None
    cost_source: str
    bound_usd: str | None
    bound_tokens: int | None
    price_version: int | None
    upstream_request_id: str | None
    first_byte_ms: int | None
    duration_ms: int | None
    tags: dict[str, str] | None
    note: str | None
    counted_at: datetime | None
    created_at: datetime


async def find_entry(database: Database, organization_id: UUID, entry_id: UUID) -> LedgerEntry:
    """Return one entry.

    :raises NotFound: when the organization has no entry with this id.
    """
    row = await database.fetchrow(FIND_ENTRY, organization_id, entry_id)
    if row is None:
        raise NotFound("There is no such entry in the ledger.")
    return _entry(row)


async def find_owner(database: Database, entry_id: UUID) -> UUID:
    """Return the id of the organization that has the entry.

    :raises NotFound: when there is no such entry, or its month was dropped.
    """
    owner: UUID | None = await database.fetchval(FIND_OWNER, entry_id)
    if owner is None:
        raise NotFound("There is no such entry in the ledger.", param="entry_id")
    return owner


class Job(NamedTuple):
    """A job in Venice's queue: the entry that charged it, and the operator's key that queued it."""

    call_id: UUID
    upstream_key_id: UUID | None


async def find_job(database: Database, organization_id: UUID, queue_id: str) -> Job:
    """Find a job that the organization queued, by Venice's id.

    :raises NotFound: when it queued no job with this id.
    :raises Unavailable: when the answer is unknown, because the database is unavailable or a call
        that may have queued the job is not settled yet.
    """
    row = await database.fetchrow(FIND_JOB, organization_id, queue_id)
    if row is None:
        has_pending_call = await database.fetchval(HAS_PENDING_CALL, organization_id, queue_id)
        # Read again, because the call may have been settled between the two statements.
        row = await database.fetchrow(FIND_JOB, organization_id, queue_id)
        if row is None and has_pending_call:
            raise Unavailable(
                "queue_id: the job is not recorded yet. Retry in a second.", retry_after_s=1
            )
    if row is None:
        raise NotFound("queue_id: your organization queued no job with this id.", param="queue_id")
    return Job(**row)


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger entry about a queued job whose cost is known.

    ``upstream_request_id`` is Venice's id of the job, and ``counted_at`` is when the entry was
    written.
    """

    id: UUID
    organization_id: UUID
    call_id: UUID
    api_key_id: UUID
    endpoint: str
    model: str
    upstream_key_id: UUID | None
    upstream_request_id: str
    counted_at: datetime


async def list_jobs(
    database: Database, after: datetime, after_id: UUID, limit: int
) -> Sequence[QueuedJob]:
    """List the jobs of all organizations recorded after a time and entry, oldest first."""
    rows = await database.fetch(LIST_JOBS, after, after_id, limit)
    return [QueuedJob(**row) for row in rows]


def facts_of(row: Any) -> dict[str, Any]:
    """Return the members of a :class:`LedgerEntry` from a row with ``COLUMNS``, and all others as
    they are."""
    facts = dict(row)
    tags = facts["tags"]
    return {
        **{name: facts[name] for name in facts if not name.endswith("_nanos")},
        "cost_usd": _usd(facts["cost_nanos"]),
        "bound_usd": _usd(facts["bound_nanos"]),
        "tags": None if tags is None else msgspec.json.decode(tags),
    }


def _entry(row: Any) -> LedgerEntry:
    return LedgerEntry(**facts_of(row))


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else money.format_usd(nanos)
