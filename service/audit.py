"""Who changed what: one hash chain per organization, from the first change on.

Each event's hash covers the hash before it, so a row that is altered, dropped or slipped in breaks
the chain at its place.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service.db import uuid7

OPERATOR_ORGANIZATION_ID: Final = UUID(int=0)
"""The organization of the operator, made by the first migration."""

# The row lock on the organization orders the events of its chain.
LOCK_HEAD: Final = """
    SELECT audit_sequence, audit_head
    FROM public.organizations
    WHERE id = $1
    FOR UPDATE
"""
INSERT_EVENT: Final = """
    INSERT INTO public.audit_events (
        organization_id, sequence, id, actor, action, target, detail, request_id, created_at,
        previous_hash, hash
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11)
"""
MOVE_HEAD: Final = """
    UPDATE public.organizations
    SET audit_sequence = $2, audit_head = $3
    WHERE id = $1
"""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts, for the audit: ``operator``, ``command-line`` or ``api_key:<id>``."""

    name: str
    request_id: str | None = None


async def record(
    conn: Any,
    organization_id: UUID,
    actor: Actor,
    action: str,
    target: str,
    detail: dict[str, Any] | None = None,
) -> None:
    """Append an event to the organization's chain, in the transaction that makes the change.

    ``action`` is a noun and a verb (``api_key.create``), ``target`` the id of what changed,
    ``detail`` what can be shown of it; never a secret.
    """
    head = await conn.fetchrow(LOCK_HEAD, organization_id)
    sequence = head["audit_sequence"] + 1
    event_id, created_at = uuid7(), datetime.now(UTC)
    fields = (
        str(organization_id),
        sequence,
        str(event_id),
        actor.name,
        action,
        target,
        detail or {},
        actor.request_id,
        created_at.isoformat(timespec="microseconds"),
    )
    event_hash = event_digest(head["audit_head"], fields)
    await conn.execute(
        INSERT_EVENT,
        organization_id,
        sequence,
        event_id,
        actor.name,
        action,
        target,
        msgspec.json.encode(detail or {}).decode(),
        actor.request_id,
        created_at,
        head["audit_head"],
        event_hash,
    )
    await conn.execute(MOVE_HEAD, organization_id, sequence, event_hash)


def event_digest(previous_hash: bytes | None, fields: tuple[Any, ...]) -> bytes:
    """SHA-256 over the previous hash and the event's fields as JSON with sorted keys."""
    encoded = msgspec.json.encode(fields, order="sorted")
    return hashlib.sha256((previous_hash or b"") + encoded).digest()
