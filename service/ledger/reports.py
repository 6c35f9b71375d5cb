"""Usage reports: sums over the ledger's entries."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from service import money
from service.database.database import Database
from service.ledger.entries import reading_ledger

GroupBy = Literal["day", "model", "key", "end_user", "endpoint", "tag"]

MAX_GROUPS: Final = 10_000
REPORT_TIMEOUT_S: Final = 30.0

# ruff: noqa: S608 - statements are built from constants
FILTER_CLAUSE: Final = """
    WHERE e.organization_id = $1
      AND e.counted_at >= $2
      AND e.counted_at < $3
      AND ($4::uuid IS NULL OR e.api_key_id = $4)
      AND ($5::bytea IS NULL OR e.end_user = $5)
      AND ($6::text IS NULL OR e.model = $6)
      AND ($7::text IS NULL OR e.tags ->> $7 = $8)
"""
SUMS: Final = """
    coalesce(sum(e.requests), 0) AS calls,
    coalesce(sum(e.input_tokens), 0) AS input_tokens,
    coalesce(sum(e.cached_input_tokens), 0) AS cached_input_tokens,
    coalesce(sum(e.output_tokens), 0) AS output_tokens,
    coalesce(sum(e.cost_nanos), 0) AS cost_nanos,
    count(*) FILTER (WHERE e.cost_nanos IS NULL) AS unknown_costs
"""
SUM_ALL: Final = f"""
    SELECT {SUMS}
    FROM public.ledger_entries e
    {FILTER_CLAUSE}
"""
SUM_GROUPS: Final = f"""
    SELECT CASE $9::text
               WHEN 'day' THEN to_char(e.counted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')
               WHEN 'model' THEN e.model
               WHEN 'key' THEN e.api_key_id::text
               WHEN 'end_user' THEN encode(e.end_user, 'hex')
               WHEN 'endpoint' THEN e.endpoint
               WHEN 'tag' THEN tag.name || '=' || tag.value
           END AS group_key,
           {SUMS}
    FROM public.ledger_entries e
    LEFT JOIN LATERAL jsonb_each_text(CASE WHEN $9 = 'tag' THEN e.tags END)
        AS tag (name, value) ON true
    {FILTER_CLAUSE}
    GROUP BY group_key
    ORDER BY CASE WHEN $9 <> 'day' THEN coalesce(sum(e.cost_nanos), 0) END DESC, group_key
    LIMIT $10
"""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """The entries to sum: those settled from ``start`` to before ``end``.

    The others restrict them to one key, one end user (by digest), one model, or one tag (name and
    value).
    """

    start: datetime
    end: datetime
    api_key_id: UUID | None = None
    end_user: bytes | None = None
    model: str | None = None
    tag: tuple[str, str] | None = None


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Totals. ``calls`` excludes corrections and credits; the other sums include them.

    ``cost_usd`` is exact. It leaves out calls of unknown cost, which ``unknown_costs`` counts.
    """

    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_usd: str
    unknown_costs: int


class Group(Sums, frozen=True, kw_only=True):
    """The sums of one day, model, key, end user (hex digest), endpoint or tag (``name=value``).

    ``key`` is null for entries that have none.
    """

    key: str | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of each group, most expensive first (days in order), and the total.

    An entry with two tags is in two groups and once in the total. ``is_cut`` is true if groups
    beyond the first 10,000 were left out; the total still includes them.
    """

    group_by: GroupBy
    start: datetime
    end: datetime
    groups: Sequence[Group]
    is_cut: bool
    total: Sums


async def report(
    database: Database, organization_id: UUID, group_by: GroupBy, wanted: Filter
) -> Report:
    """Sum an organization's entries as of one instant.

    :raises Unavailable: when the database does not answer in time.
    """
    tag_name, tag_value = wanted.tag or (None, None)
    arguments = (
        organization_id,
        wanted.start,
        wanted.end,
        wanted.api_key_id,
        wanted.end_user,
        wanted.model,
        tag_name,
        tag_value,
    )
    async with reading_ledger(database, REPORT_TIMEOUT_S) as conn:
        total = await conn.fetchrow(SUM_ALL, *arguments)
        rows = await conn.fetch(SUM_GROUPS, *arguments, group_by, MAX_GROUPS + 1)
    return Report(
        group_by=group_by,
        start=wanted.start,
        end=wanted.end,
        groups=[Group(key=row["group_key"], **_sums(row)) for row in rows[:MAX_GROUPS]],
        is_cut=len(rows) > MAX_GROUPS,
        total=Sums(**_sums(total)),
    )


def _sums(row: Any) -> dict[str, Any]:
    sums = {
        name: int(row[name])
        for name in (
            "calls",
            "input_tokens",
            "cached_input_tokens",
            "output_tokens",
            "unknown_costs",
        )
    }
    return {**sums, "cost_usd": money.format_usd(int(row["cost_nanos"]))}
