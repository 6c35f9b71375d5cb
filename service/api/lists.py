"""Lists over an organization or all of them: ledger entries, calls in flight, limits that are near
their end, keys. An administrator gets its own organization's only."""

from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar, Final, get_args
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from service import accounts, money
from service.api.operations import Operation
from service.api.queries import (
    PAGE,
    Json,
    Moment,
    PageLimit,
    PageQuery,
    QueryValue,
    Tag,
    Text,
)
from service.api.state import KEYRING
from service.errors import ClientError
from service.formats.parsing import parse_decimal
from service.ledger import EntryKind, Outcome
from service.reports import calls, entries, keys, standings
from service.reports.calls import OpenCall
from service.reports.entries import EntryFilter, EntryPage
from service.reports.keys import FoundKey
from service.reports.standings import Standing


class OutcomeName(QueryValue):
    """How a call ended. An empty one counts as absent."""

    schema: ClassVar[Json] = {"type": "string", "enum": ["", *Outcome]}

    def __init__(self, text: str) -> None:
        if text not in self.schema["enum"]:
            raise ValueError(f"must be one of {', '.join(Outcome)}")
        self.name = text or None


class KindName(QueryValue):
    """A kind of entry. An empty one counts as absent."""

    schema: ClassVar[Json] = {"type": "string", "enum": ["", *get_args(EntryKind)]}

    def __init__(self, text: str) -> None:
        if text not in self.schema["enum"]:
            raise ValueError(f"must be one of {', '.join(get_args(EntryKind))}")
        self.name = text or None


class Usd(QueryValue):
    """An amount of US dollars. An empty one counts as absent."""

    schema: ClassVar[Json] = {
        "type": "string",
        "pattern": r"^$|^-?[0-9]{1,40}(\.[0-9]{1,40})?$",
        "examples": ["0.25"],
    }

    def __init__(self, text: str) -> None:
        self.nanos = money.parse_usd(text) if text else None


class Share(QueryValue):
    """A part of a whole."""

    schema: ClassVar[Json] = {
        "type": "string",
        "pattern": r"^(0(\.[0-9]{1,40})?|1(\.0{1,40})?)$",
        "examples": ["0.8"],
    }

    def __init__(self, text: str) -> None:
        try:
            share = parse_decimal(text)
        except ValueError:
            share = Decimal(-1)
        if not 0 <= share <= 1:
            raise ValueError("must be a number from 0 to 1, such as 0.8")
        self.value = float(share)


NEAR: Final = Share("0.8")


class SearchQuery(msgspec.Struct, kw_only=True):
    """The entries to find, and the page of them. ``after`` is the ``next`` of the page before;
    ``key`` is an id, a prefix or a name."""

    limit: PageLimit = PAGE
    after: Text | UnsetType = UNSET
    start: Moment | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Moment | UnsetType = msgspec.field(name="to", default=UNSET)
    request_id: Text | UnsetType = UNSET
    key: Text | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    outcome: OutcomeName | UnsetType = UNSET
    endpoint: Text | UnsetType = UNSET
    end_user: str | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    cost_over: Usd | UnsetType = UNSET
    kind: KindName | UnsetType = UNSET


class LedgerQuery(SearchQuery, kw_only=True):
    """The same of any organization, by its id or name."""

    organization: Text | UnsetType = UNSET


class CallsQuery(PageQuery, kw_only=True):
    """A page of calls, optionally of one organization, by its id or name."""

    organization: Text | UnsetType = UNSET


class NearQuery(msgspec.Struct, kw_only=True):
    """The share from which a limit is near its end, optionally of one organization, by its id or
    name."""

    near: Share | UnsetType = UNSET
    limit: PageLimit = PAGE
    organization: Text | UnsetType = UNSET


class KeysQuery(PageQuery, kw_only=True):
    """A page of keys: by how they begin, by a part of their or their organization's name, or of one
    organization, by its id or name."""

    prefix: Text | UnsetType = UNSET
    q: Text | UnsetType = UNSET
    organization: Text | UnsetType = UNSET


class Calls(msgspec.Struct):
    """A page of calls in flight; ``next`` is null on the last."""

    calls: Sequence[OpenCall]
    next: UUID | None


class Standings(msgspec.Struct):
    """The limits that are near their end, nearest first. ``is_cut`` is true if there are more."""

    limits: Sequence[Standing]
    is_cut: bool


class FoundKeys(msgspec.Struct):
    """A page of keys; ``next`` is null on the last."""

    keys: Sequence[FoundKey]
    next: UUID | None


async def search_ledger(operation: Operation) -> EntryPage:
    """``GET /admin/v1/ledger?organization=&request_id=&key=&model=&outcome=&…``: find ledger
    entries, newest first. A page may be short or empty and have a ``next``, because a search looks
    at 3,000 entries of one organization, or 10,000 of all, at a time. ``request_id`` is found at
    any time."""
    query = operation.read_query(LedgerQuery)
    return await _search(operation, await operation.stated_organization(query.organization), query)


async def list_ledger(operation: Operation) -> EntryPage:
    """``GET /admin/v1/organizations/{id}/ledger?limit=&after=&…``: list the ledger of an
    organization, newest first. The other parameters are those of ``GET /admin/v1/ledger``."""
    organization_id = await operation.administered_organization()
    return await _search(operation, organization_id, operation.read_query(SearchQuery))


async def list_calls(operation: Operation) -> Calls:
    """``GET /admin/v1/calls?organization=&limit=&after=``: list the calls in flight, oldest first,
    with what is held for each."""
    query = operation.read_query(CallsQuery)
    organization_id = await operation.stated_organization(query.organization)
    found = await calls.in_flight(operation.database, organization_id, query.limit, query.after_id)
    return Calls(found, found[-1].id if len(found) == query.limit else None)


async def list_near_limits(operation: Operation) -> Standings:
    """``GET /admin/v1/limits?near=0.8&organization=&limit=``: list the limits of which at least
    this share is used or held, nearest to their end first."""
    query = operation.read_query(NearQuery)
    organization_id = await operation.stated_organization(query.organization)
    share = NEAR if query.near is UNSET else query.near
    found = await standings.near(operation.database, organization_id, share.value, query.limit + 1)
    return Standings(found[: query.limit], len(found) > query.limit)


async def search_keys(operation: Operation) -> FoundKeys:
    """``GET /admin/v1/keys?prefix=&q=&organization=&limit=&after=``: find keys by how they begin,
    or by a part of their or their organization's name; oldest first."""
    query = operation.read_query(KeysQuery)
    organization_id = await operation.stated_organization(query.organization)
    found = await keys.search(
        operation.database,
        organization_id,
        query.prefix or None,
        query.q or None,
        query.after_id,
        query.limit,
    )
    return FoundKeys(found, found[-1].id if len(found) == query.limit else None)


async def _search(
    operation: Operation, organization_id: UUID | None, query: SearchQuery
) -> EntryPage:
    start = None if query.start is UNSET else query.start.at
    end = None if query.end is UNSET else query.end.at
    if start is not None and end is not None and start >= end:
        raise ClientError("from: must be before to.", param="from")
    end_user = None
    if query.end_user:
        if organization_id is None:
            raise ClientError(
                "end_user: needs organization, because each has its own record of a name.",
                param="end_user",
            )
        end_user = await accounts.end_user_digest(
            operation.database, operation.app[KEYRING], organization_id, query.end_user
        )
    wanted = EntryFilter(
        organization_id=organization_id,
        api_key_id=await operation.find_key(query.key, organization_id) if query.key else None,
        request_id=query.request_id or None,
        model=query.model or None,
        outcome=None if query.outcome is UNSET else query.outcome.name,
        endpoint=query.endpoint or None,
        end_user=end_user,
        tag=None if query.tag is UNSET else query.tag.pair,
        cost_over_nanos=None if query.cost_over is UNSET else query.cost_over.nanos,
        kind=None if query.kind is UNSET else query.kind.name,
        start=start,
        end=end,
    )
    return await entries.search(operation.database, wanted, query.after or None, query.limit)
