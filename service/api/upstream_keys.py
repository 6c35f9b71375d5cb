"""The operator's keys at Venice. What is changed here is in use by this process at once, by the
others within seconds; a key is never shown."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from aiohttp import web

from service import upstream
from service.api.operations import Operation
from service.api.state import DATABASE, KEYRING, VENICE, VENICE_KEY
from service.database.database import Database
from service.errors import Conflict
from service.upstream import KeyCheck, KeyCooldown, StoredKey


class NewUpstreamKey(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/v1/upstream-keys``."""

    name: str
    key: str
    organization_id: UUID | None = None

    def __repr__(self) -> str:
        return f"<NewUpstreamKey {self.name}>"


class ShownKey(StoredKey, frozen=True, kw_only=True):
    """A key as the operator sees it, and its cooldowns in this process."""

    cooldowns: Sequence[KeyCooldown]


class CheckedKey(ShownKey, frozen=True, kw_only=True):
    """The key, with the result of a check made now."""

    is_well: bool
    problem: str | None


class Keys(msgspec.Struct):
    """All keys."""

    upstream_keys: Sequence[ShownKey]


async def list_keys(operation: Operation) -> Keys:
    """``GET /admin/v1/upstream-keys``: all, oldest first, with their cooldowns in this process."""
    cooldowns = operation.app[VENICE].keys.cooldowns()
    stored = await upstream.list_stored(operation.database)
    return Keys([_shown(key, cooldowns.get(key.id, ())) for key in stored])


async def add_key(operation: Operation) -> ShownKey:
    """``POST /admin/v1/upstream-keys`` → 201: one more key at Venice."""
    new = await operation.read_body(NewUpstreamKey)
    async with operation.transaction() as conn:
        key_id = await upstream.add(
            conn, operation.app[KEYRING], operation.actor, new.name, new.key, new.organization_id
        )
    await load(operation.app)
    return _shown(await upstream.find_stored(operation.database, key_id))


async def disable_key(operation: Operation) -> None:
    """``DELETE /admin/v1/upstream-keys/{id}`` → 204: out of use; its calls go on to their end."""
    async with operation.transaction() as conn:
        await upstream.disable(conn, operation.actor, operation.path_id)
    await load(operation.app)


async def enable_key(operation: Operation) -> ShownKey:
    """``POST /admin/v1/upstream-keys/{id}/enable``: a disabled key takes calls again."""
    key_id = operation.path_id
    async with operation.transaction() as conn:
        await upstream.enable(conn, operation.actor, key_id)
    await load(operation.app)
    return _shown(await upstream.find_stored(operation.database, key_id))


async def check_key(operation: Operation) -> CheckedKey:
    """``POST /admin/v1/upstream-keys/{id}/check``: the result of a check, which costs nothing.
    A key that was out of service and passes the check is used again."""
    database, key_id = operation.database, operation.path_id
    checked = await check(operation.app, database, key_id)
    cooldowns = operation.app[VENICE].keys.cooldowns().get(key_id, ())
    shown = _shown(await upstream.find_stored(database, key_id), cooldowns)
    return CheckedKey(**(msgspec.structs.asdict(shown) | msgspec.structs.asdict(checked)))


async def check(app: web.Application, database: Database, key_id: UUID) -> KeyCheck:
    """Ask Venice about a key, at no cost, and store the result.

    :raises NotFound: when there is no such key.
    :raises Conflict: when it is not in use.
    """
    await load(app)
    await upstream.find_stored(database, key_id)
    venice = app[VENICE]
    key = venice.keys.find(key_id)
    if key is None:
        raise Conflict("The key is not in use: it is disabled, or ENCRYPTION_KEY does not open it.")
    return await upstream.check(database, venice, key)


async def load(app: web.Application) -> None:
    """Use the keys as they are stored now."""
    keys = await upstream.load(app[DATABASE], app[KEYRING], app[VENICE_KEY])
    app[VENICE].keys.replace(keys)


def _shown(key: StoredKey, cooldowns: Sequence[KeyCooldown] = ()) -> ShownKey:
    return ShownKey(**msgspec.structs.asdict(key), cooldowns=cooldowns)
