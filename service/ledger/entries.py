"""Reading the ledger."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service import money
from service.db import Database
from service.errors import NotFound

LIST_ENTRIES: Final = """
    SELECT id, kind, amends_id, api_key_id, request_id, endpoint, model, requested_model, is_stream,
           outcome, status, input_tokens, cached_input_tokens, output_tokens, cost_nanos,
           cost_source, first_byte_ms, duration_ms, note, created_at
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id < $2
    ORDER BY id DESC
    LIMIT $3
"""
FIND_ENTRY: Final = """
    SELECT id, kind, amends_id, api_key_id, request_id, endpoint, model, requested_model, is_stream,
           outcome, status, input_tokens, cached_input_tokens, output_tokens, cost_nanos,
           cost_source, first_byte_ms, duration_ms, note, created_at
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


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the operator sees it. ``cost_usd`` is a decimal string, null when unknown;
    corrections and credits name in ``amends_id`` the call whose cost they change."""

    id: UUID
    kind: str
    amends_id: UUID | None
    api_key_id: UUID | None
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
    first_byte_ms: int | None
    duration_ms: int | None
    note: str | None
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


def _entry(row: Any) -> LedgerEntry:
    facts = dict(row)
    nanos = facts.pop("cost_nanos")
    return LedgerEntry(**facts, cost_usd=None if nanos is None else money.format_usd(nanos))
