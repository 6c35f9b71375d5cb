"""Searches the keys of callers, of one organization or of all."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from service import crypto
from service.accounts import Role
from service.database.database import Database

FIRST_ID: Final = UUID(int=0)

# The alphabet of keys ends before the tilde.
SEARCH: Final = """
    SELECT k.id, k.organization_id, o.name AS organization_name, k.name, k.role, k.prefix,
           k.allowed_models AS models, k.expires_at, k.revoked_at, k.last_used_at, k.created_at
    FROM public.api_keys k
    JOIN public.organizations o ON o.id = k.organization_id
    WHERE k.id > $4
      AND ($1::uuid IS NULL OR k.organization_id = $1)
      AND ($2::text IS NULL
           OR (k.prefix COLLATE "C" >= $2 AND k.prefix COLLATE "C" < $2 || '~'))
      AND ($3::text IS NULL
           OR strpos(lower(k.name), lower($3)) > 0
           OR strpos(lower(o.name), lower($3)) > 0)
    ORDER BY k.id
    LIMIT $5
"""


class FoundKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key with the name of its organization; never the key itself.

    ``models`` is null for a key that may use all. ``last_used_at`` is null for one that was never
    used.
    """

    id: UUID
    organization_id: UUID
    organization_name: str
    name: str
    role: Role
    prefix: str
    models: list[str] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


async def search(
    database: Database,
    organization_id: UUID | None,
    prefix: str | None,
    text: str | None,
    after: UUID | None,
    limit: int,
) -> Sequence[FoundKey]:
    """List the keys that begin with ``prefix``, and whose name or organization's name contains
    ``text`` in any case, oldest first, after the given one. Of a whole key only the beginning is
    compared.

    :raises Unavailable: when the database does not answer in time.
    """
    beginning = prefix[: crypto.API_KEY_PREFIX_LENGTH] if prefix else None
    rows = await database.fetch(
        SEARCH, organization_id, beginning, text or None, after or FIRST_ID, limit
    )
    return [FoundKey(**row) for row in rows]
