"""Removes old refusals and attempts, in small steps and by any number of processes at once."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from service.database.database import Database

TABLES: Final = ("derived.refusals", "derived.attempts")
STEP_ROWS: Final = 2_000
"""How many rows one statement removes, which takes some ten milliseconds."""


# Rows that another process removes are skipped.
DELETE: Final = """
    WITH old AS (
        SELECT id
        FROM {table}
        WHERE {condition}
        ORDER BY id
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM {table} USING old WHERE {table}.id = old.id RETURNING 1
    )
    SELECT count(*) FROM gone
"""
IS_EXPIRED: Final = "id < public.uuid7_floor(now() - make_interval(days => $1))"
OF_ORGANIZATION: Final = "organization_id = $3::uuid"
OF_STRANGERS: Final = "organization_id IS NULL AND $3::uuid IS NULL"
IS_OLD: Final = "{owner} AND id <= $1"
COUNT: Final = "SELECT organization_id, count(*) AS rows FROM {table} GROUP BY organization_id"
# The newest row that is one too many. So processes that look at the same time remove the same rows.
FIND_LAST: Final = """
    SELECT id
    FROM {table}
    WHERE {owner}
    ORDER BY id DESC
    OFFSET $1
    LIMIT $2
"""


async def trim(database: Database, days: int, max_rows: int) -> int:
    """Remove rows that are older than ``days``, and of what is left the oldest beyond ``max_rows``
    in each table. Returns how many rows were removed.

    The organizations with the most rows lose theirs first, so no organization can push out the rows
    of another one. All rows without an organization count as those of one.

    :raises Unavailable: when the database does not answer.
    """
    removed = 0
    for table in TABLES:
        removed += await _delete(database, table, IS_EXPIRED, days)
        rows = await database.fetch(COUNT.format(table=table))
        counts = {row["organization_id"]: row["rows"] for row in rows}
        for organization_id, kept in surplus(counts, max_rows).items():
            owner = OF_STRANGERS if organization_id is None else OF_ORGANIZATION
            find_last = FIND_LAST.format(table=table, owner=owner)
            last = await database.fetchval(find_last, kept, 1, organization_id)
            if last is not None:
                is_old = IS_OLD.format(owner=owner)
                removed += await _delete(database, table, is_old, last, organization_id)
    return removed


def surplus(counts: Mapping[UUID | None, int], max_rows: int) -> Mapping[UUID | None, int]:
    """Return the organizations with too many rows, each with how many it keeps.

    All that have too many keep the same number, and the others keep all.
    """
    left, remaining = max_rows, len(counts)
    for count in sorted(counts.values()):
        share = left // remaining
        if count > share:
            return {owner: share for owner, rows in counts.items() if rows > share}
        left -= count
        remaining -= 1
    return {}


async def _delete(database: Database, table: str, condition: str, *arguments: object) -> int:
    """Delete the rows of a condition, whose arguments are $1 and, if there are more, $3 and on."""
    statement = DELETE.format(table=table, condition=condition)
    first, *others = arguments
    removed = 0
    while count := await database.fetchval(statement, first, STEP_ROWS, *others):
        removed += count
        if count < STEP_ROWS:
            break
    return removed
