"""Who changed what: the audit events of one organization or of all, with the names of those that
took part and the proof of each event's place in its chain."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec

from service import audit
from service.accounts import find_key_id
from service.database.database import Database
from service.errors import ClientError, NotFound

WINDOW_OF_ONE: Final = 100_000
WINDOW_OF_EACH: Final = 500
"""How many events a search reads at most: of one organization, and of each where all are asked
for."""
OTHER_ACTORS: Final = ("operator", "command-line", "retention", "rialto")
KEY_ACTOR: Final = "api_key:"
"""Begins the name of a key as an actor, before its id."""
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Within an organization the newest events are found by the primary key. OFFSET 0 keeps the planner
# from moving the conditions into the window.
SEARCH_EVENTS: Final = """
    WITH found AS (
        SELECT o.name AS organization_name, o.audit_sequence, o.audit_head,
               e.organization_id, e.sequence, e.id, e.actor, e.action, e.target, e.detail,
               e.request_id, e.created_at, e.previous_hash, e.hash,
               CASE WHEN e.actor ~ '^api_key:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    THEN substr(e.actor, 9)::uuid END AS actor_key_id,
               CASE WHEN e.target ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    THEN e.target::uuid END AS target_id
        FROM public.organizations o
        CROSS JOIN LATERAL (
            SELECT w.organization_id, w.sequence, w.id, w.actor, w.action, w.target, w.detail,
                   w.request_id, w.created_at, w.previous_hash, w.hash
            FROM (
                SELECT organization_id, sequence, id, actor, action, target, detail, request_id,
                       created_at, previous_hash, hash
                FROM public.audit_events
                WHERE organization_id = o.id
                  AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
                ORDER BY sequence DESC
                LIMIT $8
                OFFSET 0
            ) w
            WHERE ($4::text IS NULL OR w.actor = $4)
              AND ($5::text IS NULL OR starts_with(w.action, $5))
              AND ($6::text IS NULL OR w.target = $6 OR w.detail ->> 'name' = $6)
            ORDER BY w.sequence DESC
            LIMIT $7
        ) e
        WHERE $1::uuid IS NULL OR o.id = $1
        ORDER BY e.created_at DESC, e.id DESC
        LIMIT $7
    )
    SELECT f.organization_name, f.audit_sequence, f.audit_head,
           f.organization_id, f.sequence, f.id, f.actor, f.action, f.target,
           f.detail::text AS detail, f.request_id, f.created_at, f.previous_hash, f.hash,
           f.actor_key_id, actor.name AS actor_name, actor.prefix AS actor_prefix,
           target_key.id AS target_key_id,
           coalesce(target_key.name, target_organization.name, target_upstream.name) AS target_name,
           before.hash AS hash_before
    FROM found f
    LEFT JOIN public.audit_events before
        ON before.organization_id = f.organization_id AND before.sequence = f.sequence - 1
    LEFT JOIN public.api_keys actor
        ON actor.id = f.actor_key_id AND ($9 OR actor.organization_id = f.organization_id)
    LEFT JOIN public.api_keys target_key ON target_key.id = f.target_id
    LEFT JOIN public.organizations target_organization ON target_organization.id = f.target_id
    LEFT JOIN public.upstream_keys target_upstream ON target_upstream.id = f.target_id
    ORDER BY f.created_at DESC, f.id DESC
"""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The events to find. ``action`` is the beginning of one: ``api_key`` finds every change of a
    key. ``target`` is the id of what was changed, or its name when it was made."""

    organization_id: UUID | None = None
    has_operators: bool = True
    """Whether keys of the operator are named too: an administrator does not see them."""
    actor: str | None = None
    action: str | None = None
    target: str | None = None


class EventLine(audit.Event, frozen=True, kw_only=True):
    """An event with names. ``is_whole`` is whether it is unaltered and in its place: it follows the
    stored event before it, and the newest is the head of its organization's chain."""

    organization_id: UUID
    organization_name: str
    actor_key_id: UUID | None
    actor_name: str | None
    actor_prefix: str | None
    target_key_id: UUID | None
    target_name: str | None
    is_whole: bool


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of events; ``next`` is null on the last."""

    events: Sequence[EventLine]
    next: str | None


async def search(
    database: Database, wanted: EventFilter, before: str | None, limit: int
) -> EventPage:
    """Find events, newest first, before those of the page that has ``before`` as its ``next``.

    A search reads the newest 100,000 events of one organization, or 500 of each.

    :raises ClientError: when ``before`` is no such value.
    """
    before_at, before_id = (None, None) if before is None else _read_cursor(before)
    window = WINDOW_OF_EACH if wanted.organization_id is None else WINDOW_OF_ONE
    rows = await database.fetch(
        SEARCH_EVENTS,
        wanted.organization_id,
        before_at,
        before_id,
        wanted.actor or None,
        wanted.action or None,
        wanted.target or None,
        limit + 1,
        window,
        wanted.has_operators,
    )
    events = [_line(row) for row in rows[:limit]]
    return EventPage(events=events, next=_cursor(events[-1]) if len(rows) > limit else None)


async def find_actor(database: Database, text: str, organization_id: UUID | None) -> str:
    """The actor that the text names, as it stands in the events: ``operator``, ``command-line``,
    ``retention``, ``rialto``, or a key by its prefix, name or id. Any other text is itself.

    :raises ClientError: when several keys fit.
    """
    if text in OTHER_ACTORS or text.startswith(KEY_ACTOR):
        return text
    key_id = await _find_key(database, text, organization_id)
    return text if key_id is None else f"{KEY_ACTOR}{key_id}"


async def find_target(database: Database, text: str, organization_id: UUID | None) -> str:
    """The target that the text names: a key's prefix is its id. Any other text is itself.

    :raises ClientError: when several keys fit.
    """
    if not text.startswith("rk_"):
        return text
    key_id = await _find_key(database, text, organization_id)
    return text if key_id is None else str(key_id)


async def _find_key(database: Database, text: str, organization_id: UUID | None) -> UUID | None:
    try:
        return await find_key_id(database, text, organization_id)
    except NotFound:
        return None


def _line(row: Any) -> EventLine:
    is_whole = audit.is_whole(row, row["hash_before"])
    if row["sequence"] >= row["audit_sequence"]:
        is_whole = is_whole and row["hash"] == row["audit_head"]
    names = (field for field in EventLine.__struct_fields__ if field not in ("detail", "is_whole"))
    return EventLine(
        **{name: row[name] for name in names},
        detail=msgspec.json.decode(row["detail"]),
        is_whole=is_whole,
    )


def _cursor(event: EventLine) -> str:
    return f"{(event.created_at - EPOCH) // timedelta(microseconds=1)}.{event.id.hex}"


def _read_cursor(text: str) -> tuple[datetime, UUID]:
    micros, _, event_id = text.partition(".")
    try:
        return EPOCH + timedelta(microseconds=int(micros)), UUID(event_id)
    except (ValueError, OverflowError):
        raise ClientError("before: must be the next of a page.", param="before") from None
