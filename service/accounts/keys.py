"""The keys of callers, as they are administered."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit, crypto
from service.accounts.organizations import NAME_LENGTH, announce, check_name, must_be_kept
from service.accounts.restrictions import (
    check_models,
    must_be_among,
    must_be_within,
    parse_endpoints,
    parse_networks,
)
from service.accounts.settings import KeySettings, Role, StatedKeySettings
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.database.database import NOW, Database
from service.errors import (
    ClientError,
    Conflict,
    Forbidden,
    NotFound,
)
from service.formats.addresses import Network
from service.formats.parsing import check_future
from service.ids import uuid7

INSERT_KEY: Final = """
    INSERT INTO public.api_keys (
        id, organization_id, name, role, digest, prefix, settings, allowed_models, expires_at,
        created_at, updated_at, set_by, allowed_endpoints, ip_allow_list
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $10, $11, $12, $13)
"""
LIST_KEYS: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, allowed_endpoints, ip_allow_list, expires_at,
           CASE WHEN previous_until > clock_timestamp() THEN previous_until END AS previous_until,
           revoked_at, created_at, last_used_at, set_by
    FROM public.api_keys
    WHERE organization_id = $1
      AND id > $2
    ORDER BY id
    LIMIT $3
"""
FIND_KEY: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, allowed_endpoints, ip_allow_list, expires_at,
           CASE WHEN previous_until > clock_timestamp() THEN previous_until END AS previous_until,
           revoked_at, created_at, last_used_at, set_by
    FROM public.api_keys
    WHERE id = $1
"""
READ_KEY: Final = """
    SELECT name, settings::text AS settings, allowed_models, allowed_endpoints, ip_allow_list,
           expires_at, set_by
    FROM public.api_keys
    WHERE id = $1
"""
CHANGE_KEY: Final = """
    UPDATE public.api_keys
    SET name = $2, settings = $3::text::jsonb, allowed_models = $4, allowed_endpoints = $5,
        ip_allow_list = $6, expires_at = $7, set_by = $8, updated_at = now()
    WHERE id = $1
"""
OWNER_OF_KEY: Final = """
    SELECT organization_id
    FROM public.api_keys
    WHERE id = $1
"""
IS_ON_LIST_OF_OPERATOR: Final = """
    SELECT EXISTS (
        SELECT
        FROM public.api_keys
        WHERE organization_id = $1
          AND set_by = 'operator'
          AND revoked_at IS NULL
          AND $2 = ANY (allowed_models)
    )
"""
REVOKE_KEY: Final = """
    UPDATE public.api_keys
    SET revoked_at = $2, updated_at = $2
    WHERE id = $1
      AND revoked_at IS NULL
"""
NOTE_USE: Final = """
    UPDATE public.api_keys k
    SET last_used_at = u.used_at
    FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, used_at)
    WHERE k.id = u.id
      AND (k.last_used_at IS NULL OR k.last_used_at < u.used_at)
"""

RESTRICTING: Final = {
    "allowed_models": "models",
    "allowed_endpoints": "allowed_endpoints",
    "ip_allow_list": "ip_allow_list",
    "expires_at": "expires_at",
}
"""The columns that restrict what a key may be used for, with the names of their fields."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key, as the operator sees it: never the key itself. ``previous_until`` is when the
    secret before the last rotation stops working, while it works. ``set_by`` is who set last what
    the key may be used for: administrators may narrow what the operator set, and not widen it.
    ``last_used_at`` is when the last admitted call ended, known a minute later; null before it."""

    id: UUID
    organization_id: UUID
    name: str
    role: Role
    prefix: str
    settings: KeySettings
    models: list[str] | None
    allowed_endpoints: list[str] | None
    ip_allow_list: list[str] | None
    expires_at: datetime | None
    previous_until: datetime | None
    revoked_at: datetime | None
    created_at: datetime
    last_used_at: datetime | None
    set_by: Literal["operator", "administrator"]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. ``models`` are the aliases and Venice's models it may use,
    ``allowed_endpoints`` the paths of the routes, and ``ip_allow_list`` the networks from which it
    may be used; null for all."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH)]
    role: Role = "inference"
    expires_at: datetime | None = None
    settings: StatedKeySettings | None = None
    models: list[str] | None = None
    allowed_endpoints: list[str] | None = None
    ip_allow_list: list[str] | None = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a key is replaced; at least one of them."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    expires_at: datetime | msgspec.UnsetType | None = msgspec.UNSET
    settings: StatedKeySettings | msgspec.UnsetType = msgspec.UNSET
    models: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    allowed_endpoints: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    ip_allow_list: list[str] | msgspec.UnsetType | None = msgspec.UNSET


async def create_key(
    conn: Any, actor: Actor, organization_id: UUID, new: NewKey
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is stored nowhere: this is the only time it is seen.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when an operator's key is asked for a tenant, or the reverse, or the
        organization was deleted.
    :raises ClientError: when the name or an entry of a list breaks its rule, or the expiry is not
        in the future.
    """
    check_name(new.name)
    check_models(new.models)
    endpoints, networks = parse_endpoints(new.allowed_endpoints), parse_networks(new.ip_allow_list)
    await must_be_kept(conn, organization_id)
    expires_at = None
    if new.expires_at is not None:
        expires_at = check_future("expires_at", new.expires_at, await conn.fetchval(NOW))
    if (new.role == "operator") != (organization_id == OPERATOR_ORGANIZATION_ID):
        raise Conflict(
            f"Keys of role operator belong to the operator's organization"
            f" ({OPERATOR_ORGANIZATION_ID}) and no others do.",
            param="role",
        )
    secret = crypto.new_api_key()
    key = ApiKey(
        id=uuid7(),
        organization_id=organization_id,
        name=new.name,
        role=new.role,
        prefix=secret[: crypto.API_KEY_PREFIX_LENGTH],
        settings=new.settings or KeySettings(),
        models=new.models,
        allowed_endpoints=endpoints,
        ip_allow_list=_texts(networks),
        expires_at=expires_at,
        previous_until=None,
        revoked_at=None,
        created_at=datetime.now(UTC),
        last_used_at=None,
        set_by=actor.set_by,
    )
    await _insert(conn, key, crypto.key_digest(secret), networks)
    detail: dict[str, Any] = {"name": key.name, "role": key.role, "prefix": key.prefix}
    for field in ("models", "allowed_endpoints", "ip_allow_list"):
        if (entries := getattr(key, field)) is not None:
            detail[field] = entries
    await audit.record(conn, organization_id, actor, "api_key.create", str(key.id), detail)
    return key, secret


async def _insert(
    conn: Any, key: ApiKey, digest: bytes, networks: Sequence[Network] | None
) -> None:
    await conn.execute(
        INSERT_KEY,
        key.id,
        key.organization_id,
        key.name,
        key.role,
        digest,
        key.prefix,
        msgspec.json.encode(key.settings).decode(),
        key.models,
        key.expires_at,
        key.created_at,
        key.set_by,
        key.allowed_endpoints,
        networks,
    )


async def create_passing_key(conn: Any) -> UUID:
    """A key of the operator's organization that nobody has, for a transaction that is taken back;
    returns its id."""
    key_id, now = uuid7(), datetime.now(UTC)
    digest = crypto.key_digest(crypto.new_api_key())
    await conn.execute(
        INSERT_KEY,
        key_id,
        OPERATOR_ORGANIZATION_ID,
        "rehearsal",
        "inference",
        digest,
        "rehearsal",
        "{}",
        None,
        None,
        now,
        "operator",
        None,
        None,
    )
    return key_id


async def list_keys(
    database: Database, organization_id: UUID, after: UUID, limit: int
) -> Sequence[ApiKey]:
    """An organization's keys by age, oldest first, after the one given."""
    rows = await database.fetch(LIST_KEYS, organization_id, after, limit)
    return [_key(row) for row in rows]


def _key(row: Any) -> ApiKey:
    settings = msgspec.json.decode(row["settings"], type=KeySettings)
    networks = _texts(row["ip_allow_list"])
    return ApiKey(**{**row, "settings": settings, "ip_allow_list": networks})


def _texts(networks: Sequence[Network] | None) -> list[str] | None:
    return None if networks is None else list(map(str, networks))


async def find_key(database: Any, api_key_id: UUID) -> ApiKey:
    """One key, read by the database or within a transaction.

    :raises NotFound: when there is none of this id.
    """
    row = await database.fetchrow(FIND_KEY, api_key_id)
    if row is None:
        raise NotFound("There is no such API key.")
    return _key(row)


async def must_have_key(conn: Any, organization_id: UUID, api_key_id: UUID | None) -> None:
    """The rule for what names a key of an organization; None names no key.

    :raises NotFound: when the key is not one of the organization's.
    """
    if api_key_id is not None and await conn.fetchval(OWNER_OF_KEY, api_key_id) != organization_id:
        raise NotFound("The organization has no such API key.", param="api_key_id")


async def change_key(conn: Any, actor: Actor, key: ApiKey, change: KeyChange) -> None:
    """Change what is stated of the key, here and on every replica.

    :raises ClientError: when nothing is stated, the name or an entry of a list breaks its rule, or
        the expiry is not in the future.
    :raises Forbidden: when an administrator would loosen what the operator set.
    :raises Conflict: when the organization was deleted.
    """
    stated = msgspec.structs.asdict(change)
    stated = {name: value for name, value in stated.items() if value is not msgspec.UNSET}
    if not stated:
        fields = ", ".join(KeyChange.__struct_fields__)
        raise ClientError(f"At least one of these must be given: {fields}.")
    values = _columns(stated)
    await must_be_kept(conn, key.organization_id)
    if values.get("expires_at") is not None:
        now = await conn.fetchval(NOW)
        values["expires_at"] = check_future("expires_at", values["expires_at"], now)
    before = dict(await conn.fetchrow(READ_KEY, key.id))
    if not values.keys().isdisjoint(RESTRICTING):
        values["set_by"] = _setter(actor, before, values)
    await conn.execute(CHANGE_KEY, key.id, *(before | values).values())
    detail = msgspec.to_builtins(change)
    await audit.record(conn, key.organization_id, actor, "api_key.change", str(key.id), detail)
    await announce(conn, key.id)


def _columns(stated: dict[str, Any]) -> dict[str, Any]:
    """The columns of what is stated in a change, with their values.

    :raises ClientError: when the name or an entry of a list breaks its rule.
    """
    values = dict(stated)
    if "name" in values:
        check_name(values["name"])
    if "settings" in values:
        values["settings"] = msgspec.json.encode(values["settings"]).decode()
    if "models" in values:
        models = values.pop("models")
        check_models(models)
        values["allowed_models"] = models
    if "allowed_endpoints" in values:
        values["allowed_endpoints"] = parse_endpoints(values["allowed_endpoints"])
    if "ip_allow_list" in values:
        values["ip_allow_list"] = parse_networks(values["ip_allow_list"])
    return values


def _setter(actor: Actor, before: dict[str, Any], values: dict[str, Any]) -> str:
    """Return who has set what the key may be used for, when the values have replaced those before.
    While a restriction of the operator's is left, it is the operator.

    :raises Forbidden: when an administrator would loosen one.
    """
    if not actor.is_administrator or before["set_by"] != "operator":
        return actor.set_by
    held = {name: before[name] for name in RESTRICTING if before[name] is not None}
    whose = "the operator allows this key"
    for name in held.keys() & values.keys():
        value = values[name]
        if name == "ip_allow_list":
            must_be_within(value, held[name], whose)
        elif name != "expires_at":
            must_be_among(value, held[name], whose, RESTRICTING[name])
        elif value is None or value > held[name]:
            raise Forbidden(
                "expires_at: the operator set it, so only the operator can put it off.",
                param="expires_at",
            )
    return "operator" if held else actor.set_by


async def is_on_list_of_operator(conn: Any, organization_id: UUID, name: str) -> bool:
    """Whether a key of the organization may use ``name`` because the operator allows it."""
    return bool(await conn.fetchval(IS_ON_LIST_OF_OPERATOR, organization_id, name))


async def revoke_key(conn: Any, actor: Actor, key: ApiKey) -> None:
    """Put the key out of force, with its previous secret, here and on every replica. Revoking it
    again changes nothing."""
    # Before the lock of the key, as in every other change.
    await audit.lock(conn, key.organization_id)
    status = await conn.execute(REVOKE_KEY, key.id, datetime.now(UTC))
    if status == "UPDATE 1":
        await audit.record(conn, key.organization_id, actor, "api_key.revoke", str(key.id))
        await announce(conn, key.id)


async def note_use(conn: Any, key_ids: Sequence[UUID], used_at: Sequence[datetime]) -> None:
    """Record when keys were last used. A time before the recorded one changes nothing."""
    await conn.execute(NOTE_USE, key_ids, used_at)
