"""Who changed what: one hash chain per organization, from the first change on.

Each event's hash covers the hash before it, so a row that is altered, dropped or slipped in breaks
the chain at its place.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from service.database.database import Database
from service.ids import uuid7

CHAIN_PAGE: Final = 1000
OPERATOR_ORGANIZATION_ID: Final = UUID(int=0)
"""The organization of the operator, made by the first migration."""

# The row lock on the organization orders the events of its chain. Rows that refer to the
# organization, as a new limit does, are let through.
LOCK_HEAD: Final = """
    SELECT audit_sequence, audit_head
    FROM public.organizations
    WHERE id = $1
    FOR NO KEY UPDATE
"""
# jsonb has one way to write a number, and no negative zero.
AS_STORED: Final = "SELECT $1::text::jsonb::text AS detail, clock_timestamp() AS now"
INSERT_EVENT: Final = """
    INSERT INTO public.audit_events (
        organization_id, sequence, id, actor, action, target, detail, request_id, created_at,
        previous_hash, hash
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $11)
"""
READ_CHAIN: Final = """
    SELECT organization_id, sequence, id, actor, action, target, detail::text AS detail, request_id,
           created_at, previous_hash, hash
    FROM public.audit_events
    WHERE organization_id = $1
      AND sequence > $2
    ORDER BY sequence
    LIMIT $3
"""
LIST_EVENTS: Final = """
    SELECT sequence, id, actor, action, target, detail::text AS detail, request_id, created_at
    FROM public.audit_events
    WHERE organization_id = $1
      AND sequence < $2
    ORDER BY sequence DESC
    LIMIT $3
"""
READ_HEAD: Final = """
    SELECT audit_sequence, audit_head
    FROM public.organizations
    WHERE id = $1
"""
MOVE_HEAD: Final = """
    UPDATE public.organizations
    SET audit_sequence = $2, audit_head = $3
    WHERE id = $1
"""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts, for the audit: ``operator``, ``command-line``, ``api_key:<id>``, ``retention``
    for what a setting asks for, or ``rialto`` for what the service finds out itself."""

    name: str
    request_id: str | None = None
    is_administrator: bool = False
    """Whether it administers one organization only, where it may not loosen what the operator
    set."""

    @property
    def set_by(self) -> Literal["operator", "administrator"]:
        """The value of ``set_by`` for what it sets."""
        return "administrator" if self.is_administrator else "operator"


RIALTO: Final = Actor(name="rialto")


async def lock(conn: Any, organization_id: UUID) -> None:
    """Keep every other change that is audited waiting, until the transaction ends. It comes before
    all other locks of the transaction."""
    await conn.fetchrow(LOCK_HEAD, organization_id)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, as it stands in the chain."""

    sequence: int
    id: UUID
    actor: str
    action: str
    target: str
    detail: Any
    request_id: str | None
    created_at: datetime


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
    # The digest covers the value as it will be read back, not as it was given.
    row = await conn.fetchrow(AS_STORED, msgspec.json.encode(detail or {}).decode())
    event_id, stored, created_at = uuid7(), row["detail"], row["now"]
    fields = (
        str(organization_id),
        sequence,
        str(event_id),
        actor.name,
        action,
        target,
        msgspec.json.decode(stored),
        actor.request_id,
        created_at.astimezone(UTC).isoformat(timespec="microseconds"),
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
        stored,
        actor.request_id,
        created_at,
        head["audit_head"],
        event_hash,
    )
    await conn.execute(MOVE_HEAD, organization_id, sequence, event_hash)


async def list_events(
    database: Database, organization_id: UUID, before: int, limit: int
) -> Sequence[Event]:
    """An organization's events, newest first, before the sequence number given."""
    rows = await database.fetch(LIST_EVENTS, organization_id, before, limit)
    return [Event(**{**row, "detail": msgspec.json.decode(row["detail"])}) for row in rows]


async def first_break(database: Database, organization_id: UUID) -> int | None:
    """The sequence number at which the organization's chain breaks, or None if it is whole: no
    event altered, dropped or slipped in, and none missing at its end."""
    head = await database.fetchrow(READ_HEAD, organization_id)
    sequence, previous_hash = 0, None
    while events := await database.fetch(READ_CHAIN, organization_id, sequence, CHAIN_PAGE):
        for event in events:
            sequence += 1
            if event["sequence"] != sequence or not is_whole(event, previous_hash):
                return sequence
            previous_hash = event["hash"]
    # Events that came since the head was read are no break; events that the head has seen and that
    # are gone are one.
    return sequence + 1 if sequence < head["audit_sequence"] else None


def is_whole(event: Any, previous_hash: bytes | None) -> bool:
    """Whether the event, a row as it is stored, is unaltered and follows the event with the hash
    ``previous_hash``; None for the first of a chain."""
    fields = (
        str(event["organization_id"]),
        event["sequence"],
        str(event["id"]),
        event["actor"],
        event["action"],
        event["target"],
        msgspec.json.decode(event["detail"]),
        event["request_id"],
        event["created_at"].astimezone(UTC).isoformat(timespec="microseconds"),
    )
    follows: bool = event["previous_hash"] == previous_hash
    return follows and event["hash"] == event_digest(previous_hash, fields)


def event_digest(previous_hash: bytes | None, fields: tuple[Any, ...]) -> bytes:
    """SHA-256 over the previous hash and the event's fields as JSON with sorted keys."""
    encoded = msgspec.json.encode(fields, order="sorted")
    return hashlib.sha256((previous_hash or b"") + encoded).digest()
