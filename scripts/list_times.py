"""Measures how long each list of the API takes, on the database that scripts/fill.sh has filled.

Each list is asked for many times, with another organization, key, time or text each time, through
the same functions and the same pool as the service. The first time of each is shown beside the
others, since it may wait for the disk.
"""

import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402 - the path comes first

from service import accounts  # noqa: E402
from service.commands.console import read_settings  # noqa: E402
from service.commands.work import database_address  # noqa: E402
from service.database.database import Database  # noqa: E402
from service.database.pool import open_pool  # noqa: E402
from service.reports import calls, entries, keys, standings  # noqa: E402
from service.reports.entries import EntryFilter  # noqa: E402

PAGE: Final = 100
SAMPLE: Final = """
    SELECT e.organization_id, e.id, e.request_id, e.api_key_id, e.end_user, e.counted_at, e.model,
           k.prefix, k.name AS key_name, o.name AS organization_name
    FROM public.organizations o
    CROSS JOIN LATERAL (
        SELECT *
        FROM public.ledger_entries e
        WHERE e.organization_id = o.id
          AND e.counted_at < $1
          AND e.end_user IS NOT NULL
        ORDER BY e.counted_at DESC, e.id DESC
        LIMIT 1
    ) e
    JOIN public.api_keys k ON k.id = e.api_key_id
"""
SPAN: Final = """
    SELECT min(e.first_at) AS first_at, max(e.last_at) AS last_at
    FROM public.organizations o
    CROSS JOIN LATERAL (
        SELECT (SELECT counted_at FROM public.ledger_entries e WHERE e.organization_id = o.id
                ORDER BY counted_at LIMIT 1) AS first_at,
               (SELECT counted_at FROM public.ledger_entries e WHERE e.organization_id = o.id
                ORDER BY counted_at DESC LIMIT 1) AS last_at
    ) e
"""
COUNT: Final = """
    SELECT sum(c.reltuples)::bigint
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid AND c.reltuples > 0
    WHERE i.inhparent = 'public.ledger_entries'::regclass
"""

Ask = Callable[[Database, Any], Awaitable[Any]]


def found(**wanted: Callable[[Any], Any]) -> Ask:
    """Search the ledger; each argument gets an entry to choose a value by."""

    async def ask(database: Database, one: Any) -> Any:
        chosen = {name: choose(one) for name, choose in wanted.items() if name != "before"}
        before = wanted["before"](one) if "before" in wanted else None
        page = await entries.search(database, EntryFilter(**chosen), before, PAGE)
        return page.entries

    return ask


def owner(one: Any) -> Any:
    """The organization of an entry."""
    return one["organization_id"]


def place(one: Any) -> str:
    """The cursor after an entry."""
    micros = (one["counted_at"] - entries.EPOCH) // timedelta(microseconds=1)
    return f"{micros:016x}{one['id'].hex}"


LISTS: Final[dict[str, Ask]] = {
    "all: newest": found(),
    "all: a page at any time": found(before=place),
    "all: a model": found(model=lambda one: one["model"], before=place),
    "all: outcome interrupted (1 in 1,000)": found(outcome=lambda _: "interrupted", before=place),
    "all: a tag": found(tag=lambda _: ("feature", "chat"), before=place),
    "all: cost over 1 USD (none)": found(cost_over_nanos=lambda _: 10**9, before=place),
    "all: kind credit (1 in 2,000)": found(kind=lambda _: "credit", before=place),
    "all: a key": found(api_key_id=lambda one: one["api_key_id"], before=place),
    "all: one day": found(
        start=lambda one: one["counted_at"] - timedelta(days=1), end=lambda one: one["counted_at"]
    ),
    "all: a request id": found(request_id=lambda one: one["request_id"]),
    "all: an unknown request id": found(request_id=lambda one: one["request_id"][::-1]),
    "one: newest": found(organization_id=owner),
    "one: a page at any time": found(organization_id=owner, before=place),
    "one: a key": found(
        organization_id=owner, api_key_id=lambda one: one["api_key_id"], before=place
    ),
    "one: an end user": found(
        organization_id=owner, end_user=lambda one: one["end_user"], before=place
    ),
    "one: outcome interrupted (1 in 1,000)": found(
        organization_id=owner, outcome=lambda _: "interrupted", before=place
    ),
    "one: cost over 1 USD (none)": found(
        organization_id=owner, cost_over_nanos=lambda _: 10**9, before=place
    ),
    "one: a request id": found(organization_id=owner, request_id=lambda one: one["request_id"]),
    "calls in flight": lambda database, _: calls.in_flight(database, None, PAGE),
    "limits near 0.8 of all": lambda database, _: standings.near(database, None, 0.8, PAGE),
    "limits near 0.8 of one": lambda database, one: standings.near(database, owner(one), 0.8, PAGE),
    "keys of all": lambda database, _: keys.search(database, None, None, None, None, PAGE),
    "keys by prefix": lambda database, one: keys.search(
        database, None, one["prefix"], None, None, PAGE
    ),
    "keys by part of a name": lambda database, one: keys.search(
        database, None, None, one["organization_name"][-4:], None, PAGE
    ),
    "an organization by name": lambda database, one: accounts.find_organization_id(
        database, one["organization_name"]
    ),
    "a key by prefix": lambda database, one: accounts.find_key_id(database, one["prefix"]),
    "a key by name in its organization": lambda database, one: accounts.find_key_id(
        database, one["key_name"], owner(one)
    ),
}


async def sample(database: Database, size: int, chance: random.Random) -> list[Any]:
    """Choose entries of organizations and times at random."""
    span = await database.fetchrow(SPAN)
    if span["last_at"] is None:
        raise click.ClickException("The ledger is empty. Run scripts/fill.sh first.")
    chosen = []
    for _ in range(size):
        at = span["first_at"] + (span["last_at"] - span["first_at"]) * chance.random()
        chosen.append(chance.choice(await database.fetch(SAMPLE, at + timedelta(days=1))))
    return chosen


async def measure(database: Database, rounds: int, only: str) -> None:
    """Print a row for each list."""
    chance = random.Random(7)
    count = await database.fetchval(COUNT)
    click.echo(f"{count:,} entries, {rounds} rounds, pages of {PAGE}\n")
    click.echo("| list | p50 ms | p95 ms | most ms | first ms | rows |")
    click.echo("|---|---:|---:|---:|---:|---:|")
    chosen = await sample(database, rounds, chance)
    for name, ask in LISTS.items():
        if only not in name:
            continue
        times, rows = [], []
        for one in chosen:
            began = time.perf_counter()
            answer = await ask(database, one)
            times.append((time.perf_counter() - began) * 1000)
            rows.append(len(answer) if isinstance(answer, list) else 1)
        cuts = statistics.quantiles(times, n=20, method="inclusive")
        click.echo(
            f"| {name} | {cuts[9]:.1f} | {cuts[18]:.1f} | {max(times):.1f} | {times[0]:.1f}"
            f" | {statistics.median(rows):.0f} |"
        )


@click.command(context_settings={"show_default": True})
@click.option("--directory", help="The data directory that fill.sh has filled.")
@click.option("--rounds", type=click.IntRange(2), default=60)
@click.option("--only", default="", help="Only lists whose name contains this.")
def main(directory: str | None, rounds: int, only: str) -> None:
    """Measure each list on the database that fill.sh has filled, and print a table."""
    if directory is not None:
        os.environ |= {"DATABASE_URL": "", "DATA_DIRECTORY": directory}
    settings = read_settings(log_level="warning")

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            address = await stack.enter_async_context(database_address(settings))
            database = await stack.enter_async_context(open_pool(settings, address))
            await measure(database, rounds, only)

    asyncio.run(run())


if __name__ == "__main__":
    main()
