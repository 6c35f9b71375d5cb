"""The operator's routes. Every change is audited by the verb that makes it."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final, cast, get_args
from uuid import UUID

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from service import accounts, audit, catalog, ledger
from service.accounts import ApiKey, Caller, Organization, StatedOrganizationSettings
from service.api.auth import (
    authenticate_operator,
    database_of,
    must_administer,
    must_be_operator,
    must_grant_own,
    must_not_outlive,
)
from service.api.state import CALLERS, CATALOG, KEYRING
from service.api.wire import REQUEST_ID, IdOrNothing, json_response, path_id, read_as
from service.audit import Actor
from service.errors import ClientError, Forbidden
from service.formats.parsing import parse_whole

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

FIRST_ID: Final = UUID(int=0)
PAGE: Final = 100
MOST_A_PAGE: Final = 1000
KINDS: Final[tuple[str, ...]] = get_args(catalog.Kind)


class NewOrganization(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/v1/organizations``."""

    name: Name


class OrganizationChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PATCH /admin/v1/organizations/{id}``: settings that replace those it has."""

    settings: StatedOrganizationSettings


class PageQuery(msgspec.Struct, kw_only=True):
    """How many, and after which id: that which ``next`` gave."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_A_PAGE)] = PAGE
    after: IdOrNothing | UnsetType = UNSET


class LimitsQuery(PageQuery, kw_only=True):
    """Also whose: without it all, empty those of calls that name no end user."""

    end_user: str | UnsetType = UNSET


class EventsQuery(msgspec.Struct, kw_only=True):
    """How many, and before which number: that which ``next`` gave."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_A_PAGE)] = PAGE
    before: Annotated[int, msgspec.Meta(ge=1, le=ledger.MOST_COUNT)] | UnsetType = UNSET


class MadeKey(ApiKey, frozen=True, kw_only=True):
    """A new key, with the secret that is shown this once."""

    key: str


class Organizations(msgspec.Struct):
    """A page of organizations; ``next`` is null on the last."""

    organizations: Sequence[Organization]
    next: UUID | None


class Keys(msgspec.Struct):
    """A page of keys; ``next`` is null on the last."""

    keys: Sequence[ApiKey]
    next: UUID | None


class Limits(msgspec.Struct):
    """A page of limits; ``next`` is null on the last."""

    limits: Sequence[ledger.Limit]
    next: UUID | None


class Entries(msgspec.Struct):
    """A page of the books; ``next`` is null on the last."""

    entries: Sequence[ledger.LedgerEntry]
    next: UUID | None


class Events(msgspec.Struct):
    """A page of the audit; ``next`` is null on the last."""

    events: Sequence[audit.Event]
    next: int | None


class ModelsQuery(PageQuery, kw_only=True):
    """Also of which kind: without it both."""

    kind: catalog.Kind | UnsetType = UNSET


class AliasQuery(msgspec.Struct, kw_only=True):
    """Of which organization the alias is: without it, of all."""

    organization_id: IdOrNothing | UnsetType = UNSET


class Names(msgspec.Struct):
    """A page of models and aliases; ``next`` is null on the last."""

    models: Sequence[catalog.ListedName]
    next: UUID | None


async def create_organization(request: web.Request) -> web.Response:
    """``POST /admin/v1/organizations`` → 201: a new organization."""
    caller = await authenticate_operator(request)
    must_be_operator(caller)
    new = await read_as(request, NewOrganization)
    async with database_of(request).transaction() as conn:
        organization = await accounts.create_organization(
            conn, request.app[KEYRING], _actor(request, caller), new.name
        )
    return json_response(organization, 201)


async def list_organizations(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations?limit=&after=``: all of them, oldest first."""
    caller = await authenticate_operator(request)
    must_be_operator(caller)
    limit, after = _page(request, FIRST_ID)
    rows = await accounts.list_organizations(database_of(request), after, limit)
    return json_response(Organizations(rows, _next(rows, limit)))


async def find_organization(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}``: one of them."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    return json_response(await accounts.find_organization(database_of(request), organization_id))


async def change_organization(request: web.Request) -> web.Response:
    """``PATCH /admin/v1/organizations/{id}``: other settings for it."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    change = await read_as(request, OrganizationChange)
    database = database_of(request)
    await accounts.find_organization(database, organization_id)
    async with _changing(request) as conn:
        await accounts.change_organization(
            conn, _actor(request, caller), organization_id, change.settings
        )
    return json_response(await accounts.find_organization(database, organization_id))


async def create_key(request: web.Request) -> web.Response:
    """``POST /admin/v1/organizations/{id}/keys`` → 201: a new key, which is shown this once."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    new = await read_as(request, accounts.NewKey)
    if new.role == "operator" and caller.role != "operator":
        raise Forbidden("Only the operator can make a key of role operator.")
    must_grant_own(caller, new.models)
    must_not_outlive(caller, new.expires_at)
    async with database_of(request).transaction() as conn:
        key, secret = await accounts.create_key(conn, _actor(request, caller), organization_id, new)
    return json_response(MadeKey(**msgspec.structs.asdict(key), key=secret), 201)


async def list_keys(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}/keys?limit=&after=``: its keys, oldest first."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    limit, after = _page(request, FIRST_ID)
    database = database_of(request)
    rows = await accounts.list_keys(database, organization_id, after, limit)
    if not rows:
        await accounts.find_organization(database, organization_id)
    return json_response(Keys(rows, _next(rows, limit)))


async def change_key(request: web.Request) -> web.Response:
    """``PATCH /admin/v1/keys/{id}``: its settings, and what it may use."""
    caller = await authenticate_operator(request)
    database = database_of(request)
    key = await accounts.find_key(database, path_id(request))
    must_administer(caller, key.organization_id)
    change = await read_as(request, accounts.KeyChange)
    if change.models is not UNSET:
        must_grant_own(caller, change.models)
    async with _changing(request) as conn:
        await accounts.change_key(conn, _actor(request, caller), key, change)
    return json_response(await accounts.find_key(database, key.id))


async def revoke_key(request: web.Request) -> web.Response:
    """``DELETE /admin/v1/keys/{id}`` → 204: it is revoked, at once on every replica."""
    caller = await authenticate_operator(request)
    key = await accounts.find_key(database_of(request), path_id(request))
    must_administer(caller, key.organization_id)
    async with _changing(request) as conn:
        await accounts.revoke_key(conn, _actor(request, caller), key)
    return web.Response(status=204)


async def create_limit(request: web.Request) -> web.Response:
    """``POST /admin/v1/organizations/{id}/limits`` → 201: a limit, in force on the next call."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    new = await read_as(request, ledger.NewLimit)
    database = database_of(request)
    await accounts.find_organization(database, organization_id)
    end_user = None
    if new.end_user is not None:
        end_user = await _digest(request, organization_id, new.end_user)
    async with _changing(request) as conn:
        limit_id = await ledger.create_limit(
            conn, _actor(request, caller), organization_id, new, end_user
        )
        await accounts.announce(conn, organization_id)
    return json_response(await ledger.find_limit(database, limit_id), 201)


async def list_limits(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}/limits?limit=&after=&end_user=``: its limits, with
    what is used and held; of one end user those that bind it, an empty one being for calls that
    name none."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    limit, after = _page(request, FIRST_ID)
    database = database_of(request)
    end_user = None
    if (name := request.query.get("end_user")) is not None:
        end_user = await _digest(request, organization_id, name) if name else b""
    rows = await ledger.list_limits(database, organization_id, after, limit, end_user)
    if not rows:
        await accounts.find_organization(database, organization_id)
    return json_response(Limits(rows, _next(rows, limit)))


async def change_limit(request: web.Request) -> web.Response:
    """``PATCH /admin/v1/limits/{id}``: another ceiling, or a raise that ends by itself."""
    caller = await authenticate_operator(request)
    database = database_of(request)
    limit = await ledger.find_limit(database, path_id(request))
    must_administer(caller, limit.organization_id)
    change = await read_as(request, ledger.LimitChange)
    async with database.transaction() as conn:
        await ledger.change_limit(conn, _actor(request, caller), limit, change)
    return json_response(await ledger.find_limit(database, limit.id))


async def delete_limit(request: web.Request) -> web.Response:
    """``DELETE /admin/v1/limits/{id}`` → 204: it binds no call any more."""
    caller = await authenticate_operator(request)
    database = database_of(request)
    limit = await ledger.find_limit(database, path_id(request))
    must_administer(caller, limit.organization_id)
    async with _changing(request) as conn:
        await ledger.delete_limit(conn, _actor(request, caller), limit)
        await accounts.announce(conn, limit.organization_id)
    return web.Response(status=204)


async def list_ledger(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}/ledger?limit=&after=``: its books, newest first."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    limit, after = _page(request, FIRST_ID)
    database = database_of(request)
    before = after if request.query.get("after") else None
    rows = await ledger.list_entries(database, organization_id, before, limit)
    if not rows:
        await accounts.find_organization(database, organization_id)
    return json_response(Entries(rows, _next(rows, limit)))


async def credit(request: web.Request) -> web.Response:
    """``POST /admin/v1/ledger/{id}/credit`` → 201: the entry that gives money of a call back;
    the same again, with its ``id``, changes nothing."""
    caller = await authenticate_operator(request)
    must_be_operator(caller)
    entry_id = path_id(request)
    new = await read_as(request, ledger.NewCredit)
    database = database_of(request)
    organization_id = await ledger.find_owner(database, entry_id)
    async with database.transaction() as conn:
        credit_id = await ledger.credit(
            conn, _actor(request, caller), organization_id, entry_id, new
        )
    return json_response(await ledger.find_entry(database, organization_id, credit_id), 201)


async def list_audit_events(request: web.Request) -> web.Response:
    """``GET /admin/v1/organizations/{id}/audit-events?limit=&before=``: what was changed,
    newest first."""
    caller = await authenticate_operator(request)
    organization_id = path_id(request)
    must_administer(caller, organization_id)
    limit, _ = _page(request, FIRST_ID)
    before = _number(request, "before", ledger.MOST_COUNT, ledger.MOST_COUNT)
    database = database_of(request)
    events = await audit.list_events(database, organization_id, before, limit)
    if not events:
        await accounts.find_organization(database, organization_id)
    following = events[-1].sequence if len(events) == limit else None
    return json_response(Events(events, following))


async def list_models(request: web.Request) -> web.Response:
    """``GET /admin/v1/models?limit=&after=&kind=``: Venice's models and the aliases, oldest first;
    an administrator of one organization sees its own aliases and those of all."""
    caller = await authenticate_operator(request)
    limit, after = _page(request, FIRST_ID)
    kind = request.query.get("kind")
    if kind not in (None, *KINDS):
        raise ClientError(f"kind: must be one of {', '.join(KINDS)}.", param="kind")
    of = None if caller.role == "operator" else caller.organization_id
    rows = await catalog.list_names(database_of(request), after, limit, of, cast(Any, kind))
    return json_response(Names(rows, _next(rows, limit)))


async def set_alias(request: web.Request) -> web.Response:
    """``PUT /admin/v1/models/{alias}``: what it stands for; in force everywhere within seconds."""
    caller = await authenticate_operator(request)
    new = await read_as(request, catalog.NewAlias)
    alias, database = request.match_info["alias"], database_of(request)
    await _must_own(request, caller, new.organization_id)
    must_grant_own(caller, new.targets, "targets")
    actor = _actor(request, caller)
    async with database.transaction() as conn:
        await _must_not_redirect(conn, actor, new.organization_id, alias)
        await catalog.set_alias(conn, actor, alias, new)
    await request.app[CATALOG].load_aliases()
    return json_response(await catalog.find_alias(database, alias, new.organization_id))


async def remove_alias(request: web.Request) -> web.Response:
    """``DELETE /admin/v1/models/{alias}?organization_id=`` → 204: an alias is taken away."""
    caller = await authenticate_operator(request)
    stated = request.query.get("organization_id")
    try:
        organization_id = UUID(stated) if stated else None
    except ValueError:
        raise ClientError("organization_id: must be a UUID.", param="organization_id") from None
    await _must_own(request, caller, organization_id)
    actor, alias = _actor(request, caller), request.match_info["alias"]
    async with database_of(request).transaction() as conn:
        await _must_not_redirect(conn, actor, organization_id, alias)
        await catalog.remove_alias(conn, actor, alias, organization_id)
    await request.app[CATALOG].load_aliases()
    return web.Response(status=204)


async def _must_own(request: web.Request, caller: Caller, organization_id: UUID | None) -> None:
    """Aliases for all are the operator's; those of an organization its administrators' too."""
    if organization_id is None:
        must_be_operator(caller)
        return
    must_administer(caller, organization_id)
    await accounts.find_organization(database_of(request), organization_id)


async def _must_not_redirect(
    conn: Any, actor: Actor, organization_id: UUID | None, alias: str
) -> None:
    """What the operator's list of a key names must go on to mean what it meant.

    :raises Forbidden: when an administrator would change that.
    """
    if not actor.is_administrator or organization_id is None:
        return
    await audit.lock(conn, organization_id)
    if await accounts.is_on_list_of_operator(conn, organization_id, alias):
        raise Forbidden(
            "alias: the operator allows a key this name, so only the operator can change it.",
            param="alias",
        )


@contextlib.asynccontextmanager
async def _changing(request: web.Request) -> AsyncIterator[Any]:
    """A transaction that changes what callers may do. This process applies the change before it
    answers; the others do when NOTIFY reaches them, which may be after the answer."""
    try:
        async with database_of(request).transaction() as conn:
            yield conn
    finally:
        # After a failure too: a commit may succeed although its acknowledgement is lost.
        request.app[CALLERS].forget()


async def _digest(request: web.Request, organization_id: UUID, end_user: str) -> bytes:
    database, keyring = database_of(request), request.app[KEYRING]
    return await accounts.end_user_digest(database, keyring, organization_id, end_user)


def _actor(request: web.Request, caller: Caller) -> Actor:
    return Actor(
        name=caller.actor_name,
        request_id=request[REQUEST_ID],
        is_administrator=caller.role != "operator",
    )


def _page(request: web.Request, start: UUID) -> tuple[int, UUID]:
    limit, after = _number(request, "limit", PAGE, MOST_A_PAGE), request.query.get("after")
    try:
        return limit, UUID(after) if after else start
    except ValueError:
        raise ClientError("after: must be the id that 'next' gave.", param="after") from None


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    number = 0
    with contextlib.suppress(ValueError):
        number = parse_whole(request.query.get(name, str(default)))
    if not 1 <= number <= most:
        raise ClientError(f"{name}: must be from 1 to {most}.", param=name)
    return number


def _next(rows: Any, limit: int) -> UUID | None:
    return rows[-1].id if len(rows) == limit else None
