"""Aliases for models, and the list of all names for administrators.

A global alias belongs to the operator. An organization's alias takes precedence over a global one
for that organization. Each change creates a new version and is audited under the organization it
applies to.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from service import audit
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.catalog.names import Alias
from service.database.database import Database
from service.errors import ClientError, Conflict, Forbidden, NotFound
from service.ids import uuid7

MAX_TARGETS: Final = 8
MAX_ALIASES: Final = 1_000
"""The limit for one organization, or for the global aliases. Every process keeps them in memory."""

Kind = Literal["venice", "alias"]

_NAME: Final = re.compile(r"[!-9;-~]{1,200}", re.ASCII)

READ_ALIASES: Final = """
    SELECT name, organization_id, targets, created_at
    FROM public.models
    WHERE kind = 'alias'
      AND is_current
"""
FIND_NAMES: Final = """
    SELECT m.name, m.kind, m.organization_id, m.targets
    FROM public.models m
    WHERE m.is_current
      AND (m.organization_id IS NULL OR m.organization_id = $1)
      AND (m.name = ANY($2::text[]) OR m.targets && $3::text[])
      AND (m.kind = 'alias' OR m.listing IS NOT NULL)
"""
HAS_MODELS: Final = """
    SELECT EXISTS (
        SELECT
        FROM public.models
        WHERE kind = 'venice'
          AND is_current
          AND listing IS NOT NULL
    )
"""
COUNT_ALIASES: Final = """
    SELECT count(*)
    FROM public.models
    WHERE kind = 'alias'
      AND is_current
      AND organization_id IS NOT DISTINCT FROM $1
"""
END_ALIAS: Final = """
    UPDATE public.models
    SET is_current = false
    WHERE kind = 'alias'
      AND is_current
      AND organization_id IS NOT DISTINCT FROM $1
      AND name = $2
    RETURNING targets
"""
END_ALIASES: Final = """
    UPDATE public.models
    SET is_current = false
    WHERE kind = 'alias'
      AND is_current
      AND organization_id = $1
"""
FIND_SETTER: Final = """
    SELECT set_by
    FROM public.models
    WHERE kind = 'alias'
      AND is_current
      AND organization_id IS NOT DISTINCT FROM $1
      AND name = $2
"""
INSERT_ALIAS: Final = """
    INSERT INTO public.models (id, organization_id, name, version, kind, targets, set_by)
    SELECT $1, $2, $3, coalesce(max(m.version), 0) + 1, 'alias', $4::text[], $5
    FROM public.models m
    WHERE m.organization_id IS NOT DISTINCT FROM $2
      AND m.name = $3
"""
LIST_NAMES: Final = """
    SELECT m.id, m.name, m.kind, m.type, m.version, m.organization_id, m.targets,
           m.prices::text AS prices, m.context_tokens, m.max_output_tokens,
           m.deprecation::text AS deprecation, m.retired_at, m.created_at
    FROM public.models m
    WHERE m.id > $1
      AND ($3::uuid IS NULL OR m.organization_id IS NULL OR m.organization_id = $3)
      AND ($4::text IS NULL OR m.kind = $4)
      AND (
          m.is_current
          OR m.retired_at IS NOT NULL AND NOT EXISTS (
              SELECT
              FROM public.models later
              WHERE later.organization_id IS NULL
                AND later.kind = 'venice'
                AND later.name = m.name
                AND later.version > m.version
          )
      )
    ORDER BY m.id
    LIMIT $2
"""
FIND_NAME: Final = """
    SELECT id, name, kind, type, version, organization_id, targets, prices::text AS prices,
           context_tokens, max_output_tokens, deprecation::text AS deprecation, retired_at,
           created_at
    FROM public.models
    WHERE kind = 'alias'
      AND is_current
      AND organization_id IS NOT DISTINCT FROM $1
      AND name = $2
"""


class NewAlias(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The models an alias resolves to, best first. Without an organization the alias is global."""

    targets: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_TARGETS)]
    organization_id: UUID | None = None


class ListedName(msgspec.Struct, frozen=True, kw_only=True):
    """A name as administrators see it: a Venice model or an alias.

    ``prices`` is Venice's own object. Context and output limits are in tokens.
    """

    id: UUID
    name: str
    kind: Kind
    type: str | None
    version: int
    organization_id: UUID | None
    targets: list[str] | None
    prices: msgspec.Raw | None
    context_tokens: int | None
    max_output_tokens: int | None
    deprecation: msgspec.Raw | None
    retired_at: datetime | None
    created_at: datetime


async def read(database: Database) -> list[Alias]:
    """Read all current aliases."""
    return [
        Alias(**{**row, "targets": tuple(row["targets"])})
        for row in await database.fetch(READ_ALIASES)
    ]


async def set_alias(conn: Any, actor: Actor, name: str, new: NewAlias) -> None:
    """Point ``name`` at these models. Takes effect on every replica within seconds.

    Setting the same targets again changes nothing.

    :raises ClientError: when the name or a target is invalid.
    :raises Conflict: when the name is a Venice model, or the organization has too many aliases.
    :raises Forbidden: when an administrator tries to change an alias that the operator set.
    """
    if not _NAME.fullmatch(name):
        raise ClientError(
            "alias: must be 1 to 200 printable ASCII characters, without spaces or ':'.",
            param="alias",
        )
    targets, owner = list(new.targets), new.organization_id
    if not 1 <= len(targets) <= MAX_TARGETS or len(set(targets)) < len(targets):
        raise ClientError(f"targets: must be 1 to {MAX_TARGETS} different models.", param="targets")
    # Take this lock before any other. It excludes the catalogue writer and other alias changes.
    await audit.lock(conn, owner or OPERATOR_ORGANIZATION_ID)
    await _require_own_alias(conn, actor, owner, name)
    await _check_names(conn, name, targets, owner)
    before = await conn.fetchrow(FIND_NAME, owner, name)
    if before is not None and before["targets"] == targets:
        return
    if before is None and await conn.fetchval(COUNT_ALIASES, owner) >= MAX_ALIASES:
        raise Conflict(f"There are already {MAX_ALIASES} aliases. Remove one first.")
    await conn.execute(END_ALIAS, owner, name)
    await conn.execute(INSERT_ALIAS, uuid7(), owner, name, targets, actor.set_by)
    detail = {
        "organization_id": owner and str(owner),
        "before": before and before["targets"],
        "after": targets,
    }
    await audit.record(
        conn, owner or OPERATOR_ORGANIZATION_ID, actor, "model_alias.set", name, detail
    )


async def _require_own_alias(conn: Any, actor: Actor, owner: UUID | None, name: str) -> None:
    if actor.is_administrator and await conn.fetchval(FIND_SETTER, owner, name) == "operator":
        raise Forbidden(
            "alias: the operator set this alias, so only the operator can change it.",
            param="alias",
        )


async def _check_names(conn: Any, name: str, targets: list[str], owner: UUID | None) -> None:
    found = await conn.fetch(FIND_NAMES, owner, [name, *targets], [name])
    models = {row["name"] for row in found if row["kind"] == "venice"}
    aliases = {row["name"]: row["targets"] for row in found if row["kind"] == "alias"}
    if name in models:
        raise Conflict(f"alias: {name!r} is the name of a Venice model.", param="alias")
    for target in targets:
        if target == name or target in aliases:
            raise ClientError(f"targets: {target[:200]!r} is itself an alias.", param="targets")
    for other, its_targets in aliases.items():
        if name in its_targets:
            raise Conflict(f"alias: {name!r} is a target of the alias {other!r}.", param="alias")
    unknown = [target for target in targets if target not in models]
    if unknown and await conn.fetchval(HAS_MODELS):
        raise ClientError(
            f"targets: {unknown[0][:200]!r} is not a model on Venice's list.", param="targets"
        )


async def remove_alias(conn: Any, actor: Actor, name: str, organization_id: UUID | None) -> None:
    """Remove an alias. Takes effect on every replica within seconds.

    :raises NotFound: when there is no such alias.
    :raises Forbidden: when an administrator tries to remove an alias that the operator set.
    """
    owner = organization_id or OPERATOR_ORGANIZATION_ID
    await audit.lock(conn, owner)
    await _require_own_alias(conn, actor, organization_id, name)
    before = await conn.fetchrow(END_ALIAS, organization_id, name)
    if before is None:
        raise NotFound("There is no such alias.", param="alias")
    detail = {
        "organization_id": organization_id and str(organization_id),
        "before": before["targets"],
        "after": None,
    }
    await audit.record(conn, owner, actor, "model_alias.remove", name, detail)


async def end_aliases(conn: Any, organization_id: UUID) -> int:
    """Remove all aliases of an organization that is deleted, and return how many there were. The
    caller has locked the organization, and audits its end."""
    status: str = await conn.execute(END_ALIASES, organization_id)
    return int(status.removeprefix("UPDATE "))


async def find_alias(database: Database, name: str, organization_id: UUID | None) -> ListedName:
    """Return one alias.

    :raises NotFound: when there is no such alias.
    """
    row = await database.fetchrow(FIND_NAME, organization_id, name)
    if row is None:
        raise NotFound("There is no such alias.", param="alias")
    return _listed(row)


async def list_names(
    database: Database,
    after: UUID,
    limit: int,
    organization_id: UUID | None = None,
    kind: Kind | None = None,
) -> Sequence[ListedName]:
    """List the names after the given id, including retired models.

    With an organization, the aliases of other organizations are left out.
    """
    rows = await database.fetch(LIST_NAMES, after, limit, organization_id, kind)
    return [_listed(row) for row in rows]


def _listed(row: Any) -> ListedName:
    raw = {
        column: msgspec.Raw(row[column].encode()) if row[column] is not None else None
        for column in ("prices", "deprecation")
    }
    return ListedName(**{**row, **raw})
