"""Reading the ledger."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service import money
from service.db import Database
from service.errors import NotFound

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
      AND id < $2
    ORDER BY id DESC
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
FIND_JOB_KEY: Final = """
    SELECT upstream_key_id
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND upstream_request_id = $2
      AND endpoint LIKE '%/queue'
    ORDER BY id DESC
    LIMIT 1
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
    database: Database, organization_id: UUID, before: UUID, limit: int
) -> Sequence[LedgerEntry]:
    """Entries by the time their call was admitted, newest first, older than the one given."""
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


async def find_job_key(database: Database, organization_id: UUID, queue_id: str) -> UUID | None:
    """The operator's key that a job of the organization was queued with, by Venice's id of it."""
    key_id: UUID | None = await database.fetchval(FIND_JOB_KEY, organization_id, queue_id)
    return key_id


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
