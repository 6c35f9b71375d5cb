"""Organizations and the keys of their callers.

A key is 256 random bits; the database holds its SHA-256. What a key may do is read through a small
cache that only saves reads: NOTIFY empties it when a key or an organization changes, each entry is
read again after a few seconds whatever NOTIFY said, and paid calls are checked again at admission.
"""

import re
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit, crypto
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.db import Database, uuid7
from service.errors import (
    ClientError,
    Conflict,
    Forbidden,
    NotFound,
    StartupError,
    Unauthenticated,
)

CHANNEL: Final = "rialto_accounts"
"""NOTIFY on this channel means that a key or an organization changed."""
CACHED_CALLERS: Final = 10_000
NAME_LENGTH: Final = 200
UNPRINTABLE: Final = ("Cc", "Cs")
"""Unicode's categories of control characters, NUL among them, and of halves of a character: the
database takes neither NUL nor halves, and a terminal obeys the others."""

END_USERS: Final = "end users"
"""The purpose of the key under which end users' names are digested."""

OutputTokens = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
ParameterName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9_]{1,64}$")]
ParameterValue = bool | int | float | Annotated[str, msgspec.Meta(max_length=256)] | None
VeniceParameters = Annotated[dict[ParameterName, ParameterValue], msgspec.Meta(max_length=32)]
Role = Literal["inference", "admin", "operator"]

MOST_MODELS: Final = 100
_MODEL_NAME: Final = re.compile(r"[!-~]{1,200}", re.ASCII)

FIND_CALLER: Final = """
    SELECT k.id, k.organization_id, k.name, k.role, k.digest, k.previous_digest, k.previous_until,
           k.expires_at, k.revoked_at, k.settings::text AS settings, k.allowed_models,
           o.status AS organization_status, o.wrapped_data_key,
           o.settings::text AS organization_settings,
           EXISTS (
               SELECT
               FROM public.limits l
               WHERE l.organization_id = o.id
                 AND l.template_id IS NULL
                 AND l.deleted_at IS NULL
                 AND l.unit = 'usd'
           ) AS has_money_limit,
           EXISTS (
               SELECT
               FROM public.limits l
               WHERE l.organization_id = o.id
                 AND l.template_id IS NULL
                 AND l.deleted_at IS NULL
                 AND l.model IS NOT NULL
           ) AS has_model_limit
    FROM public.api_keys k
    JOIN public.organizations o ON o.id = k.organization_id
    WHERE k.digest = $1
       OR k.previous_digest = $1
"""
INSERT_ORGANIZATION: Final = """
    INSERT INTO public.organizations (id, name, wrapped_data_key, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $4)
"""
LIST_ORGANIZATIONS: Final = """
    SELECT id, name, status, settings::text AS settings, created_at
    FROM public.organizations
    WHERE id > $1
    ORDER BY id
    LIMIT $2
"""
FIND_ORGANIZATION: Final = """
    SELECT id, name, status, settings::text AS settings, created_at
    FROM public.organizations
    WHERE id = $1
"""
CHANGE_ORGANIZATION: Final = """
    UPDATE public.organizations
    SET settings = $2::text::jsonb, updated_at = $3
    WHERE id = $1
"""
INSERT_KEY: Final = """
    INSERT INTO public.api_keys (
        id, organization_id, name, role, digest, prefix, settings, allowed_models, expires_at,
        created_at, updated_at
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, $9, $10, $10)
"""
LIST_KEYS: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, expires_at, revoked_at, created_at
    FROM public.api_keys
    WHERE organization_id = $1
      AND id > $2
    ORDER BY id
    LIMIT $3
"""
FIND_KEY: Final = """
    SELECT id, organization_id, name, role, prefix, settings::text AS settings,
           allowed_models AS models, expires_at, revoked_at, created_at
    FROM public.api_keys
    WHERE id = $1
"""
CHANGE_KEY: Final = """
    UPDATE public.api_keys
    SET settings = coalesce($2::text::jsonb, settings),
        allowed_models = CASE WHEN $3::boolean THEN $4::text[] ELSE allowed_models END,
        updated_at = $5
    WHERE id = $1
"""
REVOKE_KEY: Final = """
    UPDATE public.api_keys
    SET revoked_at = $2, updated_at = $2
    WHERE id = $1
      AND revoked_at IS NULL
"""
NEWEST_DATA_KEY: Final = """
    SELECT id, wrapped_data_key
    FROM public.organizations
    WHERE status = 'active'
      AND wrapped_data_key IS NOT NULL
    ORDER BY id DESC
    LIMIT 1
"""
FIND_DATA_KEY: Final = """
    SELECT wrapped_data_key
    FROM public.organizations
    WHERE id = $1
"""
ANNOUNCE: Final = "SELECT pg_notify($1, $2)"


class OrganizationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an organization's calls get where neither they nor their keys say anything."""

    venice_parameters: VeniceParameters = {}


class StatedOrganizationSettings(
    OrganizationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Settings as they are asked for; what is stored may be of a newer version."""


class KeySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's calls get where they say nothing themselves.

    ``default_max_output_tokens`` caps the output of a call that sets no maximum. With
    ``least_output_tokens`` a call that its limits cannot afford is not refused but cut down to the
    output they can, as long as it is at least this much. ``venice_parameters`` are Venice's own,
    for calls of text. ``tolerant`` leaves out, or renames, what clients send on their own account
    and Venice refuses. With ``repeat_failed`` a call of text that Venice failed is tried a second
    time, though the first may have been charged: it is admitted for both. A call whose client
    hangs up is cancelled at Venice, or with ``on_disconnect`` "finish" read to its end and billed
    exactly.
    """

    default_max_output_tokens: OutputTokens = 8_192
    least_output_tokens: OutputTokens | None = None
    venice_parameters: VeniceParameters = {}
    tolerant: bool = True
    repeat_failed: bool = False
    on_disconnect: Literal["cancel", "finish"] = "cancel"


class StatedKeySettings(KeySettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings as they are asked for; what is stored may be of a newer version."""


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, as the operator sees it."""

    id: UUID
    name: str
    status: str
    settings: OrganizationSettings
    created_at: datetime


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A caller's key, as the operator sees it: never the key itself."""

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


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling: a key in force, or the operator (whose ``api_key_id`` is None)."""

    organization_id: UUID
    api_key_id: UUID | None
    role: Role
    pseudonym_key: bytes = b""
    end_users_key: bytes = b""
    settings: KeySettings = KeySettings()
    expires_at: datetime | None = None
    allowed_models: frozenset[str] | None = None
    """Aliases and models of Venice's that it may use; None for all."""
    has_money_limit: bool = False
    """Whether any limit of its organization is one of money."""
    has_model_limit: bool = False
    """Whether any limit of its organization is for one model."""

    @property
    def actor_name(self) -> str:
        return "operator" if self.api_key_id is None else f"api_key:{self.api_key_id}"

    def pseudonym(self, end_user: str) -> str:
        """What upstream gets to see instead of ``end_user``; differs for each key."""
        return crypto.pseudonym(self.pseudonym_key, str(self.api_key_id), end_user)

    def end_user_digest(self, end_user: str) -> bytes:
        """What the books keep instead of ``end_user``; the same for all keys of an organization."""
        return crypto.end_user_digest(self.end_users_key, end_user)

    def __repr__(self) -> str:
        return f"<Caller {self.role} {self.actor_name} of {self.organization_id}>"


OPERATOR: Final = Caller(organization_id=OPERATOR_ORGANIZATION_ID, api_key_id=None, role="operator")


class _Known(msgspec.Struct, frozen=True):
    read_at: float
    row: Any
    caller: Caller


class Callers:
    """Answers who a bearer key belongs to."""

    def __init__(self, database: Database, keyring: crypto.Keyring, cache_s: float) -> None:
        self._database = database
        self._keyring = keyring
        self._cache_s = cache_s
        self._cache: OrderedDict[bytes, _Known] = OrderedDict()
        self._changes = 0

    def forget(self) -> None:
        """Something changed: read each key again on its next use."""
        self._changes += 1
        self._cache.clear()

    async def identify(self, key: str) -> Caller:
        """The caller whose key this is.

        :raises Unauthenticated: malformed, unknown, revoked or expired; each has its own code.
        :raises Forbidden: when its organization is not active.
        :raises Unavailable: when the database cannot say; that is never a 401.
        """
        if not crypto.API_KEY_FORM.fullmatch(key):
            raise Unauthenticated(
                "The API key is malformed: a key is rk_ and 43 letters, digits, - or _.",
                code="malformed_api_key",
            )
        digest = crypto.key_digest(key)
        known = self._cache.get(digest)
        if known is None or time.monotonic() - known.read_at > self._cache_s:
            known = await self._read(digest)
        _check_in_force(known.row, digest)
        return known.caller

    async def _read(self, digest: bytes) -> _Known:
        changes, read_at = self._changes, time.monotonic()
        row = await self._database.fetchrow(FIND_CALLER, digest)
        if row is None:
            self._cache.pop(digest, None)
            raise Unauthenticated("The API key is not known here.", code="invalid_api_key")
        known = _Known(read_at, row, self._caller(row))
        # What was read before a change was announced may be what the change replaced.
        if changes == self._changes:
            self._cache[digest] = known
            self._cache.move_to_end(digest)
            if len(self._cache) > CACHED_CALLERS:
                self._cache.popitem(last=False)
        return known

    def _caller(self, row: Any) -> Caller:
        pseudonym_key = end_users_key = b""
        if row["wrapped_data_key"] is not None:
            owner = row["organization_id"].bytes
            data_key = self._keyring.open_data_key(owner, row["wrapped_data_key"])
            pseudonym_key = crypto.derive(data_key, "pseudonym")
            end_users_key = crypto.derive(data_key, END_USERS)
        return Caller(
            organization_id=row["organization_id"],
            api_key_id=row["id"],
            role=row["role"],
            pseudonym_key=pseudonym_key,
            end_users_key=end_users_key,
            settings=_merged(row),
            expires_at=row["expires_at"],
            allowed_models=_set(row["allowed_models"]),
            has_money_limit=row["has_money_limit"],
            has_model_limit=row["has_model_limit"],
        )


def _set(names: list[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def _merged(row: Any) -> KeySettings:
    """The key's settings over those of its organization."""
    settings = msgspec.json.decode(row["settings"], type=KeySettings)
    common = msgspec.json.decode(row["organization_settings"], type=OrganizationSettings)
    parameters = {**common.venice_parameters, **settings.venice_parameters}
    return msgspec.structs.replace(settings, venice_parameters=parameters)


def _check_in_force(row: Any, digest: bytes) -> None:
    now = datetime.now(UTC)
    if not crypto.equal(row["digest"], digest):
        replaced = row["previous_digest"]
        if replaced is None or not crypto.equal(replaced, digest):
            raise Unauthenticated("The API key is not known here.", code="invalid_api_key")
        if row["previous_until"] <= now:
            raise Unauthenticated(
                "The API key was rotated and its overlap is over.", code="expired_api_key"
            )
    if row["revoked_at"] is not None:
        raise Unauthenticated("The API key was revoked.", code="revoked_api_key")
    if row["expires_at"] is not None and row["expires_at"] <= now:
        raise Unauthenticated("The API key has expired.", code="expired_api_key")
    if row["organization_status"] != "active":
        raise Forbidden(
            f"The organization is {row['organization_status']}.", code="organization_inactive"
        )


def _check_name(name: str) -> None:
    """The rule for the names of organizations and keys, whichever way they come in.

    :raises ClientError: when the name breaks it.
    """
    unprintable = any(unicodedata.category(character) in UNPRINTABLE for character in name)
    if not name.strip() or len(name) > NAME_LENGTH or unprintable:
        raise ClientError(
            f"name: must be 1 to {NAME_LENGTH} characters, not only white space, and without"
            " control characters.",
            param="name",
        )


def _check_expiry(expires_at: datetime) -> None:
    if expires_at.tzinfo is None:
        raise ClientError(
            "expires_at: must have a time zone, as in 2030-01-01T00:00:00Z.", param="expires_at"
        )
    if expires_at <= datetime.now(UTC):
        raise ClientError("expires_at: must be in the future.", param="expires_at")


def _check_models(models: list[str] | None) -> None:
    """The rule for what a key may use. An empty list would be a key that can do nothing, or a
    mistake for null.

    :raises ClientError: when a list breaks it.
    """
    if models is None:
        return
    if not 1 <= len(models) <= MOST_MODELS:
        raise ClientError(
            f"models: must be null, for all, or 1 to {MOST_MODELS} names.", param="models"
        )
    if not all(_MODEL_NAME.fullmatch(name) for name in models):
        raise ClientError(
            "models: each must be 1 to 200 printable ASCII characters without spaces.",
            param="models",
        )


async def check_master_key(database: Database, keyring: crypto.Keyring) -> None:
    """Open the data key of the newest active organization. Keys are only ever added to the ring, so
    a ring that does not open this one was replaced or belongs to another database, and what it
    wrapped from now on would be lost on the way back.

    :raises StartupError: when it does not open. An empty database fits every ring.
    """
    row = await database.fetchrow(NEWEST_DATA_KEY)
    if row is None:
        return
    try:
        keyring.open_data_key(row["id"].bytes, row["wrapped_data_key"])
    except crypto.UnknownMasterKey:
        raise StartupError(
            f"No key in ENCRYPTION_KEY opens the data key of organization {row['id']}.",
            "Add the key that was in force to ENCRYPTION_KEY, after the new one and a comma.",
        ) from None


async def create_organization(
    conn: Any, keyring: crypto.Keyring, actor: Actor, name: str
) -> Organization:
    """A new organization with a data key of its own.

    :raises ClientError: when the name breaks its rule.
    """
    _check_name(name)
    organization = Organization(
        id=uuid7(),
        name=name,
        status="active",
        settings=OrganizationSettings(),
        created_at=datetime.now(UTC),
    )
    wrapped = keyring.new_data_key(organization.id.bytes)
    await conn.execute(INSERT_ORGANIZATION, organization.id, name, wrapped, organization.created_at)
    await audit.record(
        conn,
        organization.id,
        actor,
        "organization.create",
        str(organization.id),
        {"name": name},
    )
    return organization


async def list_organizations(database: Database, after: UUID, limit: int) -> Sequence[Organization]:
    """Organizations by age, oldest first, after the one given; the operator's own is left out."""
    rows = await database.fetch(LIST_ORGANIZATIONS, after, limit)
    return [_organization(row) for row in rows]


def _organization(row: Any) -> Organization:
    settings = msgspec.json.decode(row["settings"], type=OrganizationSettings)
    return Organization(**{**row, "settings": settings})


async def find_organization(database: Database, organization_id: UUID) -> Organization:
    """:raises NotFound: when there is none of this id."""
    row = await database.fetchrow(FIND_ORGANIZATION, organization_id)
    if row is None:
        raise NotFound("There is no such organization.")
    return _organization(row)


async def change_organization(
    conn: Any, actor: Actor, organization_id: UUID, settings: OrganizationSettings
) -> None:
    """Give the organization other settings, here and on every replica."""
    stored = msgspec.json.encode(settings).decode()
    detail = {"settings": msgspec.to_builtins(settings)}
    target = str(organization_id)
    # First, since it locks the organization and says if there is none.
    await audit.record(conn, organization_id, actor, "organization.change", target, detail)
    await conn.execute(CHANGE_ORGANIZATION, organization_id, stored, datetime.now(UTC))
    await conn.execute(ANNOUNCE, CHANNEL, target)


async def end_user_digest(
    database: Database, keyring: crypto.Keyring, organization_id: UUID, end_user: str
) -> bytes:
    """What the organization's books keep instead of the end user's name.

    :raises NotFound: when there is no such organization, or its data key was shredded.
    """
    wrapped = await database.fetchval(FIND_DATA_KEY, organization_id)
    if wrapped is None:
        raise NotFound("There is no such organization, or its data key was shredded.")
    data_key = keyring.open_data_key(organization_id.bytes, wrapped)
    return crypto.end_user_digest(crypto.derive(data_key, END_USERS), end_user)


async def create_key(
    conn: Any, actor: Actor, organization_id: UUID, new: NewKey
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is stored nowhere: this is the only time it is seen.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when an operator's key is asked for a tenant, or the reverse.
    :raises ClientError: when the name or a model breaks its rule, or the expiry is not in the
        future.
    """
    _check_name(new.name)
    _check_models(new.models)
    if new.expires_at is not None:
        _check_expiry(new.expires_at)
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
        expires_at=new.expires_at,
        revoked_at=None,
        created_at=datetime.now(UTC),
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
    )
    detail: dict[str, Any] = {"name": key.name, "role": key.role, "prefix": key.prefix}
    if key.models is not None:
        detail["models"] = key.models
    await audit.record(conn, organization_id, actor, "api_key.create", str(key.id), detail)
    return key, secret


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


async def change_key(conn: Any, actor: Actor, key: ApiKey, change: KeyChange) -> None:
    """Give the key other settings or models, here and on every replica.

    :raises ClientError: when neither is given, or a model breaks its rule.
    """
    stated = msgspec.to_builtins(change)
    if not stated:
        raise ClientError("settings, models: at least one of them must be given.")
    models = stated.get("models")
    _check_models(models)
    settings = msgspec.json.encode(stated["settings"]).decode() if "settings" in stated else None
    await conn.execute(CHANGE_KEY, key.id, settings, "models" in stated, models, datetime.now(UTC))
    await audit.record(conn, key.organization_id, actor, "api_key.change", str(key.id), stated)
    await conn.execute(ANNOUNCE, CHANNEL, str(key.id))


async def revoke_key(conn: Any, actor: Actor, key: ApiKey) -> None:
    """Put the key out of force, here and on every replica. Revoking it again changes nothing."""
    status = await conn.execute(REVOKE_KEY, key.id, datetime.now(UTC))
    if status == "UPDATE 1":
        await audit.record(conn, key.organization_id, actor, "api_key.revoke", str(key.id))
        await conn.execute(ANNOUNCE, CHANNEL, str(key.id))
