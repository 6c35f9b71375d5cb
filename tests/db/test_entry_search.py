"""Searches of the ledger read a bounded number of entries, however many there are."""

import json

import asyncpg
import pytest
from postgres import new_database
from support import ENCRYPTION_KEY, make_settings

from scripts import fill
from service.crypto import Keyring
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.reports import entries
from service.reports.entries import EntryFilter

PLAN = fill.Plan(entries=14_000, organizations=3, keys=2, months=2)
BUSIEST = """
    SELECT organization_id, count(*)
    FROM public.ledger_entries
    GROUP BY organization_id
    ORDER BY count(*) DESC
    LIMIT 1
"""
ONE_OF_MANY = "SELECT request_id, organization_id FROM public.ledger_entries OFFSET 4000 LIMIT 1"
# In a small table PostgreSQL may rather read all of it than an index in its order.
AS_IF_LARGE = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off"


@pytest.fixture(scope="module")
async def filled(server, template):
    """The address of a database with more entries than one search looks at."""
    with new_database(server, template) as address:
        await fill.fill(address, Keyring((ENCRYPTION_KEY,)), PLAN)
        yield address


@pytest.fixture
async def database(filled):
    async with open_pool(make_settings(filled, "http://x"), filled) as pool:
        yield pool


@pytest.fixture
async def conn(filled):
    """A connection that plans as for a large table."""
    connection = await asyncpg.connect(**connect_arguments(filled))
    await connection.execute(AS_IF_LARGE)
    yield connection
    await connection.close()


async def walked(database, limit=100, **wanted):
    """Return all pages of a search."""
    pages, before = [], None
    while not pages or before is not None:
        page = await entries.search(database, EntryFilter(**wanted), before, limit)
        pages.append(page)
        before = page.next
    return pages


def max_scanned(of_one):
    return entries.MAX_SCANNED_OF_ONE if of_one else entries.MAX_SCANNED_OF_ALL


def ids_of(pages):
    return [entry.id for page in pages for entry in page.entries]


@pytest.mark.parametrize("of_one", [False, True])
@pytest.mark.parametrize(
    ("name", "value"), [("outcome", "interrupted"), ("kind", "credit"), ("model", "no-such-model")]
)
async def test_a_rare_match_is_found_across_pages(database, of_one, name, value):
    """A search goes on where it stopped looking, until it has found every match in order."""
    busiest = await database.fetchrow(BUSIEST)
    owner = busiest["organization_id"] if of_one else None
    expected = await database.fetch(
        f"SELECT id FROM public.ledger_entries WHERE {name} = $1"
        " AND ($2::uuid IS NULL OR organization_id = $2) ORDER BY counted_at DESC, id DESC",
        value,
        owner,
    )
    pages = await walked(database, organization_id=owner, **{name: value})

    assert ids_of(pages) == [row["id"] for row in expected]
    count = busiest["count"] if of_one else PLAN.entries
    assert len(pages) >= count // max_scanned(of_one) + 1


@pytest.mark.parametrize("limit", [7, 1000])
async def test_all_entries_come_once(database, limit):
    """The pages of a search without filters are the whole ledger in order."""
    owner = (await database.fetchrow(BUSIEST))["organization_id"]
    for scope in ({}, {"organization_id": owner}):
        if not scope and limit == 7:
            continue
        expected = await database.fetch(
            "SELECT id FROM public.ledger_entries WHERE $1::uuid IS NULL OR organization_id = $1"
            " ORDER BY counted_at DESC, id DESC",
            scope.get("organization_id"),
        )
        assert ids_of(await walked(database, limit, **scope)) == [row["id"] for row in expected]


def read_rows(plan):
    """Return how many rows the scans of a plan read, those that they filter out included."""
    rows = 0
    if "Relation Name" in plan:
        counts = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        rows = sum(plan.get(name, 0) for name in counts) * plan["Actual Loops"]
    return rows + sum(read_rows(part) for part in plan.get("Plans", ()))


def nodes_of(plan):
    return {plan["Node Type"]}.union(*(nodes_of(part) for part in plan.get("Plans", ())))


class Recorder:
    """Runs the statements of a search with EXPLAIN, and keeps the plans."""

    def __init__(self, conn):
        self.conn = conn
        self.plans = []

    async def fetch(self, sql, *arguments):
        explained = await self.conn.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *arguments)
        self.plans.append(json.loads(explained)[0]["Plan"])
        return await self.conn.fetch(sql, *arguments)


async def plan_of(conn, before=None, limit=10, **wanted):
    """Return the plan of a search."""
    recorder = Recorder(conn)
    await entries.search(recorder, EntryFilter(**wanted), before, limit)
    (plan,) = recorder.plans
    return plan


@pytest.mark.parametrize("of_one", [False, True])
async def test_a_page_reads_little_more_than_it_shows(conn, database, of_one):
    """Without a filter, or with one that most entries match, the scan ends when the page is full,
    and nothing is sorted."""
    scope = {}
    if of_one:
        scope = {"organization_id": (await database.fetchrow(BUSIEST))["organization_id"]}
    for wanted in ({}, {"outcome": "ok"}):
        plan = await plan_of(conn, **scope, **wanted)
        # The page, what the filter drops, the first of each partition, and the names.
        assert read_rows(plan) < 80
        assert "Sort" not in nodes_of(plan)


@pytest.mark.parametrize("of_one", [False, True])
async def test_a_search_without_a_match_reads_a_bounded_number(conn, database, of_one):
    """A filter that nothing matches reads a bounded number of entries, not the whole ledger."""
    scope = {}
    if of_one:
        scope = {"organization_id": (await database.fetchrow(BUSIEST))["organization_id"]}
    plan = await plan_of(conn, **scope, model="no-such-model")

    assert read_rows(plan) <= max_scanned(of_one) + 20


async def test_a_request_is_found_without_a_scan(conn, database):
    """A request id reads the entries that have it, for one organization or for all."""
    one = await database.fetchrow(ONE_OF_MANY)
    for scope in ({}, {"organization_id": one["organization_id"]}):
        assert read_rows(await plan_of(conn, request_id=one["request_id"], **scope)) < 10
