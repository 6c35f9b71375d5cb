"""The operator's keys at Venice. What is changed here is in use by this process at once, by the
others within seconds; a key is never shown."""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from aiohttp import web

from service import upstream
from service.api.auth import authenticate_operator, must_be_operator
from service.api.state import DATABASE, KEYRING, VENICE, VENICE_KEY
from service.api.wire import REQUEST_ID, json_response, path_id, read_as
from service.audit import Actor
from service.errors import Conflict
from service.upstream import Rest, StoredKey


class NewUpstreamKey(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/v1/upstream-keys``."""

    name: str
    key: str
    organization_id: UUID | None = None

    def __repr__(self) -> str:
        return f"<NewUpstreamKey {self.name}>"


class ShownKey(StoredKey, frozen=True, kw_only=True):
    """A key as the operator sees it, and what of it rests in this process."""

    rests: Sequence[Rest]


class CheckedKey(ShownKey, frozen=True, kw_only=True):
    """The same, with what Venice says of it now."""

    is_well: bool
    problem: str | None


class Keys(msgspec.Struct):
    """All keys."""

    upstream_keys: Sequence[ShownKey]


async def list_keys(request: web.Request) -> web.Response:
    """``GET /admin/v1/upstream-keys``: all, oldest first, and what rests in this process."""
    await _operator(request)
    rests = request.app[VENICE].keys.rests()
    stored = await upstream.list_stored(request.app[DATABASE])
    return json_response(Keys([_shown(key, rests.get(key.id, ())) for key in stored]))


async def add_key(request: web.Request) -> web.Response:
    """``POST /admin/v1/upstream-keys`` → 201: one more key at Venice."""
    actor = await _operator(request)
    new = await read_as(request, NewUpstreamKey)
    database, keyring = request.app[DATABASE], request.app[KEYRING]
    async with database.transaction() as conn:
        key_id = await upstream.add(conn, keyring, actor, new.name, new.key, new.organization_id)
    await _load(request)
    return json_response(_shown(await upstream.find_stored(database, key_id)), 201)


async def disable_key(request: web.Request) -> web.Response:
    """``DELETE /admin/v1/upstream-keys/{id}`` → 204: out of use; its calls go on to their end."""
    actor = await _operator(request)
    async with request.app[DATABASE].transaction() as conn:
        await upstream.disable(conn, actor, path_id(request))
    await _load(request)
    return web.Response(status=204)


async def enable_key(request: web.Request) -> web.Response:
    """``POST /admin/v1/upstream-keys/{id}/enable``: a disabled key takes calls again."""
    actor = await _operator(request)
    database, key_id = request.app[DATABASE], path_id(request)
    async with database.transaction() as conn:
        await upstream.enable(conn, actor, key_id)
    await _load(request)
    return json_response(_shown(await upstream.find_stored(database, key_id)))


async def check_key(request: web.Request) -> web.Response:
    """``POST /admin/v1/upstream-keys/{id}/check``: what Venice says of it, asked at no cost. A key
    that rested and is found well takes calls again."""
    await _operator(request)
    database, venice = request.app[DATABASE], request.app[VENICE]
    await _load(request)
    key_id = (await upstream.find_stored(database, path_id(request))).id
    for key in venice.keys.all:
        if key.id == key_id:
            checked = await upstream.check(database, venice, key)
            break
    else:
        raise Conflict("The key is not in use: it is disabled, or ENCRYPTION_KEY does not open it.")
    shown = _shown(
        await upstream.find_stored(database, key_id), venice.keys.rests().get(key_id, ())
    )
    facts = msgspec.structs.asdict(shown) | msgspec.structs.asdict(checked)
    return json_response(CheckedKey(**facts))


async def _operator(request: web.Request) -> Actor:
    caller = await authenticate_operator(request)
    must_be_operator(caller)
    return Actor(name=caller.actor_name, request_id=request[REQUEST_ID])


async def _load(request: web.Request) -> None:
    app = request.app
    keys = await upstream.load(app[DATABASE], app[KEYRING], app[VENICE_KEY])
    app[VENICE].keys.replace(keys)


def _shown(key: StoredKey, rests: Sequence[Rest] = ()) -> ShownKey:
    return ShownKey(**msgspec.structs.asdict(key), rests=rests)
