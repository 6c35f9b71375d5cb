"""Setting and removing aliases, with the rules for who may."""

from typing import Any
from uuid import UUID

from aiohttp import web

from service import accounts, audit, catalog
from service.accounts import Caller
from service.api.auth import must_administer, must_be_operator, must_grant_own
from service.api.state import CATALOG
from service.audit import Actor
from service.catalog import NewAlias
from service.database.database import Database
from service.errors import Forbidden


async def put(
    app: web.Application,
    database: Database,
    caller: Caller,
    actor: Actor,
    alias: str,
    new: NewAlias,
) -> None:
    """Set the models that an alias resolves to, here at once and everywhere within seconds.

    :raises Forbidden: when the caller may not set this alias, or not to these models.
    :raises ClientError, NotFound, Conflict: as :func:`catalog.set_alias`.
    """
    await _must_own(database, caller, new.organization_id)
    must_grant_own(caller, new.targets, "targets")
    async with database.transaction() as conn:
        if new.organization_id is not None:
            await accounts.must_be_kept(conn, new.organization_id)
        await _must_not_redirect(conn, actor, new.organization_id, alias)
        await catalog.set_alias(conn, actor, alias, new)
    await app[CATALOG].load_aliases()


async def remove(
    app: web.Application,
    database: Database,
    caller: Caller,
    actor: Actor,
    alias: str,
    organization_id: UUID | None,
) -> None:
    """Remove an alias, here at once and everywhere within seconds.

    :raises Forbidden: when the caller may not remove this alias.
    :raises NotFound: when there is no such alias or organization.
    """
    await _must_own(database, caller, organization_id)
    async with database.transaction() as conn:
        await _must_not_redirect(conn, actor, organization_id, alias)
        await catalog.remove_alias(conn, actor, alias, organization_id)
    await app[CATALOG].load_aliases()


async def _must_own(database: Database, caller: Caller, organization_id: UUID | None) -> None:
    """Only the operator manages shared aliases; an administrator manages its organization's."""
    if organization_id is None:
        must_be_operator(caller)
        return
    must_administer(caller, organization_id)
    await accounts.find_organization(database, organization_id)


async def _must_not_redirect(
    conn: Any, actor: Actor, organization_id: UUID | None, alias: str
) -> None:
    """Refuse an administrator's change to an alias that the operator's model list of a key names.

    :raises Forbidden: when it is one.
    """
    if not actor.is_administrator or organization_id is None:
        return
    await audit.lock(conn, organization_id)
    if await accounts.is_on_list_of_operator(conn, organization_id, alias):
        raise Forbidden(
            "alias: the operator allows a key this name, so only the operator can change it.",
            param="alias",
        )
