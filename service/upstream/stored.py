"""The operator's Venice keys as stored in the database: encrypted, with Venice's latest report."""

import re
import time
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import audit, crypto, money
from service.audit import OPERATOR_ORGANIZATION_ID, RIALTO, Actor
from service.crypto import Keyring
from service.database.database import Database
from service.errors import ClientError, Conflict, NotFound
from service.ids import uuid7
from service.upstream.client import KEY_TIMEOUT_S, Venice
from service.upstream.findings import Finding
from service.upstream.keys import ENVIRONMENT_KEY_ID, KeyFinding, UpstreamKey, UpstreamKeyState

log = structlog.get_logger()

ENVIRONMENT: Final = "environment"
KEY_PROBLEMS: Final = {
    Finding.INVALID: "Venice rejected the key with status 401.",
    Finding.SPENT: "The account or the key has no balance left.",
    Finding.FORBIDDEN: "The key may not make calls, or not from this address.",
    Finding.UNREACHABLE: "Venice cannot be reached, so the key could not be checked.",
    Finding.FAILED: "Venice failed, so the key could not be checked.",
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
           last_check, last_checked_at, created_at
    FROM public.upstream_keys
    ORDER BY id
"""
NOTE_STATE: Final = """
    UPDATE public.upstream_keys
    SET balance_usd_nanos = $2, balance_diem_nanos = $3, tier = $4
    WHERE id = $1
"""
# A result that confirms the condition renews its time, so that an older result cannot replace it.
NOTE_CHECK: Final = """
    UPDATE public.upstream_keys
    SET last_check = CASE WHEN last_checked_at > found_at THEN last_check ELSE $2 END,
        last_checked_at = greatest(last_checked_at, found_at),
        condition_at =
            CASE WHEN condition = $2 THEN greatest(condition_at, found_at) ELSE condition_at END
    FROM (SELECT statement_timestamp() - make_interval(secs => $3)) AS f (found_at)
    WHERE id = $1
    RETURNING condition
"""
# Serializes processes that see the same change. The second one finds it already recorded.
LOCK_CONDITION: Final = """
    SELECT condition, found_at, condition_at IS NULL OR condition_at < found_at AS is_newer
    FROM public.upstream_keys
    CROSS JOIN LATERAL (SELECT statement_timestamp() - make_interval(secs => $2)) AS f (found_at)
    WHERE id = $1
      AND status <> 'disabled'
    FOR UPDATE OF upstream_keys
"""
NOTE_CONDITION: Final = """
    UPDATE public.upstream_keys
    SET condition = $2, condition_at = $3
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
           last_check, last_checked_at, created_at
    FROM public.upstream_keys
    WHERE id = $1
"""
ENABLE_KEY: Final = """
    UPDATE public.upstream_keys
    SET status = 'active', updated_at = now()
    WHERE id = $1
      AND status = 'disabled'
"""
HAS_KEY: Final = "SELECT EXISTS (SELECT FROM public.upstream_keys WHERE id = $1)"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the operator sees it, without the key itself.

    Balances are decimal strings. Balances and ``last_check`` are null until Venice was asked.
    Without ``organization_id`` the key serves all organizations without a key of their own.
    """

    id: UUID
    name: str
    organization_id: UUID | None
    source: str
    status: str
    balance_usd: str | None
    balance_diem: str | None
    tier: str | None
    last_check: str | None
    last_checked_at: datetime | None
    created_at: datetime


async def add(
    conn: Any, keyring: Keyring, actor: Actor, name: str, secret: str, organization_id: UUID | None
) -> UUID:
    """Add a key and return its id. Every replica uses it within seconds.

    :raises ClientError: when the name or the key is invalid.
    :raises NotFound: when there is no such organization.
    :raises Conflict: when the name is taken.
    """
    if not 1 <= len(name.strip()) <= NAME_LENGTH or not name.isprintable():
        raise ClientError(f"name: must be 1 to {NAME_LENGTH} printable characters.", param="name")
    if not 1 <= len(secret) <= SECRET_LENGTH or not SECRET.fullmatch(secret):
        rule = f"must be 1 to {SECRET_LENGTH} printable ASCII characters without spaces."
        raise ClientError(f"key: {rule}", param="key")
    if name.strip() == ENVIRONMENT:
        # The settings' key may not be stored yet, and would later find its name taken.
        raise Conflict(
            f"{ENVIRONMENT!r} is reserved for VENICE_API_KEY. Choose another name.", param="name"
        )
    key_id = uuid7()
    detail = {"name": name, "organization_id": organization_id and str(organization_id)}
    await audit.record(
        conn, OPERATOR_ORGANIZATION_ID, actor, "upstream_key.add", str(key_id), detail
    )
    sealed = keyring.seal(key_id.bytes, secret.encode())
    if await conn.execute(INSERT_KEY, key_id, name, organization_id, sealed) != "INSERT 0 1":
        raise Conflict(f"A key named {name!r} already exists.", param="name")
    return key_id


async def list_stored(database: Database) -> Sequence[StoredKey]:
    """List all keys, including disabled ones, oldest first."""
    return [_stored(row) for row in await database.fetch(LIST_KEYS)]


async def find_stored(database: Database, key_id: UUID) -> StoredKey:
    """Return one key.

    :raises NotFound: when there is no key with this id.
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
    """Disable a key on every replica within seconds. Has no effect on a disabled key.

    :raises NotFound: when there is no key with this id.
    """
    await _change(conn, actor, key_id, DISABLE_KEY, "upstream_key.disable")


async def enable(conn: Any, actor: Actor, key_id: UUID) -> None:
    """Enable a disabled key. Has no effect on an enabled key.

    :raises NotFound: when there is no key with this id.
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
    """Load the keys in use, including the settings' key unless it is disabled."""
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
                log.error("upstream key cannot be decrypted", key=row["name"])
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


class KeyCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Whether Venice accepts a key, and if not, the problem."""

    name: str
    is_well: bool
    problem: str | None


async def check(database: Database, venice: Venice, key: UpstreamKey) -> KeyCheck:
    """Ask Venice about a key, at no cost, and store the result."""
    examination = await venice.examine(key, KEY_TIMEOUT_S)
    if examination.state is not None:
        await note_state(database, key, examination.state)
    await record(database, key, venice.keys.findings[key.id])
    is_well = examination.finding is Finding.WELL
    problem = None if is_well else KEY_PROBLEMS[examination.finding]
    if examination.finding is Finding.FAILED and examination.error is not None:
        problem = str(examination.error)
    return KeyCheck(name=key.name, is_well=is_well, problem=problem)


async def record(database: Database, key: UpstreamKey, found: KeyFinding) -> None:
    """Store the result of a key check.

    A changed condition is audited once: the process that stores it first writes the event. A result
    does not replace a newer one.
    """
    # The age is measured right before each statement. If it were measured before a wait, for a
    # connection or for the lock, the result would seem younger.
    async with database.transaction() as conn:
        age_s = time.monotonic() - found.at
        known = await conn.fetchrow(NOTE_CHECK, key.id, found.finding.value, age_s)
    if known is None or not found.finding.is_about_key or known["condition"] == found.finding:
        return
    async with database.transaction() as conn:
        await audit.lock(conn, OPERATOR_ORGANIZATION_ID)
        before = await conn.fetchrow(LOCK_CONDITION, key.id, time.monotonic() - found.at)
        if before is None or before["condition"] == found.finding or not before["is_newer"]:
            return
        await conn.execute(NOTE_CONDITION, key.id, found.finding.value, before["found_at"])
        detail = {"name": key.name, "finding": found.finding.value, "reason": found.reason}
        if found.finding is not Finding.WELL:
            await _report(conn, "upstream_key.unusable", key, detail)
        elif before["condition"] is not None:
            await _report(conn, "upstream_key.recovered", key, {"name": key.name})


async def _report(conn: Any, action: str, key: UpstreamKey, detail: dict[str, Any]) -> None:
    await audit.record(conn, OPERATOR_ORGANIZATION_ID, RIALTO, action, str(key.id), detail)


async def note_state(database: Database, key: UpstreamKey, state: UpstreamKeyState) -> None:
    """Store the balances of a key, as Venice reports them."""
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
