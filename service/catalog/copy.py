"""The database copy of Venice's model list.

Several replicas may write it. The lock on the operator's audit chain admits one at a time, and a
process that finds the copy changed since it asked Venice writes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from service import audit
from service.audit import OPERATOR_ORGANIZATION_ID, RIALTO
from service.catalog.models import Changes, Model, Stored, compare, read_model
from service.database.database import Database
from service.ids import uuid7

log = structlog.get_logger()

READ_MODELS: Final = """
    SELECT name, version, listing, position, also_named, retired_at
    FROM public.models m
    WHERE organization_id IS NULL
      AND kind = 'venice'
      AND listing IS NOT NULL
      AND (
          is_current
          OR retired_at IS NOT NULL AND NOT EXISTS (
              SELECT
              FROM public.models later
              WHERE later.organization_id IS NULL
                AND later.kind = 'venice'
                AND later.name = m.name
                AND later.version > m.version
          )
      )
"""
READ_TAKEN_NAMES: Final = """
    SELECT name
    FROM public.models
    WHERE organization_id IS NULL
      AND kind = 'alias'
      AND is_current
"""
END_VERSIONS: Final = """
    UPDATE public.models
    SET is_current = false
    WHERE organization_id IS NULL
      AND kind = 'venice'
      AND is_current
      AND name = ANY($1::text[])
"""
INSERT_VERSIONS: Final = """
    INSERT INTO public.models (
        id, name, version, kind, type, capabilities, prices, context_tokens, max_output_tokens,
        deprecation, listing, position, also_named
    )
    SELECT new.id, new.name, coalesce(last.version, 0) + 1, 'venice', new.type,
           coalesce(new.capabilities, '{}'), new.prices, new.context_tokens, new.max_output_tokens,
           new.deprecation, new.listing, new.position, new.also_named
    FROM jsonb_to_recordset($1::text::jsonb) AS new(
        id uuid, name text, type text, capabilities jsonb, prices jsonb, context_tokens integer,
        max_output_tokens integer, deprecation jsonb, listing text, position integer,
        also_named text[]
    )
    LEFT JOIN LATERAL (
        SELECT m.version
        FROM public.models m
        WHERE m.organization_id IS NULL
          AND m.name = new.name
        ORDER BY m.version DESC
        LIMIT 1
    ) AS last ON true
"""
REFRESH_MODELS: Final = """
    UPDATE public.models m
    SET listing = new.listing, position = new.position, also_named = new.also_named
    FROM jsonb_to_recordset($1::text::jsonb) AS new(
        name text, listing text, position integer, also_named text[]
    )
    WHERE m.organization_id IS NULL
      AND m.kind = 'venice'
      AND m.is_current
      AND m.name = new.name
"""
RETIRE_MODELS: Final = """
    UPDATE public.models
    SET is_current = false, retired_at = now()
    WHERE organization_id IS NULL
      AND kind = 'venice'
      AND is_current
      AND name = ANY($1::text[])
"""

Copy = dict[str, Stored]


async def read(database: Database) -> Copy:
    """Read the copied models by name, including retired ones."""
    return _stored(await database.fetch(READ_MODELS))


def _stored(rows: Iterable[Any]) -> Copy:
    copy = {}
    for row in rows:
        model = msgspec.structs.replace(
            read_model(row["listing"]),
            name=row["name"],
            position=row["position"],
            also_named=tuple(row["also_named"]),
        )
        copy[model.name] = Stored(model=model, version=row["version"], retired_at=row["retired_at"])
    return copy


async def write(database: Database, before: Copy, listed: Sequence[Model]) -> None:
    """Update the copy to match Venice's list, unless it changed since ``before`` was read.

    Price, deprecation, added and removed models are audited.
    """
    if not compare(before, listed):
        return
    async with database.transaction() as conn:
        # Take this lock before any other. It excludes other replicas and changes to global aliases.
        await audit.lock(conn, OPERATOR_ORGANIZATION_ID)
        if _stored(await conn.fetch(READ_MODELS)) != before:
            return
        taken = {row["name"] for row in await conn.fetch(READ_TAKEN_NAMES)}
        changes = compare(before, listed, taken)
        if not changes:
            return
        await _write(conn, changes)
        # The first fill of an empty table is not news.
        events = _events(changes) if before else []
        for action, name, detail in events:
            await audit.record(conn, OPERATOR_ORGANIZATION_ID, RIALTO, action, name, detail)
    for action, name, detail in events:
        log.info("catalogue changed", action=action, model=name, **detail)


async def _write(conn: Any, changes: Changes) -> None:
    versions = [*changes.added, *(model for _, model in changes.changed)]
    if versions:
        await conn.execute(END_VERSIONS, [model.name for model in versions])
        rows = [{"id": uuid7(), **msgspec.structs.asdict(model)} for model in versions]
        await conn.execute(INSERT_VERSIONS, _encoded(rows))
    if changes.refreshed:
        rows = [msgspec.structs.asdict(model) for model in changes.refreshed]
        await conn.execute(REFRESH_MODELS, _encoded(rows))
    if changes.gone:
        await conn.execute(RETIRE_MODELS, [model.name for model in changes.gone])


def _encoded(rows: Sequence[Mapping[str, Any]]) -> str:
    return msgspec.json.Encoder(decimal_format="number").encode(rows).decode()


def _events(changes: Changes) -> list[tuple[str, str, dict[str, Any]]]:
    """Build the action, target and detail of each event.

    Decimals are encoded as strings, so prices are decimal strings in USD.
    """
    events: list[tuple[str, str, dict[str, Any]]] = []
    for model in changes.added:
        detail = {"type": model.type, "prices": model.prices, "deprecation": model.deprecation}
        events.append(("model.added", model.name, detail))
    for before, after in changes.changed:
        for action, was, now in (
            ("model.price", before.prices, after.prices),
            ("model.deprecation", before.deprecation, after.deprecation),
        ):
            if was != now:
                events.append((action, after.name, {"before": was, "after": now}))
    for model in changes.gone:
        detail = {"replacement": model.replacement, "deprecation": model.deprecation}
        events.append(("model.gone", model.name, detail))
    return events
