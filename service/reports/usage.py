"""Usage reports: sums over the ledger's entries, of one organization or of all.

Whole hours and days come from the roll-ups. The edges of a period, and what the roll-ups do not
have yet, come from the ledger. All is read as of one instant, so sums are exact at every moment.
Reports by end user or tag read the ledger alone.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from service import money
from service.database.database import Database
from service.ledger.entries import reading_ledger
from service.reports.histograms import percentiles, unpack
from service.reports.rollups import READ_CURSOR

GroupBy = Literal[
    "day", "model", "key", "end_user", "endpoint", "tag", "organization", "outcome", "hour"
]

MAX_GROUPS: Final = 10_000
REPORT_TIMEOUT_S: Final = 30.0
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
IN_ENTRIES_ALONE: Final = ("end_user", "tag")
BY_TIME: Final = ("day", "hour")
BY_KEY: Final = ("organization", "key")
BY_MODEL: Final = ("model", "endpoint", "outcome")

# ruff: noqa: S608 - statements are built from constants
SUMMED: Final = (
    "calls",
    "failures",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "cost_nanos",
    "unknown_costs",
    "first_bytes",
    "durations",
)
KEYS: Final[dict[GroupBy, str]] = {
    "day": "date_trunc('day', {at}, 'UTC')",
    "hour": "date_trunc('hour', {at}, 'UTC')",
    "model": "e.model",
    "key": "e.api_key_id",
    "organization": "e.organization_id",
    "endpoint": "e.endpoint",
    "outcome": "e.outcome",
    "end_user": "e.end_user",
    "tag": "tag.name || '=' || tag.value",
}
NO_KEY: Final = "NULL::text"
ENTRIES_OF_ONE: Final = """
    FROM derived.entries e
    {tags}
    WHERE e.organization_id = {organization}
      AND e.counted_at >= {start}
      AND e.counted_at < {end}
"""
# By organization, since the ledger's indexes begin with it. OFFSET 0 keeps the planner from merging
# the lookups.
ENTRIES_OF_ALL: Final = """
    FROM public.organizations o
    CROSS JOIN LATERAL (
        SELECT x.*
        FROM derived.entries x
        WHERE x.organization_id = o.id
          AND x.counted_at >= {start}
          AND x.counted_at < {end}
        OFFSET 0
    ) e
    {tags}
    WHERE true
"""
TAGS: Final = "LEFT JOIN LATERAL jsonb_each_text(e.tags) AS tag (name, value) ON true"
ROLLED_UP_OF_ONE: Final = """
    FROM derived.usage e
    WHERE e.cut = '{cut}'
      AND e.organization_id = {organization}
      AND e.start_at >= {start}
      AND e.start_at < {end}
"""
ROLLED_UP_OF_ALL: Final = """
    FROM derived.usage e
    WHERE e.cut = '{cut}'
      AND e.start_at >= {start}
      AND e.start_at < {end}
"""
ROWS: Final = "SELECT {key} AS group_key, " + ", ".join(f"e.{name}" for name in SUMMED)
SUMS: Final = ", ".join(f"sum({name}) AS {name}" for name in SUMMED)
TOTALS: Final = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in SUMMED)
# A number of two hundred digits is a text to whoever does not calculate with it.
SHOWN: Final = ", ".join(
    f"{name}::text" if name in ("first_bytes", "durations") else name for name in SUMMED
)
# The first row is the total, which has the groups that are left out too.
SUM_GROUPS: Final = f"""
    WITH grouped AS MATERIALIZED (
        SELECT group_key, {SUMS}
        FROM ({{rows}}) entry
        GROUP BY group_key
    )
    SELECT is_total, group_key, {SHOWN}
    FROM (
        SELECT true AS is_total, NULL AS group_key, {TOTALS}
        FROM grouped
        UNION ALL
        (
            SELECT false, group_key, {", ".join(SUMMED)}
            FROM grouped
            ORDER BY {{order}}group_key
            LIMIT {MAX_GROUPS + 1}
        )
    ) sums
    ORDER BY is_total DESC, {{order}}group_key
"""
FIND_ORGANIZATION: Final = """
    SELECT organization_id
    FROM public.api_keys
    WHERE id = $1
"""
NAMES: Final[dict[GroupBy, str]] = {
    "organization": "SELECT id, name FROM public.organizations WHERE id = ANY ($1::uuid[])",
    "key": "SELECT id, name FROM public.api_keys WHERE id = ANY ($1::uuid[])",
}


# The newest version of each model, if it is deprecated or retired.
FIND_DEPRECATED: Final = """
    SELECT name, deprecation::text AS deprecation, retired_at
    FROM (
        SELECT DISTINCT ON (name) name, deprecation, retired_at
        FROM public.models
        WHERE organization_id IS NULL
          AND kind = 'venice'
        ORDER BY name, version DESC
    ) newest
    WHERE jsonb_typeof(deprecation) = 'object'
       OR retired_at IS NOT NULL
"""
FIND_KEYS: Final = """
    SELECT k.id AS api_key_id, k.name AS key_name, k.prefix AS key_prefix, k.organization_id,
           o.name AS organization_name
    FROM public.api_keys k
    JOIN public.organizations o ON o.id = k.organization_id
    WHERE k.id = ANY ($1::uuid[])
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

    ``failures`` are the calls that Venice or Rialto did not answer: their outcome is not ``ok``,
    and their caller had not gone. ``cost_usd`` is exact. It leaves out calls of unknown cost, which
    ``unknown_costs`` counts. The times are percentiles in milliseconds, interpolated within the
    buckets of a histogram; null without a time.
    """

    calls: int
    failures: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost_usd: str
    unknown_costs: int
    first_byte_p50_ms: int | None
    first_byte_p95_ms: int | None
    duration_p50_ms: int | None
    duration_p95_ms: int | None


class Group(Sums, frozen=True, kw_only=True):
    """The sums of one day or hour (its start in UTC), organization, key, model, endpoint, outcome,
    end user (hex digest) or tag (``name=value``).

    ``key`` is null for entries that have none. ``name`` is that of an organization or a key.
    """

    key: str | None
    name: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of each group, most expensive first (days and hours in order), and the total.

    An entry with two tags is in two groups and once in the total. ``is_cut`` is true if groups
    beyond the first 10,000 were left out; the total still includes them.
    """

    group_by: GroupBy
    start: datetime
    end: datetime
    groups: Sequence[Group]
    is_cut: bool
    total: Sums


class Span(NamedTuple):
    """A part of a period, and what has its sums: ``day`` or ``hour`` of the roll-ups, or
    ``entries``."""

    source: Literal["day", "hour", "entries"]
    start: datetime
    end: datetime


async def report(
    database: Database, organization_id: UUID | None, group_by: GroupBy, wanted: Filter
) -> Report:
    """Sum an organization's entries as of one instant, or those of all organizations for None.

    :raises Unavailable: when the database does not answer in time.
    """
    async with reading_ledger(database, REPORT_TIMEOUT_S) as conn:
        if organization_id is None and wanted.api_key_id is not None:
            owner = await conn.fetchrow(FIND_ORGANIZATION, wanted.api_key_id)
            organization_id = owner and owner["organization_id"]
        spans = await _divide(conn, group_by, wanted)
        question = Question(organization_id, group_by, wanted)
        total, *rows = await conn.fetch(*question.ask(spans))
        if group_by == "tag":
            (total,) = (await conn.fetch(*question.ask(spans, is_total=True)))[:1]
        shown = rows[:MAX_GROUPS]
        names = await _find_names(conn, group_by, [row["group_key"] for row in shown])
    return Report(
        group_by=group_by,
        start=wanted.start,
        end=wanted.end,
        groups=[
            Group(
                key=_text(group_by, row["group_key"]),
                name=names.get(row["group_key"]),
                **_sums(row),
            )
            for row in shown
        ],
        is_cut=len(rows) > MAX_GROUPS,
        total=Sums(**_sums(total)),
    )


class Question:
    """The statement of a report and its arguments."""

    def __init__(self, organization_id: UUID | None, group_by: GroupBy, wanted: Filter) -> None:
        self._organization_id = organization_id
        self._group_by = group_by
        self._wanted = wanted
        self._arguments: list[Any] = []

    def ask(self, spans: Sequence[Span], *, is_total: bool = False) -> tuple[Any, ...]:
        """Return the SQL and its arguments. With ``is_total`` all entries are one group."""
        self._arguments = []
        organization = self._place("uuid", self._organization_id)
        conditions = self._conditions()
        parts = [self._rows(span, organization, is_total=is_total) + conditions for span in spans]
        order = "" if self._group_by in BY_TIME else "cost_nanos DESC, "
        return SUM_GROUPS.format(rows=" UNION ALL ".join(parts), order=order), *self._arguments

    def _rows(self, span: Span, organization: str | None, *, is_total: bool) -> str:
        is_of_entries = span.source == "entries"
        key = NO_KEY if is_total else KEYS[self._group_by]
        tags = TAGS if self._group_by == "tag" and not is_total else ""
        if is_of_entries:
            source = ENTRIES_OF_ALL if organization is None else ENTRIES_OF_ONE
        else:
            source = ROLLED_UP_OF_ALL if organization is None else ROLLED_UP_OF_ONE
        return (ROWS + source).format(
            key=key.format(at="e.counted_at" if is_of_entries else "e.start_at"),
            organization=organization,
            cut=self._cut + span.source,
            tags=tags,
            start=self._place("timestamptz", span.start),
            end=self._place("timestamptz", span.end),
        )

    @property
    def _cut(self) -> str:
        """The beginning of the name of the smallest cut of the roll-ups that is enough."""
        is_of_one = (self._organization_id or self._wanted.api_key_id) is not None
        needs_key = is_of_one or self._group_by in BY_KEY
        needs_model = self._wanted.model is not None or self._group_by in BY_MODEL
        if not needs_key:
            return "model_"
        return "" if needs_model else "key_"

    def _conditions(self) -> str:
        wanted = self._wanted
        conditions = ""
        if wanted.api_key_id is not None:
            conditions += f" AND e.api_key_id = {self._place('uuid', wanted.api_key_id)} "
        if wanted.model is not None:
            conditions += f" AND e.model = {self._place('text', wanted.model)} "
        if wanted.end_user is not None:
            conditions += f" AND e.end_user = {self._place('bytea', wanted.end_user)} "
        if wanted.tag is not None:
            name, value = (self._place("text", text) for text in wanted.tag)
            conditions += f" AND e.tags ->> {name} = {value} "
        return conditions

    def _place(self, kind: str, value: Any) -> str | None:
        """Add an argument and return its place in the statement; None for None."""
        if value is None:
            return None
        self._arguments.append(value)
        return f"${len(self._arguments)}::{kind}"


async def _divide(conn: Any, group_by: GroupBy, wanted: Filter) -> Sequence[Span]:
    counted_to = None
    is_of_entries = wanted.end_user is not None or wanted.tag is not None
    if not is_of_entries and group_by not in IN_ENTRIES_ALONE:
        cursor = await conn.fetchrow(READ_CURSOR)
        counted_to = cursor and cursor["counted_to"]
    start, end = wanted.start.astimezone(UTC), wanted.end.astimezone(UTC)
    return divide(start, end, counted_to, by_hour=group_by == "hour")


def divide(
    start: datetime, end: datetime, counted_to: datetime | None, *, by_hour: bool
) -> Sequence[Span]:
    """Divide a period into spans, each by the coarsest source that has exactly its entries.

    An hour or a day in which ``counted_to`` is has its entries up to that instant. So it fits a
    period that ends later, together with the entries from ``counted_to`` on.
    """
    whole = [Span("entries", start, end)]
    if counted_to is None or start >= counted_to:
        return whole
    first = _ceil_hour(start)
    is_open = end >= counted_to
    last = _ceil_hour(counted_to) if is_open else _floor_hour(end)
    if first >= last:
        return whole
    spans = []
    if start < first:
        spans.append(Span("entries", start, first))
    first_day = _ceil_day(first)
    last_day = _ceil_day(last) if is_open else _floor_day(last)
    if by_hour or first_day >= last_day:
        spans.append(Span("hour", first, last))
    else:
        if first < first_day:
            spans.append(Span("hour", first, first_day))
        spans.append(Span("day", first_day, last_day))
        if last_day < last:
            spans.append(Span("hour", last_day, last))
    rest = counted_to if is_open else last
    if rest < end:
        spans.append(Span("entries", rest, end))
    return spans


def _floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _ceil_hour(at: datetime) -> datetime:
    hour = _floor_hour(at)
    return hour if hour == at else hour + HOUR


def _floor_day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _ceil_day(at: datetime) -> datetime:
    day = _floor_day(at)
    return day if day == at else day + DAY


async def _find_names(conn: Any, group_by: GroupBy, ids: Sequence[Any]) -> dict[Any, str]:
    if group_by not in NAMES:
        return {}
    return {row["id"]: row["name"] for row in await conn.fetch(NAMES[group_by], ids)}


def _text(group_by: GroupBy, key: Any) -> str | None:
    if key is None:
        return None
    if group_by == "day":
        return f"{key.astimezone(UTC):%Y-%m-%d}"
    if group_by == "hour":
        return f"{key.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return str(key.hex() if group_by == "end_user" else key)


def _sums(row: Any) -> dict[str, Any]:
    first_byte = percentiles(unpack(row["first_bytes"]), (0.5, 0.95))
    duration = percentiles(unpack(row["durations"]), (0.5, 0.95))
    return {
        **{name: int(row[name]) for name in SUMMED[:5]},
        "cost_usd": money.format_usd(int(row["cost_nanos"])),
        "unknown_costs": int(row["unknown_costs"]),
        "first_byte_p50_ms": first_byte[0],
        "first_byte_p95_ms": first_byte[1],
        "duration_p50_ms": duration[0],
        "duration_p95_ms": duration[1],
    }


class ModelUser(msgspec.Struct, frozen=True, kw_only=True):
    """A key that used a model."""

    organization_id: UUID
    organization_name: str
    api_key_id: UUID
    key_name: str
    key_prefix: str
    calls: int
    cost_usd: str


class DeprecatedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A deprecated or retired model that was used, and its users, most expensive first.

    ``removed_on`` is the day or time that Venice states, as Venice writes it. ``retired_at`` is
    when Venice's list no longer had the model.
    """

    model: str
    replacement: str | None
    removed_on: str | None
    retired_at: datetime | None
    users: Sequence[ModelUser]


async def deprecated_models_used(
    database: Database, days: int, organization_id: UUID | None = None
) -> Sequence[DeprecatedModel]:
    """List the deprecated models that an organization, or anybody, used today or in the ``days``
    before, by name.

    :raises Unavailable: when the database does not answer in time.
    """
    models = {row["name"]: row for row in await database.fetch(FIND_DEPRECATED)}
    end = await database.now()
    start = _floor_day(end.astimezone(UTC)) - days * DAY
    used = await report(database, organization_id, "model", Filter(start=start, end=end))
    names = sorted(
        group.key for group in used.groups if group.key and group.key in models and group.calls
    )
    return [
        await _find_users(database, models[name], organization_id, start, end) for name in names
    ]


async def _find_users(
    database: Database, model: Any, organization_id: UUID | None, start: datetime, end: datetime
) -> DeprecatedModel:
    wanted = Filter(start=start, end=end, model=model["name"])
    groups = (await report(database, organization_id, "key", wanted)).groups
    keys = [group.key for group in groups if group.key]
    owners = {str(row["api_key_id"]): row for row in await database.fetch(FIND_KEYS, keys)}
    terms = msgspec.json.decode(model["deprecation"] or "null")
    stated = terms if isinstance(terms, dict) else {}
    return DeprecatedModel(
        model=model["name"],
        replacement=stated.get("replacementModelId"),
        removed_on=stated.get("removesAt") or stated.get("date"),
        retired_at=model["retired_at"],
        users=[
            ModelUser(**owners[group.key], calls=group.calls, cost_usd=group.cost_usd)
            for group in groups
            if group.key and group.key in owners and group.calls
        ],
    )
