"""Queries on refusals."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service.database.database import Database

LIST: Final = """
    SELECT r.id, r.refused_at, r.request_id, r.method, r.route, r.status, r.code, r.message,
           r.param, r.organization_id, o.name AS organization_name, r.api_key_id,
           k.name AS key_name, r.key_prefix, encode(r.end_user, 'hex') AS end_user, r.endpoint,
           r.model, r.requested_model, r.is_stream, r.limit_state::text AS "limit",
           r.retry_after_s, r.repeats
    FROM derived.refusals r
    LEFT JOIN public.organizations o ON o.id = r.organization_id
    LEFT JOIN public.api_keys k ON k.id = r.api_key_id
    WHERE {conditions}
    ORDER BY r.id DESC
    LIMIT $1
"""
COUNT: Final = """
    SELECT r.code, r.status, sum(1 + r.repeats)::bigint AS count, max(r.refused_at) AS last_at
    FROM derived.refusals r
    WHERE {conditions}
    GROUP BY r.code, r.status
    ORDER BY count DESC, r.code, r.status
"""
# Ids are UUIDv7, so the primary key and each index find a period.
CONDITIONS: Final = {
    "refusal_id": "r.id = {}",
    "before": "r.id < {}",
    "request_id": "r.request_id = {}",
    "organization_id": "r.organization_id = {}",
    "api_key_id": "r.api_key_id = {}",
    "code": "r.code = {}",
    "status": "r.status = {}",
    "model": "{} IN (r.model, r.requested_model)",
    "start": "r.id >= public.uuid7_floor({})",
    "end": "r.id < public.uuid7_floor({})",
}
"""The condition of each field of a filter. A statement has only those that are asked for, so that
an index serves it."""
MAX_CAUSES: Final = 1_000


class RefusalFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The refusals to list; None for any. ``model`` is the model's own name or the caller's name
    for it. Those from ``start`` to before ``end`` are listed."""

    organization_id: UUID | None = None
    api_key_id: UUID | None = None
    code: str | None = None
    status: int | None = None
    model: str | None = None
    request_id: str | None = None
    refusal_id: UUID | None = None
    start: datetime | None = None
    end: datetime | None = None


class RefusalLine(msgspec.Struct, frozen=True, kw_only=True):
    """A refused request.

    Without a known key there is no organization, and ``key_prefix`` is the beginning of what was
    shown, if it had the form of a key. ``end_user`` is the hex digest of a name. ``limit`` is the
    limit that refused, with the numbers that the caller got. ``repeats`` is how many more refusals
    of the same key or address and code came within the same second and are not listed.
    """

    id: UUID
    refused_at: datetime
    request_id: str
    method: str
    route: str
    status: int
    code: str
    message: str
    param: str | None
    organization_id: UUID | None
    organization_name: str | None
    api_key_id: UUID | None
    key_name: str | None
    key_prefix: str | None
    end_user: str | None
    endpoint: str | None
    model: str | None
    requested_model: str | None
    is_stream: bool | None
    limit: dict[str, Any] | None
    retry_after_s: int | None
    repeats: int


class RefusalPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of refusals, newest first; ``next`` is null on the last."""

    refusals: Sequence[RefusalLine]
    next: UUID | None


class CauseCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often requests were refused with a code and status, and when last."""

    code: str
    status: int
    count: int
    last_at: datetime


async def list_refusals(
    database: Database, wanted: RefusalFilter, before: UUID | None, limit: int
) -> RefusalPage:
    """List refusals, newest first, that came before the refusal ``before``.

    :raises Unavailable: when the database does not answer in time.
    """
    conditions, arguments = _conditions(wanted, before, first=2)
    rows = await database.fetch(LIST.format(conditions=conditions), limit, *arguments)
    refusals = [_line(row) for row in rows]
    return RefusalPage(
        refusals=refusals, next=refusals[-1].id if refusals and len(refusals) == limit else None
    )


async def count_by_cause(
    database: Database, organization_id: UUID | None, start: datetime, end: datetime
) -> Sequence[CauseCount]:
    """Count the refusals of a period by their causes, most frequent first; those of all
    organizations and of strangers if ``organization_id`` is None.

    :raises Unavailable: when the database does not answer in time.
    """
    wanted = RefusalFilter(organization_id=organization_id, start=start, end=end)
    conditions, arguments = _conditions(wanted, None, first=1)
    rows = await database.fetch(COUNT.format(conditions=conditions), *arguments)
    return [CauseCount(**row) for row in rows[:MAX_CAUSES]]


def _conditions(wanted: RefusalFilter, before: UUID | None, first: int) -> tuple[str, list[Any]]:
    """Return the conditions of a filter, with arguments from ``$first`` on, and the arguments."""
    stated = {**msgspec.structs.asdict(wanted), "before": before}
    values = {name: value for name, value in stated.items() if value is not None}
    conditions = [
        CONDITIONS[name].format(f"${number}") for number, name in enumerate(values, start=first)
    ]
    return " AND ".join(conditions) or "true", list(values.values())


def _line(row: Any) -> RefusalLine:
    facts = dict(row)
    limit = facts.pop("limit")
    return RefusalLine(**facts, limit=None if limit is None else msgspec.json.decode(limit))
