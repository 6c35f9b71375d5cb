"""The names of organizations and keys by their ids, for lists that have only ids."""

from collections.abc import Collection
from typing import Final, Literal
from uuid import UUID

import msgspec

from service.database.database import Database

FIND_NAMES: Final = """
    SELECT 'organization' AS kind, o.id, o.name, NULL AS prefix, o.id AS organization_id
    FROM public.organizations o
    WHERE o.id = ANY ($1::uuid[])
    UNION ALL
    SELECT 'key' AS kind, k.id, k.name, k.prefix, k.organization_id
    FROM public.api_keys k
    WHERE k.id = ANY ($1::uuid[])
"""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """An organization, or a key with its prefix."""

    kind: Literal["organization", "key"]
    id: UUID
    name: str
    prefix: str | None
    organization_id: UUID


async def find(database: Database, ids: Collection[UUID]) -> dict[UUID, Named]:
    """Find the names; ids that are neither an organization's nor a key's are left out."""
    if not ids:
        return {}
    return {row["id"]: Named(**row) for row in await database.fetch(FIND_NAMES, list(ids))}
