"""Venice's models and the aliases, as people look for them."""

import contextlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from service.catalog import PriceLine, price_lines
from service.database.database import Database
from service.formats.parsing import parse_day, parse_instant

ModelKind = Literal["model", "alias", "retired"]

SEARCH_NAMES: Final = """
    SELECT m.id, m.name, m.type, m.targets, m.organization_id, o.name AS organization_name,
           m.prices::text AS prices, m.context_tokens, m.max_output_tokens,
           m.capabilities::text AS capabilities, m.deprecation::text AS deprecation,
           m.also_named, m.set_by, m.retired_at, m.created_at
    FROM public.models m
    LEFT JOIN public.organizations o ON o.id = m.organization_id
    WHERE CASE $1::text
              WHEN 'alias' THEN m.is_current AND m.kind = 'alias'
              WHEN 'model' THEN m.is_current AND m.kind = 'venice'
              ELSE m.retired_at IS NOT NULL
                   AND NOT EXISTS (
                       SELECT
                       FROM public.models later
                       WHERE later.organization_id IS NULL
                         AND later.kind = 'venice'
                         AND later.name = m.name
                         AND later.version > m.version
                   )
          END
      AND ($2::text IS NULL OR m.type = $2)
      AND (
          $3::text IS NULL
          OR strpos(
              lower(concat_ws(' ', m.name, array_to_string(m.targets || m.also_named, ' '))),
              lower($3)
          ) > 0
      )
      AND ($4::uuid IS NULL OR m.organization_id IS NULL OR m.organization_id = $4)
      AND (
          $5::uuid IS NULL
          OR (m.name, m.id) > ((SELECT last.name FROM public.models last WHERE last.id = $5), $5)
      )
    ORDER BY m.name, m.id
    LIMIT $6
"""
LIST_TYPES: Final = """
    SELECT DISTINCT type
    FROM public.models
    WHERE kind = 'venice'
      AND is_current
      AND type IS NOT NULL
    ORDER BY type
"""

_CAPABILITY: Final = re.compile(r"^(?:supports|optimizedFor)(?=[A-Z])")
_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class ModelFilter(msgspec.Struct, frozen=True, kw_only=True):
    """The names to find. ``text`` may be a part of a name, of an alias's targets, or of another
    name of the model. With ``organization_id`` the aliases of other organizations are left out."""

    kind: ModelKind = "model"
    type: str | None = None
    text: str | None = None
    organization_id: UUID | None = None


class Deprecation(msgspec.Struct, frozen=True, kw_only=True):
    """What Venice states about the end of a model; None for what it does not state."""

    starts_at: datetime | None = None
    removes_at: datetime | None = None
    replacement: str | None = None


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    """A model of Venice's, or an alias with its targets.

    ``organization_id`` is null for models and for aliases that everybody has. ``prices`` is empty
    where Venice states none.
    """

    id: UUID
    name: str
    type: str | None
    targets: list[str] | None
    organization_id: UUID | None
    organization_name: str | None
    prices: Sequence[PriceLine]
    context_tokens: int | None
    max_output_tokens: int | None
    capabilities: Sequence[str]
    deprecation: Deprecation | None
    also_named: list[str]
    set_by: str
    retired_at: datetime | None
    created_at: datetime


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of names; ``next`` is null on the last."""

    models: Sequence[ModelLine]
    next: UUID | None


async def search(
    database: Database, wanted: ModelFilter, after: UUID | None, limit: int
) -> ModelPage:
    """Find models or aliases in the order of their names, after the one with the id ``after``."""
    rows = await database.fetch(
        SEARCH_NAMES,
        wanted.kind,
        wanted.type,
        wanted.text or None,
        wanted.organization_id,
        after,
        limit + 1,
    )
    lines = [_line(row) for row in rows[:limit]]
    return ModelPage(models=lines, next=lines[-1].id if len(rows) > limit else None)


async def list_types(database: Database) -> Sequence[str]:
    """List the types of the models on Venice's list."""
    return [row["type"] for row in await database.fetch(LIST_TYPES)]


def _line(row: Any) -> ModelLine:
    facts = dict(row)
    prices = facts["prices"]
    facts["prices"] = [] if prices is None else price_lines(facts["type"] or "", prices.encode())
    facts["capabilities"] = _capabilities(msgspec.json.decode(facts["capabilities"]))
    facts["deprecation"] = _deprecation(facts["deprecation"])
    return ModelLine(**facts)


def _capabilities(stated: Any) -> list[str]:
    """The names of what a model can do: ``supportsFunctionCalling`` is ``function calling``."""
    if not isinstance(stated, dict):
        return []
    return [
        " ".join(
            word if word.isupper() else word.lower()
            for word in _WORDS.split(_CAPABILITY.sub("", name))
        )
        for name, value in stated.items()
        if value is True
    ]


def _deprecation(stated: str | None) -> Deprecation | None:
    """What Venice states, as far as it can be parsed."""
    facts = None if stated is None else msgspec.json.decode(stated)
    if not facts:
        return None
    if not isinstance(facts, dict):
        return Deprecation()
    replacement = facts.get("replacementModelId")
    return Deprecation(
        starts_at=_instant(facts.get("startsAt")),
        removes_at=_instant(facts.get("removesAt") or facts.get("date")),
        replacement=replacement if isinstance(replacement, str) else None,
    )


def _instant(stated: Any) -> datetime | None:
    """A day or an instant; None for anything else."""
    if isinstance(stated, str):
        for parse in (parse_instant, parse_day):
            with contextlib.suppress(ValueError):
                return parse(stated)
    return None
