"""Routes to administer organizations, keys, limits, aliases and the ledger. Every change is audited
by the verb that makes it."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from service import accounts, audit, catalog, ledger
from service.accounts import ApiKey, Organization, StatedOrganizationSettings
from service.api import aliases
from service.api.auth import must_be_granted
from service.api.key_rules import must_be_changeable, must_be_makeable
from service.api.operations import Operation
from service.api.queries import PAGE, OptionalId, PageLimit, PageQuery, id_of
from service.api.state import KEYRING
from service.catalog import ListedName
from service.errors import ClientError
from service.ledger import LedgerEntry, Limit

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

FIRST_ID: Final = UUID(int=0)


class NewOrganization(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/v1/organizations``."""

    name: Name


class OrganizationChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PATCH /admin/v1/organizations/{id}``: what replaces what it has; at least one
    of them."""

    name: Name | UnsetType = UNSET
    status: Literal["active", "suspended"] | UnsetType = UNSET
    settings: StatedOrganizationSettings | UnsetType = UNSET


class LimitsQuery(PageQuery, kw_only=True):
    """A page of limits. ``end_user`` selects those of one end user; an empty value those of calls
    that name none."""

    end_user: str | UnsetType = UNSET


class EventsQuery(msgspec.Struct, kw_only=True):
    """A page of audit events. ``before`` is the ``next`` of the page before."""

    limit: PageLimit = PAGE
    before: Annotated[int, msgspec.Meta(ge=1, le=ledger.MAX_CEILING_COUNT)] | UnsetType = UNSET


class ModelsQuery(PageQuery, kw_only=True):
    """A page of names, optionally of one kind."""

    kind: catalog.Kind | UnsetType = UNSET


class AliasQuery(msgspec.Struct, kw_only=True):
    """The organization that owns the alias. Without it the alias is shared by all."""

    organization_id: OptionalId | UnsetType = UNSET


class MadeKey(ApiKey, frozen=True, kw_only=True):
    """A key that is new or was rotated, with the secret that is shown this once."""

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

    limits: Sequence[Limit]
    next: UUID | None


class Events(msgspec.Struct):
    """A page of audit events; ``next`` is null on the last."""

    events: Sequence[audit.Event]
    next: int | None


class Names(msgspec.Struct):
    """A page of models and aliases; ``next`` is null on the last."""

    models: Sequence[ListedName]
    next: UUID | None


async def create_organization(operation: Operation) -> Organization:
    """``POST /admin/v1/organizations`` → 201: create an organization."""
    new = await operation.read_body(NewOrganization)
    async with operation.transaction() as conn:
        return await accounts.create_organization(
            conn, operation.app[KEYRING], operation.actor, new.name
        )


async def list_organizations(operation: Operation) -> Organizations:
    """``GET /admin/v1/organizations?limit=&after=``: list organizations, oldest first."""
    query = operation.read_query(PageQuery)
    after = query.after_id or FIRST_ID
    rows = await accounts.list_organizations(operation.database, after, query.limit)
    return Organizations(rows, _next(rows, query))


async def find_organization(operation: Operation) -> Organization:
    """``GET /admin/v1/organizations/{id}``: get an organization."""
    organization_id = await operation.administered_organization()
    return await accounts.find_organization(operation.database, organization_id)


async def change_organization(operation: Operation) -> Organization:
    """``PATCH /admin/v1/organizations/{id}``: replace an organization's settings, rename, suspend
    or resume it. Only the operator can do more than replace settings. A suspended organization's
    calls are refused; those in flight end."""
    organization_id, actor = await operation.administered_organization(), operation.actor
    change = await operation.read_body(OrganizationChange)
    if change.name is not UNSET or change.status is not UNSET:
        operation.must_be_operator()
    elif change.settings is UNSET:
        raise ClientError("At least one of these must be given: name, status, settings.")
    async with operation.caller_change() as conn:
        if change.name is not UNSET:
            await accounts.rename_organization(conn, actor, organization_id, change.name)
        if change.settings is not UNSET:
            await accounts.change_organization(conn, actor, organization_id, change.settings)
        if change.status == "suspended":
            await accounts.suspend_organization(conn, actor, organization_id)
        elif change.status == "active":
            await accounts.resume_organization(conn, actor, organization_id)
    return await accounts.find_organization(operation.database, organization_id)


async def delete_organization(operation: Operation) -> None:
    """``DELETE /admin/v1/organizations/{id}`` → 204: delete an organization that has no calls in
    flight. Its keys are revoked, its limits and aliases end and its data key is destroyed. Its
    ledger stays. This cannot be undone."""
    organization_id = await operation.administered_organization()
    async with operation.caller_change() as conn:
        await accounts.delete_organization(conn, operation.actor, organization_id)


async def create_key(operation: Operation) -> MadeKey:
    """``POST /admin/v1/organizations/{id}/keys`` → 201: create a key, which is shown only now."""
    organization_id = await operation.administered_organization()
    new = await operation.read_body(accounts.NewKey)
    must_be_makeable(operation.app, operation.caller, new)
    async with operation.transaction() as conn:
        key, secret = await accounts.create_key(conn, operation.actor, organization_id, new)
    return MadeKey(**msgspec.structs.asdict(key), key=secret)


async def list_keys(operation: Operation) -> Keys:
    """``GET /admin/v1/organizations/{id}/keys?limit=&after=``: list the keys of an
    organization, oldest first."""
    organization_id = await operation.administered_organization()
    query = operation.read_query(PageQuery)
    rows = await accounts.list_keys(
        operation.database, organization_id, query.after_id or FIRST_ID, query.limit
    )
    return Keys(rows, _next(rows, query))


async def change_key(operation: Operation) -> ApiKey:
    """``PATCH /admin/v1/keys/{id}``: change a key's name, expiry, settings or restrictions. These
    are the models and endpoints that it may be used for, and the networks from which."""
    key = await operation.administered_key()
    change = await operation.read_body(accounts.KeyChange)
    must_be_changeable(operation.app, operation.caller, key, change)
    async with operation.caller_change() as conn:
        await accounts.change_key(conn, operation.actor, key, change)
    return await accounts.find_key(operation.database, key.id)


async def rotate_key(operation: Operation) -> MadeKey:
    """``POST /admin/v1/keys/{id}/rotate``: give a key a new secret, which is shown only now. The
    old secret goes on working for ``overlap_seconds``, a day unless stated. Settings, limits and
    history stay with the key."""
    key = await operation.administered_key()
    rotation, caller = await operation.read_body(accounts.Rotation), operation.caller
    must_be_granted(caller, key)
    own_digest = caller.key_digest if caller.api_key_id == key.id else None
    async with operation.caller_change() as conn:
        secret = await accounts.rotate_key(
            conn, operation.actor, key, rotation.overlap_seconds, own_digest=own_digest
        )
        # Read here: an answer that failed after the commit would lose the secret.
        rotated = await accounts.find_key(conn, key.id)
    return MadeKey(**msgspec.structs.asdict(rotated), key=secret)


async def revoke_key(operation: Operation) -> None:
    """``DELETE /admin/v1/keys/{id}`` → 204: revoke a key. Every replica refuses its next paid
    call."""
    key = await operation.administered_key()
    async with operation.caller_change() as conn:
        await accounts.revoke_key(conn, operation.actor, key)


async def create_limit(operation: Operation) -> Limit:
    """``POST /admin/v1/organizations/{id}/limits`` → 201: create a limit, in force on the next
    call."""
    organization_id = await operation.administered_organization()
    new = await operation.read_body(ledger.NewLimit)
    end_user = None
    if new.end_user is not None:
        end_user = await _digest(operation, organization_id, new.end_user)
    async with operation.caller_change() as conn:
        await accounts.must_be_kept(conn, organization_id)
        await accounts.must_have_key(conn, organization_id, new.api_key_id)
        limit_id = await ledger.create_limit(conn, operation.actor, organization_id, new, end_user)
        await accounts.announce(conn, organization_id)
    return await ledger.find_limit(operation.database, limit_id)


async def list_limits(operation: Operation) -> Limits:
    """``GET /admin/v1/organizations/{id}/limits?limit=&after=&end_user=``: list the limits of
    an organization, with what is used and held. With ``end_user``, only those that bind that end
    user; an empty value means calls without one."""
    organization_id = await operation.administered_organization()
    query = operation.read_query(LimitsQuery)
    end_user = None
    if query.end_user is not UNSET:
        name = query.end_user
        end_user = await _digest(operation, organization_id, name) if name else b""
    rows = await ledger.list_limits(
        operation.database, organization_id, query.after_id or FIRST_ID, query.limit, end_user
    )
    return Limits(rows, _next(rows, query))


async def change_limit(operation: Operation) -> Limit:
    """``PATCH /admin/v1/limits/{id}``: change a ceiling, or raise it for a time."""
    limit = await ledger.find_limit(operation.database, operation.path_id)
    operation.must_administer(limit.organization_id)
    change = await operation.read_body(ledger.LimitChange)
    async with operation.transaction() as conn:
        await ledger.change_limit(conn, operation.actor, limit, change)
    return await ledger.find_limit(operation.database, limit.id)


async def delete_limit(operation: Operation) -> None:
    """``DELETE /admin/v1/limits/{id}`` → 204: delete a limit."""
    limit = await ledger.find_limit(operation.database, operation.path_id)
    operation.must_administer(limit.organization_id)
    async with operation.caller_change() as conn:
        await ledger.delete_limit(conn, operation.actor, limit)
        await accounts.announce(conn, limit.organization_id)


async def credit(operation: Operation) -> LedgerEntry:
    """``POST /admin/v1/ledger/{id}/credit`` → 201: give money of a call back. The same
    request again, with its ``id``, changes nothing."""
    entry_id = operation.path_id
    new = await operation.read_body(ledger.NewCredit)
    organization_id = await ledger.find_owner(operation.database, entry_id)
    async with operation.transaction() as conn:
        credit_id = await ledger.credit(conn, operation.actor, organization_id, entry_id, new)
    return await ledger.find_entry(operation.database, organization_id, credit_id)


async def list_audit_events(operation: Operation) -> Events:
    """``GET /admin/v1/organizations/{id}/audit-events?limit=&before=``: list the changes in an
    organization, newest first."""
    organization_id = await operation.administered_organization()
    query = operation.read_query(EventsQuery)
    before = ledger.MAX_CEILING_COUNT if query.before is UNSET else query.before
    events = await audit.list_events(operation.database, organization_id, before, query.limit)
    following = events[-1].sequence if len(events) == query.limit else None
    return Events(events, following)


async def list_models(operation: Operation) -> Names:
    """``GET /admin/v1/models?limit=&after=&kind=``: list Venice's models and the aliases,
    oldest first. An administrator sees its organization's aliases and the shared ones."""
    query = operation.read_query(ModelsQuery)
    caller = operation.caller
    seen_by = None if caller.role == "operator" else caller.organization_id
    kind = None if query.kind is UNSET else query.kind
    rows = await catalog.list_names(
        operation.database, query.after_id or FIRST_ID, query.limit, seen_by, kind
    )
    return Names(rows, _next(rows, query))


async def set_alias(operation: Operation) -> ListedName:
    """``PUT /admin/v1/models/{alias}``: set the models that an alias resolves to; in force
    everywhere within seconds."""
    new = await operation.read_body(catalog.NewAlias)
    alias = operation.request.match_info["alias"]
    await aliases.put(
        operation.app, operation.database, operation.caller, operation.actor, alias, new
    )
    return await catalog.find_alias(operation.database, alias, new.organization_id)


async def remove_alias(operation: Operation) -> None:
    """``DELETE /admin/v1/models/{alias}?organization_id=`` → 204: remove an alias."""
    organization_id = id_of(operation.read_query(AliasQuery).organization_id)
    alias = operation.request.match_info["alias"]
    await aliases.remove(
        operation.app, operation.database, operation.caller, operation.actor, alias, organization_id
    )


async def _digest(operation: Operation, organization_id: UUID, end_user: str) -> bytes:
    return await accounts.end_user_digest(
        operation.database, operation.app[KEYRING], organization_id, end_user
    )


def _next(rows: Sequence[Any], query: PageQuery) -> UUID | None:
    return rows[-1].id if len(rows) == query.limit else None
