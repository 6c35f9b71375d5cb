"""Reading the ledger."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from service import money
from service.database.connections import Database
from service.errors import NotFound, Unavailable

# ruff: noqa: S608 - statements are put together from constants
COLUMNS: Final = """
    id, kind, amends_id, api_key_id, encode(end_user, 'hex') AS end_user, request_id, endpoint,
    model, requested_model, is_stream, outcome, status, input_tokens, cached_input_tokens,
    output_tokens,
    cost_nanos, cost_source, bound_nanos, bound_tokens, price_version, upstream_request_id,
    first_byte_ms, duration_ms, tags::text AS tags, note, counted_at, created_at
"""
LIST_ENTRIES: Final = f"""
    SELECT {COLUMNS}
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND (counted_at, id) < (
          CASE WHEN $2::uuid IS NULL THEN 'infinity'
               ELSE (SELECT counted_at FROM public.ledger_entries
                     WHERE organization_id = $1 AND id = $2) END,
          coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      )
    ORDER BY counted_at DESC, id DESC
    LIMIT $3
"""
FIND_ENTRY: Final = f"""
    SELECT {COLUMNS}
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id = $2
"""
# The key begins with the organization: one look-up for each is far less than a walk through the
# month, and OFFSET 0 keeps it so.
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
# A call that is still held may have queued the job: its process may have trouble with settling it.
# What the process knows of the call is stored when the lease is renewed.
IS_BEING_BOOKED: Final = """
    SELECT EXISTS (
        SELECT
        FROM public.holds
        WHERE organization_id = $1
          AND endpoint LIKE '%/queue'
          AND (upstream_request_id = $2 OR upstream_request_id IS NULL)
    )
"""
# What a correction says of a job was not known when its call was settled.
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

# Before the snapshot of the transaction is taken: a month that is dropped while this waits is
# gone at once, and what the limits carry of it is only in a snapshot that is taken after that.
LOCK_LEDGER: Final = "LOCK TABLE public.ledger_entries IN ACCESS SHARE MODE"


@contextlib.asynccontextmanager
async def reading_ledger(database: Database, timeout: float) -> AsyncIterator[Any]:
    """A transaction that reads the ledger, and what belongs to it, as of one instant.

    :raises Unavailable: when the database is gone, or nothing is free within the deadline.
    """
    async with database.reading(timeout) as conn:
        await conn.execute(LOCK_LEDGER)
        yield conn


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the operator sees it. ``cost_usd`` is a decimal string, null when unknown;
    corrections and credits name in ``amends_id`` the call whose cost they change. ``end_user`` is
    the hex of the digest of a name; ``counted_at`` is when it was settled, which is the time that
    reports and limits count it in."""

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


async def list_entries(
    database: Database, organization_id: UUID, before: UUID | None, limit: int
) -> Sequence[LedgerEntry]:
    """Entries by the time they were settled, newest first, older than the one of the id ``before``;
    none when there is no such entry."""
    rows = await database.fetch(LIST_ENTRIES, organization_id, before, limit)
    return [_entry(row) for row in rows]


async def find_entry(database: Database, organization_id: UUID, entry_id: UUID) -> LedgerEntry:
    """:raises NotFound: when the organization has none of this id."""
    row = await database.fetchrow(FIND_ENTRY, organization_id, entry_id)
    if row is None:
        raise NotFound("There is no such entry in the ledger.")
    return _entry(row)


async def find_owner(database: Database, entry_id: UUID) -> UUID:
    """The id of the organization that has the entry.

    :raises NotFound: when there is no such entry, or its month is not kept any more.
    """
    owner: UUID | None = await database.fetchval(FIND_OWNER, entry_id)
    if owner is None:
        raise NotFound("There is no such entry in the ledger.", param="entry_id")
    return owner


class Job(NamedTuple):
    """A job in Venice's queue: the entry that it was charged with, and the operator's key."""

    call_id: UUID
    upstream_key_id: UUID | None


async def find_job(database: Database, organization_id: UUID, queue_id: str) -> Job:
    """The job that the organization queued, by Venice's id of it.

    :raises NotFound: when it queued none of this id.
    :raises Unavailable: when that is not known now: the database is gone, or a call that may be
        the one that queued the job is not in the books yet.
    """
    row = await database.fetchrow(FIND_JOB, organization_id, queue_id)
    if row is None:
        is_being_booked = await database.fetchval(IS_BEING_BOOKED, organization_id, queue_id)
        # Read again: it may have been booked between the two.
        row = await database.fetchrow(FIND_JOB, organization_id, queue_id)
        if row is None and is_being_booked:
            raise Unavailable("queue_id: the job is not in the books yet.", retry_after_s=1)
    if row is None:
        raise NotFound("queue_id: your organization has queued no such job.", param="queue_id")
    return Job(**row)


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says of a job whose cost is known: ``id`` is the entry's that says it,
    ``upstream_request_id`` Venice's of the job, ``counted_at`` when that was booked."""

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
    """The jobs that were booked after a time and an entry of that time, of every organization,
    oldest first."""
    rows = await database.fetch(LIST_JOBS, after, after_id, limit)
    return [QueuedJob(**row) for row in rows]


def _entry(row: Any) -> LedgerEntry:
    facts = dict(row)
    tags = facts.pop("tags")
    return LedgerEntry(
        **{name: facts[name] for name in facts if not name.endswith("_nanos")},
        cost_usd=_usd(facts["cost_nanos"]),
        bound_usd=_usd(facts["bound_nanos"]),
        tags=None if tags is None else msgspec.json.decode(tags),
    )


def _usd(nanos: int | None) -> str | None:
    return None if nanos is None else money.format_usd(nanos)
