"""Organizations, each with a data key of its own."""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit, catalog, crypto, ledger
from service.accounts.settings import OrganizationSettings
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.database.database import Database
from service.errors import (
    ClientError,
    Conflict,
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
# The lock orders the changes of an organization, as that of its audit chain does.
LOCK_ORGANIZATION: Final = """
    SELECT name, status
    FROM public.organizations
    WHERE id = $1
    FOR NO KEY UPDATE
"""
CHANGE_ORGANIZATION: Final = """
    UPDATE public.organizations
    SET settings = $2::text::jsonb, updated_at = $3
    WHERE id = $1
"""
RENAME_ORGANIZATION: Final = """
    UPDATE public.organizations
    SET name = $2, updated_at = now()
    WHERE id = $1
"""
CHANGE_STATUS: Final = """
    UPDATE public.organizations
    SET status = $2, updated_at = now()
    WHERE id = $1
"""
REVOKE_KEYS: Final = """
    WITH locked AS (
        SELECT id
        FROM public.api_keys
        WHERE organization_id = $1
          AND revoked_at IS NULL
        ORDER BY id
        FOR NO KEY UPDATE
    )
    UPDATE public.api_keys k
    SET revoked_at = now(), updated_at = now()
    FROM locked
    WHERE k.id = locked.id
"""
SHRED_ORGANIZATION: Final = """
    UPDATE public.organizations
    SET status = 'deleted', wrapped_data_key = NULL, deleted_at = now(), updated_at = now()
    WHERE id = $1
"""
NEWEST_DATA_KEY: Final = """
    SELECT id, wrapped_data_key
    FROM public.organizations
    WHERE wrapped_data_key IS NOT NULL
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
    status: Literal["active", "suspended", "deleted"]
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
    """Open the data key of the newest organization. Keys are only ever added to the ring, so
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


async def must_be_kept(conn: Any, organization_id: UUID) -> Any:
    """Lock an organization that is to change until the transaction ends, and return its name and
    status. It comes before all other locks of the transaction.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when it was deleted.
    """
    row = await conn.fetchrow(LOCK_ORGANIZATION, organization_id)
    if row is None:
        raise NotFound("There is no such organization.")
    if row["status"] == "deleted":
        raise Conflict("The organization was deleted, which cannot be undone.")
    return row


async def change_organization(
    conn: Any, actor: Actor, organization_id: UUID, settings: OrganizationSettings
) -> None:
    """Give the organization other settings, here and on every replica.

    :raises NotFound, Conflict: when there is no such organization, or it was deleted.
    """
    await must_be_kept(conn, organization_id)
    stored = msgspec.json.encode(settings).decode()
    await conn.execute(CHANGE_ORGANIZATION, organization_id, stored, datetime.now(UTC))
    detail = {"settings": msgspec.to_builtins(settings)}
    await _record(conn, actor, organization_id, "organization.change", detail)


async def rename_organization(conn: Any, actor: Actor, organization_id: UUID, name: str) -> None:
    """Give the organization another name.

    :raises ClientError: when the name breaks its rule.
    :raises NotFound, Conflict: when there is no such organization, or it was deleted.
    """
    check_name(name)
    before = await must_be_kept(conn, organization_id)
    if before["name"] == name:
        return
    await conn.execute(RENAME_ORGANIZATION, organization_id, name)
    detail = {"before": before["name"], "after": name}
    await _record(conn, actor, organization_id, "organization.rename", detail)


async def suspend_organization(conn: Any, actor: Actor, organization_id: UUID) -> None:
    """Refuse the organization's calls on every replica. Calls in flight end, and are booked.
    Suspending it again changes nothing.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when it was deleted, or is the operator's own.
    """
    _must_be_tenant(organization_id)
    before = await must_be_kept(conn, organization_id)
    if before["status"] != "suspended":
        await conn.execute(CHANGE_STATUS, organization_id, "suspended")
        await _record(conn, actor, organization_id, "organization.suspend", {})


async def resume_organization(conn: Any, actor: Actor, organization_id: UUID) -> None:
    """End a suspension on every replica. Resuming an active organization changes nothing.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when it was deleted.
    """
    before = await must_be_kept(conn, organization_id)
    if before["status"] != "active":
        await conn.execute(CHANGE_STATUS, organization_id, "active")
        await _record(conn, actor, organization_id, "organization.resume", {})


async def delete_organization(conn: Any, actor: Actor, organization_id: UUID) -> None:
    """End the organization for good: its keys are revoked, its limits and aliases end, and its data
    key is destroyed, so that nobody can find out whose entries an end user's are. Its name, its
    ledger and its audit events stay. Deleting it again changes nothing.

    An admission that began before may still be committed. Its call ends and is booked as any other,
    since settlement needs nothing that is destroyed here.

    :raises NotFound: when there is no such organization.
    :raises Conflict: when calls are in flight, or it is the operator's own.
    """
    _must_be_tenant(organization_id)
    row = await conn.fetchrow(LOCK_ORGANIZATION, organization_id)
    if row is None:
        raise NotFound("There is no such organization.")
    if row["status"] == "deleted":
        return
    if calls := await ledger.count_in_flight(conn, organization_id):
        raise Conflict(
            f"Calls are in flight: {calls}. Suspend the organization, wait until they have ended,"
            " and delete it then."
        )
    revoked = await conn.execute(REVOKE_KEYS, organization_id)
    aliases = await catalog.end_aliases(conn, organization_id)
    limits = await ledger.end_limits(conn, organization_id)
    await conn.execute(SHRED_ORGANIZATION, organization_id)
    detail = {
        "name": row["name"],
        "keys": int(revoked.removeprefix("UPDATE ")),
        "limits": limits,
        "aliases": aliases,
    }
    await _record(conn, actor, organization_id, "organization.delete", detail)


def _must_be_tenant(organization_id: UUID) -> None:
    """:raises Conflict: for the operator's own organization, whose keys administer all others."""
    if organization_id == OPERATOR_ORGANIZATION_ID:
        raise Conflict("The operator's own organization can be neither suspended nor deleted.")


async def _record(
    conn: Any, actor: Actor, organization_id: UUID, action: str, detail: dict[str, Any]
) -> None:
    """Audit a change of the organization, and announce it to every replica."""
    await audit.record(conn, organization_id, actor, action, str(organization_id), detail)
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
