"""The operator's keys at Venice, as they are stored: sealed, with what Venice last said of them."""

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import audit, crypto, money
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.crypto import Keyring
from service.db import Database
from service.errors import ClientError, Conflict, NotFound, ServiceError
from service.ids import uuid7
from service.upstream.client import Venice
from service.upstream.keys import ENVIRONMENT_KEY_ID, KeyState, UpstreamKey

log = structlog.get_logger()

ENVIRONMENT: Final = "environment"
KEY_PROBLEMS: Final = {
    401: "Venice does not take the key (status 401).",
    402: "The account has nothing left to spend (status 402).",
    403: "The key may not be used, or not from here (status 403).",
}
NAME_LENGTH: Final = 200
SECRET_LENGTH: Final = 1000
SECRET: Final = re.compile("[!-~]+")

INSERT_ENVIRONMENT_KEY: Final = """
    INSERT INTO public.upstream_keys (id, name, source)
    VALUES ($1, $2, 'environment')
    ON CONFLICT DO NOTHING
"""
INSERT_KEY: Final = """
    INSERT INTO public.upstream_keys (id, name, source, organization_id, sealed_key)
    VALUES ($1, $2, 'database', $3, $4)
    ON CONFLICT (name) DO NOTHING
"""
READ_KEYS: Final = """
    SELECT id, name, organization_id, source, sealed_key, status
    FROM public.upstream_keys
    WHERE role = 'inference'
    ORDER BY id
"""
LIST_KEYS: Final = """
    SELECT id, name, organization_id, source, status, balance_usd_nanos, balance_diem_nanos, tier,
           last_checked_at, created_at
    FROM public.upstream_keys
    ORDER BY id
"""
NOTE_STATE: Final = """
    UPDATE public.upstream_keys
    SET balance_usd_nanos = $2, balance_diem_nanos = $3, tier = $4, last_checked_at = now()
    WHERE id = $1
"""
DISABLE_KEY: Final = """
    UPDATE public.upstream_keys
    SET status = 'disabled', updated_at = now()
    WHERE id = $1
      AND status <> 'disabled'
"""
FIND_KEY: Final = """
    SELECT id, name, organization_id, source, status, balance_usd_nanos, balance_diem_nanos, tier,
           last_checked_at, created_at
    FROM public.upstream_keys
    WHERE id = $1
"""
ENABLE_KEY: Final = """
    UPDATE public.upstream_keys
    SET status = 'active', updated_at = now()
    WHERE id = $1
      AND status = 'disabled'
"""
HAS_ORGANIZATION: Final = "SELECT EXISTS (SELECT FROM public.organizations WHERE id = $1)"
HAS_KEY: Final = "SELECT EXISTS (SELECT FROM public.upstream_keys WHERE id = $1)"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the operator sees it: never the key itself. Balances are decimal strings, null until
    the key was checked; without ``organization_id`` it is for all that have no key of their own."""

    id: UUID
    name: str
    organization_id: UUID | None
    source: str
    status: str
    balance_usd: str | None
    balance_diem: str | None
    tier: str | None
    last_checked_at: datetime | None
    created_at: datetime


async def add(
    conn: Any, keyring: Keyring, actor: Actor, name: str, secret: str, organization_id: UUID | None
) -> UUID:
    """A new key, in use by every replica within seconds; returns its id.

    :raises ClientError: when name or key break their rule.
    :raises NotFound: when there is no such organization.
    :raises Conflict: when the name is taken.
    """
    if not 1 <= len(name.strip()) <= NAME_LENGTH or not name.isprintable():
        raise ClientError(f"name: must be 1 to {NAME_LENGTH} printable characters.", param="name")
    if not 1 <= len(secret) <= SECRET_LENGTH or not SECRET.fullmatch(secret):
        rule = f"must be 1 to {SECRET_LENGTH} printable ASCII characters, none of them a space."
        raise ClientError(f"key: {rule}", param="key")
    if organization_id and not await conn.fetchval(HAS_ORGANIZATION, organization_id):
        raise NotFound("There is no such organization.")
    key_id = uuid7()
    detail = {"name": name, "organization_id": organization_id and str(organization_id)}
    await audit.record(
        conn, OPERATOR_ORGANIZATION_ID, actor, "upstream_key.add", str(key_id), detail
    )
    sealed = keyring.seal(key_id.bytes, secret.encode())
    if await conn.execute(INSERT_KEY, key_id, name, organization_id, sealed) != "INSERT 0 1":
        raise Conflict(f"There is a key of the name {name!r} already.", param="name")
    return key_id


async def list_stored(database: Database) -> Sequence[StoredKey]:
    """All keys, disabled ones too, oldest first."""
    return [_stored(row) for row in await database.fetch(LIST_KEYS)]


async def find_stored(database: Database, key_id: UUID) -> StoredKey:
    """One of them.

    :raises NotFound: when there is none of this id.
    """
    row = await database.fetchrow(FIND_KEY, key_id)
    if row is None:
        raise NotFound("There is no such upstream key.")
    return _stored(row)


def _stored(row: Any) -> StoredKey:
    facts = dict(row)
    for currency in ("usd", "diem"):
        nanos = facts.pop(f"balance_{currency}_nanos")
        facts[f"balance_{currency}"] = None if nanos is None else money.format_usd(nanos)
    return StoredKey(**facts)


async def disable(conn: Any, actor: Actor, key_id: UUID) -> None:
    """Put the key out of use, on every replica within seconds. Again it changes nothing.

    :raises NotFound: when there is none of this id.
    """
    await _change(conn, actor, key_id, DISABLE_KEY, "upstream_key.disable")


async def enable(conn: Any, actor: Actor, key_id: UUID) -> None:
    """Put a key that was disabled to use again. Again it changes nothing.

    :raises NotFound: when there is none of this id.
    """
    await _change(conn, actor, key_id, ENABLE_KEY, "upstream_key.enable")


async def _change(conn: Any, actor: Actor, key_id: UUID, statement: str, action: str) -> None:
    if not await conn.fetchval(HAS_KEY, key_id):
        raise NotFound("There is no such upstream key.")
    await audit.lock(conn, OPERATOR_ORGANIZATION_ID)
    if await conn.execute(statement, key_id) == "UPDATE 1":
        await audit.record(conn, OPERATOR_ORGANIZATION_ID, actor, action, str(key_id))


async def load(
    database: Database, keyring: Keyring, environment_secret: str
) -> Sequence[UpstreamKey]:
    """The keys in use: that of the settings among them, unless it is disabled."""
    rows = await database.fetch(READ_KEYS)
    if all(row["id"] != ENVIRONMENT_KEY_ID for row in rows):
        await database.fetch(INSERT_ENVIRONMENT_KEY, ENVIRONMENT_KEY_ID, ENVIRONMENT)
        rows = await database.fetch(READ_KEYS)
    keys = []
    for row in rows:
        if row["status"] == "disabled":
            continue
        secret = environment_secret
        if row["source"] != ENVIRONMENT:
            try:
                secret = keyring.unseal(row["id"].bytes, row["sealed_key"]).decode()
            except crypto.UnknownMasterKey:
                log.error("upstream key does not open", key=row["name"])
                continue
        keys.append(
            UpstreamKey(
                id=row["id"],
                name=row["name"],
                secret=secret,
                organization_id=row["organization_id"],
            )
        )
    return keys


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """Whether Venice takes a key, and if not, what is the matter."""

    name: str
    is_well: bool
    problem: str | None


async def check(database: Database, venice: Venice, key: UpstreamKey) -> Checked:
    """Ask Venice about a key, at no cost, and keep what it says."""
    try:
        state = await venice.state(key)
    except ServiceError as error:
        status = getattr(error, "upstream_status", None) or 0
        problem = KEY_PROBLEMS.get(status, str(error))
        return Checked(name=key.name, is_well=False, problem=problem)
    await note_state(database, venice, key, state)
    if not state.access_permitted:
        return Checked(name=key.name, is_well=False, problem="Venice lets it make no calls.")
    return Checked(name=key.name, is_well=True, problem=None)


async def note_state(database: Database, venice: Venice, key: UpstreamKey, state: KeyState) -> None:
    """Keep what Venice says of a key, and heed it in the choice of keys."""
    venice.keys.note_state(key, state)
    tier = state.api_tier.get("id")
    await database.fetch(
        NOTE_STATE,
        key.id,
        *(_nanos(state.balances.get(currency)) for currency in ("USD", "DIEM")),
        tier if isinstance(tier, str) else None,
    )


def _nanos(balance: float | None) -> int | None:
    try:
        return None if balance is None else money.parse_usd(Decimal(str(balance)))
    except ValueError:
        return None
