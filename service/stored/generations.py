"""Jobs in Venice's queue, followed until it is known what became of them.

A job is charged when it is queued, and refunded when it fails after that; Venice says so only to
those who ask. So each is asked for, less and less often, as long as Venice knows its id.
"""

import enum
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from service.database.connections import Database

LIFETIME: Final = timedelta(hours=24)
"""How long Venice knows a job."""
KEPT: Final = timedelta(days=3)
"""How long a row stays: longer than a job is looked for in the ledger."""
FIRST_POLL: Final = timedelta(seconds=60)
MOST_BETWEEN_POLLS: Final = timedelta(minutes=30)

FOLLOW: Final = """
    INSERT INTO public.generations (
        organization_id, id, api_key_id, kind, call_id, status, next_poll_at, upstream_key_id,
        upstream_reference, metadata, created_at, expires_at
    )
    SELECT organization_id, id, api_key_id, kind, id, 'queued', queued_at + $2, upstream_key_id,
           upstream_reference, jsonb_build_object('path', path, 'model', model), queued_at,
           queued_at + $3
    FROM jsonb_to_recordset($1::jsonb) AS g (
        organization_id uuid, id uuid, api_key_id uuid, kind text, path text, model text,
        upstream_key_id uuid, upstream_reference text, queued_at timestamptz
    )
    ON CONFLICT DO NOTHING
"""
# A job that is claimed is not due again for a quarter of its age: what a process that dies over it
# leaves behind needs no other lease.
CLAIM: Final = """
    UPDATE public.generations g
    SET status = 'in_progress',
        next_poll_at = now() + least($3, greatest($2, (now() - g.created_at) / 4)),
        updated_at = now()
    FROM (
        SELECT d.organization_id, d.id
        FROM public.generations d
        WHERE d.status IN ('queued', 'in_progress')
          AND d.next_poll_at <= now()
        ORDER BY d.next_poll_at
        LIMIT $1
        FOR UPDATE SKIP LOCKED
    ) due
    WHERE g.organization_id = due.organization_id
      AND g.id = due.id
    RETURNING g.organization_id, g.id, g.api_key_id, g.kind, g.metadata ->> 'path' AS path,
              g.metadata ->> 'model' AS model, g.upstream_key_id, g.upstream_reference,
              g.created_at AS queued_at, now() - g.created_at > $4 AS is_forgotten
"""
FINISH: Final = """
    UPDATE public.generations
    SET status = $3, next_poll_at = NULL, updated_at = now()
    WHERE organization_id = $1
      AND id = $2
"""
FORGET: Final = "DELETE FROM public.generations WHERE expires_at < now()"


class GenerationStatus(enum.StrEnum):
    """How a job ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    """Venice does not know it any more."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A job that Venice has queued. ``id`` is that of the entry which it was charged with, ``path``
    the one it was queued at, ``upstream_reference`` Venice's id of it."""

    organization_id: UUID
    id: UUID
    api_key_id: UUID
    kind: str
    path: str
    model: str
    upstream_key_id: UUID | None
    upstream_reference: str
    queued_at: datetime
    is_forgotten: bool = False
    """Whether Venice knows it no more, by the database's clock."""


async def follow(database: Database, generations: Sequence[Generation]) -> None:
    """Have them asked for; those that are followed already are left as they are."""
    if generations:
        encoded = msgspec.json.encode(generations).decode()
        await database.fetch(FOLLOW, encoded, FIRST_POLL, KEPT)


async def claim(database: Database, most: int) -> Sequence[Generation]:
    """The jobs that are due, for this replica alone, longest due first."""
    rows = await database.fetch(CLAIM, most, FIRST_POLL, MOST_BETWEEN_POLLS, LIFETIME)
    return [Generation(**row) for row in rows]


async def finish(database: Database, generation: Generation, status: GenerationStatus) -> None:
    """It is known what became of it: it is asked for no more."""
    await database.fetch(FINISH, generation.organization_id, generation.id, status.value)


async def forget(database: Database) -> None:
    """Delete what was followed long ago."""
    await database.fetch(FORGET)
