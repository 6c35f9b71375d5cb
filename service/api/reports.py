"""What was used, for operators and for callers themselves."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.api.auth import authenticate_key, database_of
from service.api.operations import Operation
from service.api.queries import Moment, OptionalId, Tag, Text, id_of, read_query, text_of
from service.api.requests import Request
from service.api.state import KEYRING
from service.api.wire import json_response
from service.errors import ClientError
from service.ledger import CONTENT_TYPES, ExportFormat, Limit
from service.reports.usage import Filter, Group, GroupBy, Report, Sums, report


class PeriodQuery(msgspec.Struct, kw_only=True):
    """From when on and before when: days or instants; this month until now without them."""

    start: Moment | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Moment | UnsetType = msgspec.field(name="to", default=UNSET)


class EntriesQuery(PeriodQuery, kw_only=True):
    """Which entries are summed."""

    end_user: str | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET


class OwnUsageQuery(EntriesQuery, kw_only=True):
    """By what they are summed."""

    group_by: Literal["day", "model", "end_user", "endpoint", "tag", "outcome", "hour"] = "day"


class UsageQuery(EntriesQuery, kw_only=True):
    """By what they are summed, and of which key."""

    group_by: GroupBy = "day"
    api_key_id: OptionalId | UnsetType = UNSET


class AllUsageQuery(UsageQuery, kw_only=True):
    """By what they are summed, and of which organization, by its id or name; of all without it."""

    organization: Text | UnsetType = UNSET


class ExportQuery(PeriodQuery, kw_only=True):
    """What is exported, and how."""

    format: ExportFormat = "csv"


class OwnLimitsQuery(msgspec.Struct):
    """Whose limits, for calls of which model."""

    end_user: str | UnsetType = UNSET
    model: Text | UnsetType = UNSET


class OwnLimits(msgspec.Struct):
    """Every limit that binds."""

    limits: Sequence[Limit]


class Usage(msgspec.Struct, kw_only=True):
    """A report, with the period that it is of."""

    start: datetime = msgspec.field(name="from")
    end: datetime = msgspec.field(name="to")
    group_by: GroupBy
    groups: Sequence[Group]
    is_cut: bool
    total: Sums


async def usage(operation: Operation) -> Usage:
    """``GET /admin/v1/organizations/{id}/usage?group_by=&from=&to=``: sums of the entries of a
    period. ``api_key_id``, ``end_user`` (the plain name), ``model`` and ``tag`` (``name=value``)
    choose among them."""
    organization_id = await operation.administered_organization()
    query = operation.read_query(UsageQuery)
    return await _report(operation.request, organization_id, id_of(query.api_key_id), query)


async def all_usage(operation: Operation) -> Usage:
    """``GET /admin/v1/usage?organization=&group_by=&from=&to=``: the same sums over all
    organizations, or of one by its id or name. An administrator gets its own organization's."""
    query = operation.read_query(AllUsageQuery)
    organization_id = await operation.stated_organization(query.organization)
    return await _report(operation.request, organization_id, id_of(query.api_key_id), query)


async def own_usage(request: Request) -> web.Response:
    """``GET /v1/usage?group_by=&from=&to=&end_user=&model=&tag=``: the sums of the caller's key."""
    caller, key = await authenticate_key(request)
    query = read_query(request, OwnUsageQuery)
    return json_response(await _report(request, caller.organization_id, key, query))


async def own_limits(request: Request) -> web.Response:
    """``GET /v1/limits?end_user=&model=``: the limits that bind the caller's calls."""
    caller, key = await authenticate_key(request)
    query = read_query(request, OwnLimitsQuery)
    end_user = caller.end_user_digest(query.end_user) if query.end_user else b""
    limits = await ledger.list_binding(
        database_of(request), caller.organization_id, key, end_user, text_of(query.model)
    )
    return json_response(OwnLimits(limits))


async def export(operation: Operation) -> web.StreamResponse:
    """``GET /admin/v1/organizations/{id}/ledger/export?format=csv|jsonl&from=&to=``: the entries of
    a period by when they were settled, oldest first.

    If it cannot go on the connection is broken off, so that no part is taken for the whole.
    """
    organization_id = await operation.administered_organization()
    database, request = operation.database, operation.request
    query = operation.read_query(ExportQuery)
    wanted = query.format
    start, end = _period(query, await database.now())
    name = f"ledger-{organization_id}-{start:%Y%m%dT%H%M%SZ}-{end:%Y%m%dT%H%M%SZ}.{wanted}"
    response = web.StreamResponse(
        headers={
            "Content-Type": f"{CONTENT_TYPES[wanted]}; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{name}"',
        }
    )
    await response.prepare(request)
    if request.method == "HEAD":
        # A body would be read as the head of the next answer.
        return response
    async for lines, _ in ledger.export(database, organization_id, wanted, start, end):
        await response.write(lines)
    return response


async def _report(
    request: Request,
    organization_id: UUID | None,
    api_key_id: UUID | None,
    query: UsageQuery | OwnUsageQuery,
) -> Usage:
    database = database_of(request)
    start, end = _period(query, await database.now())
    end_user = None
    if query.end_user:
        if organization_id is None:
            raise ClientError(
                "end_user: needs organization, because each has its own record of a name.",
                param="end_user",
            )
        end_user = await accounts.end_user_digest(
            database, request.app[KEYRING], organization_id, query.end_user
        )
    wanted = Filter(
        start=start,
        end=end,
        api_key_id=api_key_id,
        end_user=end_user,
        model=text_of(query.model),
        tag=None if query.tag is UNSET else query.tag.pair,
    )
    return as_answer(await report(database, organization_id, query.group_by, wanted))


def as_answer(made: Report) -> Usage:
    """The report with ``from`` and ``to``, as it was asked for."""
    return Usage(**msgspec.structs.asdict(made))


def _period(query: PeriodQuery, now: datetime) -> tuple[datetime, datetime]:
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start = month if query.start is UNSET else query.start.at
    end = now if query.end is UNSET else query.end.at
    if start >= end:
        raise ClientError("from: must be before to.", param="from")
    return start, end
