"""The keys of callers, as they are administered."""

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit, crypto
from service.accounts.organizations import NAME_LENGTH, announce, check_name
from service.accounts.settings import KeySettings, Role, StatedKeySettings
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.database.database import NOW, Database
from service.errors import (
    ClientError,
    Conflict,
    Forbidden,
    NotFound,
)
from service.formats.parsing import check_future
from service.ids import uuid7

MAX_MODELS: Final = 100
SHOWN_MODELS: Final = 10
_MODEL_NAME: Final = re.compile(r"[!-~]{1,200}", re.ASCII)

INSERT_KEY: Final = """
    INSERT INTO public.api_keys (
        id, organization_id, name, role, digest, prefix, settings, allowed_models, expires_at,
        created_at, updated_at, set_by
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $10, $11)
"""
LIST_KEYS: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, expires_at, revoked_at, created_at, set_by
    FROM public.api_keys
    WHERE organization_id = $1
      AND id > $2
    ORDER BY id
    LIMIT $3
"""
FIND_KEY: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, expires_at, revoked_at, created_at, set_by
    FROM public.api_keys
    WHERE id = $1
"""
CHANGE_KEY: Final = """
    UPDATE public.api_keys
    SET settings = coalesce($2::text::jsonb, settings),
        allowed_models = CASE WHEN $3::boolean THEN $4::text[] ELSE allowed_models END,
        set_by = CASE WHEN $3::boolean THEN $6 ELSE set_by END,
        updated_at = $5
    WHERE id = $1
"""
OWNER_OF_KEY: Final = """
    SELECT organization_id
    FROM public.api_keys
    WHERE id = $1
"""
READ_ALLOWED: Final = """
    SELECT allowed_models, set_by
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


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key, as the operator sees it: never the key itself. ``set_by`` is who set last
    what it may use: administrators may narrow the operator's ``models``, and not widen them."""

    id: UUID
    organization_id: UUID
    name: str
    role: Role
    prefix: str
    settings: KeySettings
    models: list[str] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime
    set_by: Literal["operator", "administrator"]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to be made. ``models`` are the aliases and Venice's models it may use; null for all."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH)]
    role: Role = "inference"
    expires_at: datetime | None = None
    settings: StatedKeySettings | None = None
    models: list[str] | None = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a key is replaced; at least one of them."""

    settings: StatedKeySettings | msgspec.UnsetType = msgspec.UNSET
    models: list[str] | msgspec.UnsetType | None = msgspec.UNSET


def _check_models(models: list[str] | None) -> None:
    """The rule for what a key may use. An empty list would be a key that can do nothing, or a
    mistake for null.

    :raises ClientError: when a list breaks it.
    """
    if models is None:
        return
    if not 1 <= len(models) <= MAX_MODELS:
        raise ClientError(
            f"models: must be null, for all, or 1 to {MAX_MODELS} names.", param="models"
        )
    if not all(_MODEL_NAME.fullmatch(name) for name in models):
        raise ClientError(
            "models: each must be 1 to 200 printable ASCII characters without spaces.",
            param="models",
        )


async def create_key(
    conn: Any, actor: Actor, organization_id: UUID, new: NewKey
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is stored nowhere: this is the only time it is seen.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when an operator's key is asked for a tenant, or the reverse.
    :raises ClientError: when the name or a model breaks its rule, or the expiry is not in the
        future.
    """
    check_name(new.name)
    _check_models(new.models)
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
        expires_at=expires_at,
        revoked_at=None,
        created_at=datetime.now(UTC),
        set_by=actor.set_by,
    )
    await conn.execute(
        INSERT_KEY,
        key.id,
        organization_id,
        key.name,
        key.role,
        crypto.key_digest(secret),
        key.prefix,
        msgspec.json.encode(key.settings).decode(),
        key.models,
        key.expires_at,
        key.created_at,
        key.set_by,
    )
    detail: dict[str, Any] = {"name": key.name, "role": key.role, "prefix": key.prefix}
    if key.models is not None:
        detail["models"] = key.models
    await audit.record(conn, organization_id, actor, "api_key.create", str(key.id), detail)
    return key, secret


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
    return ApiKey(**{**row, "settings": settings})


async def find_key(database: Database, api_key_id: UUID) -> ApiKey:
    """:raises NotFound: when there is none of this id."""
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
    """Give the key other settings or models, here and on every replica.

    :raises ClientError: when neither is given, or a model breaks its rule.
    :raises Forbidden: when an administrator would widen what the operator allows.
    """
    stated = msgspec.to_builtins(change)
    if not stated:
        raise ClientError("settings, models: at least one of them must be given.")
    models = stated.get("models")
    _check_models(models)
    settings = msgspec.json.encode(stated["settings"]).decode() if "settings" in stated else None
    set_by: str = actor.set_by
    await audit.lock(conn, key.organization_id)
    allowed = await conn.fetchrow(READ_ALLOWED, key.id)
    is_of_operator = allowed["set_by"] == "operator" and allowed["allowed_models"] is not None
    if "models" in stated and actor.is_administrator and is_of_operator:
        must_be_among(models, allowed["allowed_models"], "the operator allows this key")
        set_by = "operator"
    now = datetime.now(UTC)
    await conn.execute(CHANGE_KEY, key.id, settings, "models" in stated, models, now, set_by)
    await audit.record(conn, key.organization_id, actor, "api_key.change", str(key.id), stated)
    await announce(conn, key.id)


def must_be_among(
    models: list[str] | None, allowed: Collection[str], whose: str, field: str = "models"
) -> None:
    """:raises Forbidden: when the list is of more than ``whose`` own."""
    if models is None or not set(models) <= set(allowed):
        names = ", ".join(sorted(allowed)[:SHOWN_MODELS])
        raise Forbidden(f"{field}: must be among those that {whose}: {names}.", param=field)


async def is_on_list_of_operator(conn: Any, organization_id: UUID, name: str) -> bool:
    """Whether a key of the organization may use ``name`` because the operator allows it."""
    return bool(await conn.fetchval(IS_ON_LIST_OF_OPERATOR, organization_id, name))


async def revoke_key(conn: Any, actor: Actor, key: ApiKey) -> None:
    """Put the key out of force, here and on every replica. Revoking it again changes nothing."""
    status = await conn.execute(REVOKE_KEY, key.id, datetime.now(UTC))
    if status == "UPDATE 1":
        await audit.record(conn, key.organization_id, actor, "api_key.revoke", str(key.id))
        await announce(conn, key.id)
