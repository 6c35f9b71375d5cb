"""Organizations, each with a data key of its own."""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from service import audit, crypto
from service.accounts.settings import OrganizationSettings
from service.audit import Actor
from service.database.database import Database
from service.errors import (
    ClientError,
    NotFound,
    StartupError,
)
from service.ids import uuid7

CHANNEL: Final = "rialto_accounts"
"""NOTIFY on this channel means that a key, an organization or its limits changed."""
NAME_LENGTH: Final = 200
UNPRINTABLE: Final = ("Cc", "Cs")
"""Unicode's categories of control characters, NUL among them, and of halves of a character: the
database takes neither NUL nor halves, and a terminal obeys the others."""

END_USERS: Final = "end users"
"""The purpose of the key under which end users' names are digested."""

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


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, as the operator sees it."""

    id: UUID
    name: str
    status: str
    settings: OrganizationSettings
    created_at: datetime


def is_valid_name(name: str) -> bool:
    """Whether the name of an organization or a key keeps its rule."""
    unprintable = any(unicodedata.category(character) in UNPRINTABLE for character in name)
    return bool(name.strip()) and len(name) <= NAME_LENGTH and not unprintable


def check_name(name: str) -> None:
    """The rule for the names of organizations and keys, whichever way they come in.

    :raises ClientError: when the name breaks it.
    """
    if not is_valid_name(name):
        raise ClientError(
            f"name: must be 1 to {NAME_LENGTH} characters, not only white space, and without"
            " control characters.",
            param="name",
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
    check_name(name)
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
    # First, since it locks the organization and raises if there is none.
    await audit.record(conn, organization_id, actor, "organization.change", target, detail)
    await conn.execute(CHANGE_ORGANIZATION, organization_id, stored, datetime.now(UTC))
    await announce(conn, organization_id)


async def announce(conn: Any, changed_id: UUID) -> None:
    """Let every replica read its callers again: a key, an organization or a limit has changed."""
    await conn.execute(ANNOUNCE, CHANNEL, str(changed_id))


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
