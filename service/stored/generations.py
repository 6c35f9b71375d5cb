"""Queued jobs at Venice, followed until their outcome is known.

Venice charges a job when it is queued and refunds it if it fails later, but reports this only when
asked. So we poll each job, at growing intervals, for as long as Venice knows its id.
"""

import enum
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from service.database.database import Database

LIFETIME: Final = timedelta(hours=24)
"""How long Venice remembers a job."""
RETENTION: Final = timedelta(days=3)
"""How long a row is kept: longer than the ledger is searched for the job."""
FIRST_POLL: Final = timedelta(seconds=60)
MAX_BETWEEN_POLLS: Final = timedelta(minutes=30)

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
# A claimed job becomes due again after a quarter of its age. If the claiming process dies, no other
# lease is needed.
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
    """The outcome of a job."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    """Venice no longer knows the job."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A job that Venice has queued.

    ``id`` is the id of the ledger entry that charged it, ``path`` the endpoint it was queued at,
    and ``upstream_reference`` Venice's id.
    """

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
    """True once Venice no longer knows the job, by the database's clock."""


async def follow(database: Database, generations: Sequence[Generation]) -> None:
    """Start polling these jobs. Jobs that are already followed are left unchanged."""
    if generations:
        encoded = msgspec.json.encode(generations).decode()
        await database.fetch(FOLLOW, encoded, FIRST_POLL, RETENTION)


async def claim(database: Database, limit: int) -> Sequence[Generation]:
    """Claim the due jobs for this replica, longest due first."""
    rows = await database.fetch(CLAIM, limit, FIRST_POLL, MAX_BETWEEN_POLLS, LIFETIME)
    return [Generation(**row) for row in rows]


async def finish(database: Database, generation: Generation, status: GenerationStatus) -> None:
    """Record a job's outcome and stop polling it."""
    await database.fetch(FINISH, generation.organization_id, generation.id, status.value)


async def forget(database: Database) -> None:
    """Delete the rows of jobs that expired long ago."""
    await database.fetch(FORGET)
