"""Lists the calls in flight: what callers wait for now, and what is held for them."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from service import money
from service.database.database import Database

FIRST_ID: Final = UUID(int=0)

LIST_HOLDS: Final = """
    SELECT h.id, h.organization_id, o.name AS organization_name, h.api_key_id,
           k.name AS key_name, k.prefix AS key_prefix, encode(h.end_user, 'hex') AS end_user,
           h.request_id, h.endpoint, h.model, h.requested_model, h.is_stream,
           h.bound_nanos, h.bound_tokens AS held_tokens, h.process_id,
           greatest(0, extract(epoch FROM clock_timestamp() - h.created_at))::float8 AS age_s
    FROM public.holds h
    LEFT JOIN public.organizations o ON o.id = h.organization_id
    LEFT JOIN public.api_keys k ON k.id = h.api_key_id
    WHERE ($1::uuid IS NULL OR h.organization_id = $1)
      AND h.id > $2
    ORDER BY h.id
    LIMIT $3
"""
COUNT_HOLDS: Final = "SELECT count(*) FROM public.holds"


class OpenCall(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted call that is not settled yet, with the names of its organization and key.

    ``age_s`` is the time since its admission, ``held_usd`` and ``held_tokens`` are its bounds, null
    without a price. ``process_id`` names the process that makes the call. ``end_user`` is the hex
    digest of a name.
    """

    id: UUID
    organization_id: UUID
    organization_name: str | None
    api_key_id: UUID
    key_name: str | None
    key_prefix: str | None
    end_user: str | None
    request_id: str
    endpoint: str
    model: str
    requested_model: str | None
    is_stream: bool
    age_s: float
    held_usd: str | None
    held_tokens: int | None
    process_id: UUID


async def in_flight(
    database: Database, organization_id: UUID | None, limit: int, after: UUID | None = None
) -> Sequence[OpenCall]:
    """List the calls in flight of an organization, or of all, oldest first, after the given one.

    :raises Unavailable: when the database does not answer in time.
    """
    rows = await database.fetch(LIST_HOLDS, organization_id, after or FIRST_ID, limit)
    return [_call(row) for row in rows]


def _call(row: Any) -> OpenCall:
    facts = dict(row)
    nanos = facts.pop("bound_nanos")
    facts["age_s"] = round(facts["age_s"], 3)
    return OpenCall(**facts, held_usd=None if nanos is None else money.format_usd(nanos))


async def count(database: Database) -> int:
    """Count the calls in flight of all organizations."""
    number: int = await database.fetchval(COUNT_HOLDS)
    return number
