"""What was used, for operators and for callers themselves."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal, cast, get_args
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, ledger
from service.api.auth import (
    authenticate_key,
    authenticate_operator,
    database_of,
    must_administer,
)
from service.api.state import KEYRING
from service.api.wire import IdOrNothing, json_response, path_id, query_text
from service.errors import ClientError
from service.formats.parsing import parse_day, parse_instant
from service.ledger import CONTENT_TYPES, ExportFormat, Group, GroupBy, Limit, Sums

GROUPS: Final[tuple[str, ...]] = get_args(GroupBy)
FORMATS: Final[tuple[str, ...]] = get_args(ExportFormat)


Period = Annotated[str, msgspec.Meta(examples=["2026-11-01", "2026-11-01T08:00:00Z"])]
Tag = Annotated[str, msgspec.Meta(examples=["team=a"])]


class PeriodQuery(msgspec.Struct, kw_only=True):
    """From when on and before when: days or instants; this month until now without them."""

    start: Period | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Period | UnsetType = msgspec.field(name="to", default=UNSET)


class EntriesQuery(PeriodQuery, kw_only=True):
    """Which entries are summed."""

    end_user: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET


class OwnUsageQuery(EntriesQuery, kw_only=True):
    """By what they are summed."""

    group_by: Literal["day", "model", "end_user", "endpoint", "tag"] = "day"


class UsageQuery(EntriesQuery, kw_only=True):
    """By what they are summed, and of which key."""

    group_by: GroupBy = "day"
    api_key_id: IdOrNothing | UnsetType = UNSET


class ExportQuery(PeriodQuery, kw_only=True):
    """What is exported, and how."""

    format: ExportFormat = "csv"


class OwnLimitsQuery(msgspec.Struct):
    """Whose limits, for calls of which model."""

    end_user: str | UnsetType = UNSET
    model: str | UnsetType = UNSET


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


async def usage(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}/usage?group_by=&from=&to=``: sums of the entries of a
    period. ``api_key_id``, ``end_user`` (the plain name), ``model`` and ``tag`` (``name=value``)
    choose among them."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    await accounts.find_organization(database_of(request), organization_id)
    api_key_id = request.query.get("api_key_id")
    try:
        key = UUID(api_key_id) if api_key_id else None
    except ValueError:
        raise ClientError("api_key_id: must be a UUID.", param="api_key_id") from None
    return await _report(request, organization_id, key, GROUPS)


async def own_usage(request: web.Request) -> web.Response:
    """``GET /v1/usage?group_by=&from=&to=&end_user=&model=&tag=``: the sums of the caller's key."""
    caller, key = await authenticate_key(request)
    groups = tuple(name for name in GROUPS if name != "key")
    return await _report(request, caller.organization_id, key, groups)


async def own_limits(request: web.Request) -> web.Response:
    """``GET /v1/limits?end_user=&model=``: the limits that bind the caller's calls."""
    caller, key = await authenticate_key(request)
    name = request.query.get("end_user")
    end_user = caller.end_user_digest(name) if name else b""
    limits = await ledger.list_binding(
        database_of(request), caller.organization_id, key, end_user, query_text(request, "model")
    )
    return json_response(OwnLimits(limits))


async def export(request: web.Request) -> web.StreamResponse:
    """``GET /admin/v1/organizations/{id}/ledger/export?format=csv|jsonl&from=&to=``: the entries of
    a period by when they were settled, oldest first.

    If it cannot go on the connection is broken off, so that no part is taken for the whole.
    """
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    database = database_of(request)
    await accounts.find_organization(database, organization_id)
    wanted = cast(ExportFormat, _one_of(request, "format", FORMATS, "csv"))
    start, end = await _period(request)
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
    request: web.Request, organization_id: UUID, api_key_id: UUID | None, groups: tuple[str, ...]
) -> web.Response:
    database, query = database_of(request), request.query
    group_by = cast(GroupBy, _one_of(request, "group_by", groups, "day"))
    start, end = await _period(request)
    end_user = None
    if name := query.get("end_user"):
        end_user = await accounts.end_user_digest(
            database, request.app[KEYRING], organization_id, name
        )
    wanted = ledger.Filter(
        start=start,
        end=end,
        api_key_id=api_key_id,
        end_user=end_user,
        model=query_text(request, "model"),
        tag=_tag(query_text(request, "tag")),
    )
    report = await ledger.report(database, organization_id, group_by, wanted)
    return json_response(as_answer(report))


def as_answer(report: ledger.Report) -> Usage:
    """The report with ``from`` and ``to``, as it was asked for."""
    return Usage(**msgspec.structs.asdict(report))


def _one_of(request: web.Request, name: str, known: tuple[str, ...], default: str) -> str:
    value = request.query.get(name, default)
    if value not in known:
        raise ClientError(f"{name}: must be one of {', '.join(known)}.", param=name)
    return value


async def _period(request: web.Request) -> tuple[datetime, datetime]:
    now = await database_of(request).now()
    start = _instant(request, "from", now.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    end = _instant(request, "to", now)
    if start >= end:
        raise ClientError("from: must be before to.", param="from")
    return start, end


def _instant(request: web.Request, name: str, default: datetime) -> datetime:
    text = request.query.get(name)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        return parse_day(text)
    with contextlib.suppress(ValueError):
        # A plus sign that was not encoded arrives as a space.
        return parse_instant(text.replace(" ", "+"))
    raise ClientError(
        f"{name}: must be a day, as 2026-11-01, or a time and zone, as 2026-11-01T08:00:00Z, of the"
        " years 1 to 9999 in UTC.",
        param=name,
    )


def _tag(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise ClientError("tag: must be name=value.", param="tag")
    return name, value
