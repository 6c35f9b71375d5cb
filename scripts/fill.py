"""Fills an empty database with ledger entries as callers' calls would have left them.

Organizations, keys and limits are made by the service's own functions, so the audit chain and the
data keys are real. PostgreSQL makes the entries: each month in a table of its own, which gets its
indexes when it is full and becomes a partition after that. The limits' sums follow from the
entries, so `rialto audit` finds no fault.
"""

import asyncio
import contextlib
import dataclasses
import os
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import asyncpg  # noqa: E402 - the path comes first
import click  # noqa: E402

from service import accounts, crypto, ledger  # noqa: E402
from service.accounts.organizations import END_USERS, FIND_DATA_KEY  # noqa: E402
from service.audit import Actor  # noqa: E402
from service.commands.console import read_settings  # noqa: E402
from service.crypto import Keyring  # noqa: E402
from service.database import schema  # noqa: E402
from service.database.connections import connect_arguments  # noqa: E402
from service.database.embedded import Embedded  # noqa: E402
from service.settings.address import DatabaseAddress  # noqa: E402

ACTOR: Final = Actor(name="fill")
END_USERS_OF_EACH: Final = 40
QUIET: Final = timedelta(hours=2)
"""The newest entry is older than this, so that no sliding limit counts it."""
CHUNK: Final = 200_000
"""The entries that one statement makes, after which the progress is shown."""
FAST: Final = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c wal_level=minimal"
    " -c max_wal_senders=0 -c max_wal_size=16GB -c shared_buffers=512MB"
)
"""Options of the embedded server while it is filled; what it serves with later is unchanged."""
SESSION: Final = """
    SET statement_timeout = 0;
    SET lock_timeout = '60s';
    SET synchronous_commit = off;
    SET maintenance_work_mem = '256MB';
    SET max_parallel_maintenance_workers = 0;
    SET jit = off;
    SET timezone = 'UTC'
"""

# Endpoint, model, nano-dollars of an input and an output token, nano-dollars of the call.
PRODUCTS: Final = (
    ("/chat/completions", "llama-3.3-70b", 700, 2800, 0),
    ("/chat/completions", "kimi-k2-6", 750, 3500, 0),
    ("/chat/completions", "zai-org-glm-5-1", 850, 2750, 0),
    ("/responses", "openai-gpt-52", 2190, 17500, 0),
    ("/messages", "claude-sonnet-4-6", 3600, 18000, 0),
    ("/embeddings", "text-embedding-bge-m3", 150, 0, 0),
    ("/chat/completions", "venice-uncensored", 200, 900, 0),
    ("/image/generate", "qwen-image", 0, 0, 10_000_000),
    ("/messages", "claude-opus-4-8", 6000, 30000, 0),
    ("/chat/completions", "openai-gpt-oss-120b", 70, 300, 0),
)
# Outcome, the part of all calls up to it, the source of its cost, the status.
OUTCOMES: Final = (
    ("ok", 0.955, "reported", 200),
    ("client_closed", 0.967, "bound", None),
    ("upstream_rejected", 0.976, "not_charged", 400),
    ("upstream_error", 0.984, "not_charged", 502),
    ("upstream_busy", 0.990, "not_charged", 503),
    ("upstream_timeout", 0.994, "bound", 504),
    ("not_sent", 0.997, "not_charged", None),
    ("upstream_cut", 0.999, "estimated", 502),
    ("interrupted", 0.9998, "bound", None),
    ("internal_error", 1.0, "bound", 500),
)
TAGS: Final = tuple(
    f'{{"team": "{team}"{more}}}'
    for team in ("search", "support", "growth", "research")
    for more in ("", ', "feature": "chat"', ', "feature": "summary", "env": "prod"')
)

HAS_ENTRIES: Final = """
    SELECT EXISTS (SELECT FROM public.ledger_entries) OR EXISTS (SELECT FROM public.holds)
"""
SET_SEED: Final = "SELECT setseed($1)"
BOUNDS: Final = """
    SELECT public.uuid7_floor($1) AS first_id,
           public.uuid7_floor(($1 AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC')
               AS end_id
"""
INDEXES: Final = """
    SELECT pg_get_indexdef(i.indexrelid) AS definition, i.indisprimary AS is_primary
    FROM pg_index i
    WHERE i.indrelid = 'public.ledger_entries'::regclass
"""
# One row of the inner query has all that was drawn for a call; fences of volatile functions keep a
# draw from being repeated. Arrays have one element for each organization (o), key (k) or end user
# (u), and organizations of low numbers have most calls.
INSERT_CALLS: Final = """
    INSERT INTO ledger_partitions.{table} (
        organization_id, id, kind, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, outcome, status, requests, input_tokens, cached_input_tokens,
        output_tokens, tokens, cost_nanos, cost_source, bound_nanos, bound_tokens, price_version,
        limit_ids, limit_windows, counted_at, upstream_request_id, first_byte_ms, duration_ms,
        tags, created_at
    )
    SELECT ($8::uuid[])[o],
           (id_start || '7' || substr(draw, 16))::uuid,
           'call',
           ($9::uuid[])[k],
           CASE WHEN r_user > 0.3 THEN uuid_send(
               ($10::uuid[])[(o - 1) * $7 + 1 + floor($7 * ((r_user - 0.3) / 0.7) ^ 2)::int]
           ) END,
           CASE WHEN r_tag < 0.85 THEN id_start || '7' || hex ELSE 'req-' || hex END,
           ($11::text[])[p],
           ($12::text[])[p],
           CASE WHEN r_tag BETWEEN 0.4 AND 0.45 THEN 'fast' END,
           r_tag > 0.6,
           ($16::text[])[outcome],
           ($18::smallint[])[outcome],
           1,
           CASE WHEN charged THEN input END,
           CASE WHEN charged THEN input / 5 END,
           CASE WHEN charged THEN output END,
           CASE WHEN charged THEN input + output ELSE 0 END,
           CASE ($17::text[])[outcome]
               WHEN 'not_charged' THEN 0 WHEN 'bound' THEN 3 * cost ELSE cost END,
           ($17::text[])[outcome],
           3 * cost,
           input + 2 * output,
           1,
           ARRAY[($19::uuid[])[o], ($20::uuid[])[o], ($21::uuid[])[o], ($22::uuid[])[k]],
           ARRAY[
               date_trunc('month', at), date_trunc('day', at), 'epoch',
               date_bin('1 second', at - ms * interval '1 ms', 'epoch')
           ],
           at,
           'chatcmpl-' || substr(draw, 20),
           CASE WHEN ($18::smallint[])[outcome] = 200 THEN least(first_ms, ms) END,
           ms,
           CASE WHEN r_tag < 0.5
                THEN ($23::jsonb[])[1 + floor(2 * r_tag * cardinality($23::jsonb[]))::int] END,
           at
    FROM (
        SELECT d.*,
               lpad(
                   to_hex(
                       greatest(
                           floor(extract(epoch FROM at) * 1000)::bigint - ms,
                           extract(epoch FROM $1::timestamptz)::bigint * 1000
                       )
                   ),
                   12, '0'
               ) AS id_start,
               substr(replace(draw, '-', ''), 4, 19) AS hex,
               ($17::text[])[outcome] <> 'not_charged' AS charged,
               ($15::bigint[])[p] + input * ($13::bigint[])[p] + output * ($14::bigint[])[p]
                   AS cost
        FROM (
            SELECT c.*,
                   1 + floor($5 * r_organization ^ 2)::int AS o,
                   floor($5 * r_organization ^ 2)::int * $6 + 1 + floor($6 * r_key ^ 1.5)::int AS k,
                   1 + floor(cardinality($11::text[]) * r_product ^ 1.7)::int AS p,
                   width_bucket(r_outcome, $24::float8[]) + 1 AS outcome,
                   (20 * 400 ^ r_input)::bigint AS input,
                   (5 * 300 ^ r_output)::bigint AS output,
                   (120 + 900 * r_first ^ 3)::int AS first_ms,
                   (150 + 900 * r_first ^ 3 + 75 * 300 ^ r_output)::int AS ms,
                   least(
                       drawn_at + 2.5 * sin(
                           2 * pi() * extract(epoch FROM drawn_at)::float8 / 86400
                       ) * interval '1 hour',
                       $2::timestamptz - interval '1 ms'
                   ) AS at
            FROM (
                SELECT $1::timestamptz
                           + ($2::timestamptz - $1::timestamptz) * (n / ($4::float8 + 1))
                           AS drawn_at,
                       gen_random_uuid()::text AS draw,
                       random() AS r_organization, random() AS r_key, random() AS r_user,
                       random() AS r_product, random() AS r_outcome, random() AS r_input,
                       random() AS r_output, random() AS r_first, random() AS r_tag
                FROM generate_series($3::bigint, $25::bigint) n
                OFFSET 0
            ) c
            OFFSET 0
        ) d
        OFFSET 0
    ) e
"""
# The sweeper settled these at their bound; some were settled by their own process later.
INSERT_CORRECTIONS: Final = """
    INSERT INTO ledger_partitions.{table} (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, outcome, status, requests, input_tokens, cached_input_tokens,
        output_tokens, tokens, cost_nanos, cost_source, bound_nanos, bound_tokens, price_version,
        limit_ids, limit_windows, counted_at, duration_ms, tags, created_at
    )
    SELECT organization_id,
           (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
               || substr(gen_random_uuid()::text, 16))::uuid,
           'correction', id, api_key_id, end_user, request_id, endpoint, model, requested_model,
           is_stream, 'ok', 200, 0, 0, 0, 0, 0, -(cost_nanos / 2), 'reported', bound_nanos,
           bound_tokens, price_version, limit_ids,
           ARRAY[
               date_trunc('month', at), date_trunc('day', at), limit_windows[3], limit_windows[4]
           ],
           at, duration_ms, tags, at
    FROM (
        SELECT e.*, least(counted_at + interval '40 s', $1::timestamptz - interval '1 ms') AS at
        FROM ledger_partitions.{table} e
        WHERE outcome = 'interrupted'
          AND kind = 'call'
          AND get_byte(uuid_send(id), 15) < 150
    ) e
"""
INSERT_CREDITS: Final = """
    INSERT INTO ledger_partitions.{table} (
        organization_id, id, kind, amends_id, api_key_id, end_user, request_id, endpoint, model,
        requested_model, is_stream, cost_nanos, cost_source, price_version, limit_ids,
        limit_windows, counted_at, tags, note, created_at
    )
    SELECT organization_id,
           (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
               || substr(gen_random_uuid()::text, 16))::uuid,
           'credit', id, api_key_id, end_user, request_id, endpoint, model, requested_model,
           is_stream, -(cost_nanos / 2), 'manual', price_version, limit_ids,
           ARRAY[
               date_trunc('month', at), date_trunc('day', at), limit_windows[3], limit_windows[4]
           ],
           at, tags, 'The answer was empty.', at
    FROM (
        SELECT e.*, least(counted_at + interval '1 day', $1::timestamptz - interval '1 ms') AS at
        FROM ledger_partitions.{table} e
        WHERE outcome = 'ok'
          AND kind = 'call'
          AND cost_nanos > 1
          AND get_byte(uuid_send(id), 15) = 7
          AND get_byte(uuid_send(id), 14) < 32
    ) e
"""
# What the limits count: money of the month, requests of the day, tokens of all time.
SUM_ENTRIES: Final = """
    SELECT organization_id, api_key_id, max(counted_at) AS last_at,
           coalesce(sum(cost_nanos) FILTER (WHERE counted_at >= $1), 0)::bigint AS nanos,
           coalesce(sum(requests) FILTER (WHERE counted_at >= $2), 0)::bigint AS requests,
           sum(tokens)::bigint AS tokens
    FROM ledger_partitions.{table}
    GROUP BY organization_id, api_key_id
"""
SET_LIMIT: Final = """
    UPDATE public.limits
    SET used = $2, window_start = $3, ceiling = $4
    WHERE id = $1
"""
SET_LAST_USED: Final = "UPDATE public.api_keys SET last_used_at = $2 WHERE id = $1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is made: how many entries and organizations, keys of each, months, the newest of which
    runs now. ``jobs`` connections work at a time."""

    entries: int = 10_000_000
    organizations: int = 200
    keys: int = 5
    months: int = 6
    jobs: int = 2
    seed: int = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tenants:
    """The ids of what has entries: one for each organization, key or end user, in that order."""

    organizations: list[UUID]
    keys: list[UUID]
    end_users: list[UUID]
    """Digests, which are as long as a UUID."""
    money_limits: list[UUID]
    request_limits: list[UUID]
    token_limits: list[UUID]
    key_limits: list[UUID]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Month:
    """A month with entries from its start until ``end``, which is the next month's start or now."""

    start: datetime
    end: datetime
    entries: int

    @property
    def table(self) -> str:
        return f"ledger_entries_{self.start:%Y_%m}"


async def fill(address: DatabaseAddress, keyring: Keyring, plan: Plan) -> None:
    """Fill the database at the address, whose schema is current.

    :raises click.ClickException: when it has entries or calls in flight.
    """
    async with connected(address) as conn:
        if await conn.fetchval(HAS_ENTRIES):
            raise click.ClickException(
                "The database has entries of callers. Fill an empty one: set DATABASE_URL or"
                " --directory to another."
            )
        now: datetime = await conn.fetchval("SELECT now()")
        tenants = await make_tenants(conn, keyring, plan)
    months = plan_months(plan, now - QUIET)
    turns = asyncio.Semaphore(plan.jobs)
    work = [make_month(address, turns, tenants, plan, month, now) for month in months]
    sums = [row for rows in await asyncio.gather(*work) for row in rows]
    async with connected(address) as conn:
        await set_counters(conn, tenants, plan, sums, now)


@contextlib.asynccontextmanager
async def connected(address: DatabaseAddress) -> AsyncIterator[Any]:
    """Open a connection whose statements may take any time."""
    conn = await asyncpg.connect(**connect_arguments(address))
    try:
        await conn.execute(SESSION)
        yield conn
    finally:
        await conn.close()


def plan_months(plan: Plan, end: datetime) -> list[Month]:
    """Divide the entries among the months by their length."""
    end = end.astimezone(UTC).replace(second=0, microsecond=0)
    starts = [end.replace(day=1, hour=0, minute=0)]
    while len(starts) < plan.months:
        starts.append((starts[-1] - timedelta(days=1)).replace(day=1))
    starts.reverse()
    ends = [*starts[1:], end]
    whole = end - starts[0]
    # Counted from the start on, so that the parts add up to the whole.
    made = [round(plan.entries * ((until - starts[0]) / whole)) for until in (starts[0], *ends)]
    return [
        Month(start=start, end=until, entries=after - before)
        for start, until, before, after in zip(starts, ends, made, made[1:], strict=False)
    ]


async def make_tenants(conn: Any, keyring: Keyring, plan: Plan) -> Tenants:
    """Create the organizations with their keys, end users and limits."""
    tenants = Tenants(**{field.name: [] for field in dataclasses.fields(Tenants)})
    for number in range(1, plan.organizations + 1):
        async with conn.transaction():
            await make_tenant(conn, keyring, plan, number, tenants)
    return tenants


async def make_tenant(
    conn: Any, keyring: Keyring, plan: Plan, number: int, tenants: Tenants
) -> None:
    """Create an organization and add its ids."""
    organization = await accounts.create_organization(conn, keyring, ACTOR, f"tenant-{number:03}")
    owner = organization.id
    tenants.organizations.append(owner)
    data_key = keyring.open_data_key(owner.bytes, await conn.fetchval(FIND_DATA_KEY, owner))
    end_users_key = crypto.derive(data_key, END_USERS)
    tenants.end_users.extend(
        UUID(bytes=crypto.end_user_digest(end_users_key, f"user-{one}"))
        for one in range(1, END_USERS_OF_EACH + 1)
    )
    for ids, unit, period in (
        (tenants.money_limits, "usd", "month"),
        (tenants.request_limits, "requests", "day"),
        (tenants.token_limits, "tokens", "lifetime"),
    ):
        ceiling = "1000000" if unit == "usd" else 10**12
        new = ledger.NewLimit(unit=unit, period=period, ceiling=ceiling)  # type: ignore[arg-type]
        ids.append(await ledger.create_limit(conn, ACTOR, owner, new))
    for name in ("app", "batch", "mobile", "staging", "research", *map(str, range(plan.keys)))[
        : plan.keys
    ]:
        key, _ = await accounts.create_key(conn, ACTOR, owner, accounts.NewKey(name=name))
        tenants.keys.append(key.id)
        new = ledger.NewLimit(unit="requests", period="minute", ceiling=6000, api_key_id=key.id)
        tenants.key_limits.append(await ledger.create_limit(conn, ACTOR, owner, new))


async def make_month(
    address: DatabaseAddress,
    turns: asyncio.Semaphore,
    tenants: Tenants,
    plan: Plan,
    month: Month,
    now: datetime,
) -> Sequence[Any]:
    """Make a partition of a month with its entries, and return their sums by key."""
    async with turns, connected(address) as conn:
        await make_table(conn, month)
        await conn.execute(SET_SEED, plan.seed / 1000 + month.start.month / 100_000)
        for first in range(1, month.entries + 1, CHUNK):
            last = min(first + CHUNK - 1, month.entries)
            arguments = entry_arguments(tenants, plan, month, first, last)
            await conn.execute(INSERT_CALLS.format(table=month.table), *arguments)
            report(f"{month.table}: {last:,} of {month.entries:,} entries")
        for sql in (INSERT_CORRECTIONS, INSERT_CREDITS):
            await conn.execute(sql.format(table=month.table), month.end)
        await attach_table(conn, month)
        today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        sums = SUM_ENTRIES.format(table=month.table)
        rows: Sequence[Any] = await conn.fetch(sums, today.replace(day=1), today)
        report(f"{month.table}: indexed and attached")
        return rows


def entry_arguments(
    tenants: Tenants, plan: Plan, month: Month, first: int, last: int
) -> tuple[Any, ...]:
    """Return the arguments of INSERT_CALLS."""
    endpoints, models, inputs, outputs, flat = zip(*PRODUCTS, strict=True)
    outcomes, parts, sources, statuses = zip(*OUTCOMES, strict=True)
    return (
        month.start,
        month.end,
        first,
        month.entries,
        plan.organizations,
        plan.keys,
        END_USERS_OF_EACH,
        tenants.organizations,
        tenants.keys,
        tenants.end_users,
        endpoints,
        models,
        inputs,
        outputs,
        flat,
        outcomes,
        sources,
        statuses,
        tenants.money_limits,
        tenants.request_limits,
        tenants.token_limits,
        tenants.key_limits,
        TAGS,
        parts[:-1],
        last,
    )


async def make_table(conn: Any, month: Month) -> None:
    """Make the table of a month without indexes, in place of an empty partition."""
    table = f"ledger_partitions.{month.table}"
    if await conn.fetchval("SELECT to_regclass($1)", table) is not None:
        await conn.execute(
            f"ALTER TABLE public.ledger_entries DETACH PARTITION {table}; DROP TABLE {table}"
        )
    await conn.execute(
        f"CREATE TABLE {table} (LIKE public.ledger_entries"
        " INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)"
    )


async def attach_table(conn: Any, month: Month) -> None:
    """Make the indexes and triggers that the ledger's partitions have, then attach the table."""
    table = f"ledger_partitions.{month.table}"
    for number, index in enumerate(await conn.fetch(INDEXES), start=1):
        name = f"{month.table}_{number}"
        made = f"INDEX {name} ON {table}"
        definition = re.sub(r"INDEX \S+ ON (?:ONLY )?\S+", made, index["definition"], count=1)
        await conn.execute(definition)
        if index["is_primary"]:
            await conn.execute(
                f"ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}"
            )
    await conn.execute(f"VACUUM (ANALYZE) {table}")
    bounds = await conn.fetchrow(BOUNDS, month.start)
    await conn.execute(
        f"CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();"
        f"ALTER TABLE public.ledger_entries ATTACH PARTITION {table}"
        f" FOR VALUES FROM ('{bounds['first_id']}') TO ('{bounds['end_id']}')"
    )


async def set_counters(
    conn: Any, tenants: Tenants, plan: Plan, sums: Sequence[Any], now: datetime
) -> None:
    """Set what each limit has used, a ceiling above it, and when each key was used last."""
    chance = random.Random(plan.seed)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    limits = []
    for ids, unit, window in (
        (tenants.money_limits, "nanos", today.replace(day=1)),
        (tenants.request_limits, "requests", today),
        (tenants.token_limits, "tokens", datetime(1970, 1, 1, tzinfo=UTC)),
    ):
        used = dict.fromkeys(tenants.organizations, 0)
        for row in sums:
            used[row["organization_id"]] += row[unit]
        for limit_id, amount in zip(ids, used.values(), strict=True):
            ceiling = max(1, int(amount / chance.uniform(0.05, 0.99)))
            limits.append((limit_id, amount, window, ceiling))
    last_at: dict[UUID, datetime] = {}
    for row in sums:
        key_id = row["api_key_id"]
        last_at[key_id] = max(row["last_at"], last_at.get(key_id, row["last_at"]))
    async with conn.transaction():
        await conn.executemany(SET_LIMIT, limits)
        await conn.executemany(SET_LAST_USED, list(last_at.items()))
        # The entries are older than what a service may have rolled up: it begins again.
        await conn.execute("DELETE FROM derived.usage_cursor")
    await conn.execute("ANALYZE")


def report(line: str) -> None:
    """Show the progress to whoever watches."""
    if sys.stderr.isatty():
        click.echo(line, err=True)


@contextlib.contextmanager
def database(settings: Any) -> Any:
    """Yield the address of the database with a current schema; an embedded one runs meanwhile."""
    if settings.migration_database is not None:
        schema.apply(settings.migration_database)
        yield settings.migration_database
        return
    server = Embedded(Path(settings.data_directory) / "postgres", options=FAST)
    server.start()
    try:
        schema.apply(server.address)
        yield server.address
    finally:
        server.stop()


@click.command(context_settings={"show_default": True})
@click.option("--directory", help="Fill an embedded PostgreSQL in this data directory.")
@click.option("--entries", type=click.IntRange(1), default=Plan.entries)
@click.option("--organizations", type=click.IntRange(1), default=Plan.organizations)
@click.option("--keys", type=click.IntRange(1), default=Plan.keys, help="Keys of each.")
@click.option("--months", type=click.IntRange(1, 120), default=Plan.months)
@click.option("--jobs", type=click.IntRange(1, 16), default=Plan.jobs, help="Parallel connections.")
@click.option("--seed", type=click.IntRange(0, 100), default=Plan.seed)
def main(directory: str | None, **choices: int) -> None:
    """Make valid ledger entries of several months: all in an empty database, within minutes.

    Without --directory they go to DATABASE_URL. Serve them with the same DATABASE_URL and
    ENCRYPTION_KEY, or with DATA_DIRECTORY set to the directory.
    """
    if directory is not None:
        os.environ |= {"DATABASE_URL": "", "DATA_DIRECTORY": directory}
    settings = read_settings(log_level="warning")
    if directory is None and settings.migration_database is None:
        raise click.UsageError("Set --directory or DATABASE_URL.")
    plan = Plan(**choices)
    began = time.monotonic()
    with database(settings) as address:
        asyncio.run(fill(address, Keyring(settings.encryption_keys), plan))
    seconds = time.monotonic() - began
    click.echo(
        f"{plan.entries:,} calls of {plan.organizations} organizations in {seconds:.0f} s"
        f" ({plan.entries / seconds:,.0f} a second)."
    )


if __name__ == "__main__":
    main()
