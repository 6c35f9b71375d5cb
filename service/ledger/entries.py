"""Reading the ledger."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from service import money
from service.db import Database

LIST_ENTRIES: Final = """
    SELECT id, kind, api_key_id, request_id, endpoint, model, requested_model, is_stream, outcome,
           status, input_tokens, cached_input_tokens, output_tokens, cost_nanos, cost_source,
           first_byte_ms, duration_ms, created_at
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id < $2
    ORDER BY id DESC
    LIMIT $3
"""


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as the operator sees it. ``cost_usd`` is a decimal string, null when unknown."""

    id: UUID
    kind: str
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
    created_at: datetime


async def list_entries(
    database: Database, organization_id: UUID, before: UUID, limit: int
) -> Sequence[LedgerEntry]:
    """Entries by the time their call was admitted, newest first, older than the one given."""
    entries = []
    for row in await database.fetch(LIST_ENTRIES, organization_id, before, limit):
        facts = dict(row)
        nanos = facts.pop("cost_nanos")
        cost_usd = None if nanos is None else money.format_usd(nanos)
        entries.append(LedgerEntry(**facts, cost_usd=cost_usd))
    return entries
