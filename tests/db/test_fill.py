"""``scripts/fill.sh`` makes entries that the audit proves."""

from datetime import UTC, datetime
from uuid import UUID

import click
import pytest
from support import ENCRYPTION_KEY, make_settings

from scripts import fill
from service import accounts, audit, ledger
from service.crypto import Keyring
from service.database.pool import open_pool

FIRST_ID = UUID(int=0)
PLAN = fill.Plan(entries=3_000, organizations=4, keys=2, months=3)
FACTS = """
    SELECT count(*) FILTER (WHERE kind = 'call') AS calls,
           count(DISTINCT organization_id) AS organizations,
           count(DISTINCT api_key_id) AS keys,
           count(DISTINCT model) AS models,
           count(DISTINCT end_user) AS end_users,
           count(DISTINCT outcome) AS outcomes,
           count(DISTINCT date_trunc('month', counted_at, 'UTC')) AS months,
           count(*) FILTER (WHERE tags IS NOT NULL) AS tagged,
           max(counted_at) AS last_at,
           bool_and(kind <> 'call' OR id < public.uuid7_floor(counted_at + interval '1 ms'))
               AS have_times
    FROM public.ledger_entries
"""
STRAYS = "SELECT count(*) FROM ledger_partitions.ledger_entries_default"
INDEXES = """
    SELECT inhrelid::regclass::text AS partition,
           (SELECT count(*) FROM pg_index WHERE indrelid = inhrelid) AS indexes,
           (SELECT count(*) FROM pg_trigger WHERE tgrelid = inhrelid) AS triggers
    FROM pg_inherits
    WHERE inhparent = 'public.ledger_entries'::regclass
"""


@pytest.fixture
async def database(database_address):
    async with open_pool(make_settings(database_address, "http://x"), database_address) as pool:
        yield pool


async def test_the_books_are_proven(database_address, database):
    """Filled books have what was asked for in every respect, and the audit finds no fault."""
    await fill.fill(database_address, Keyring((ENCRYPTION_KEY,)), PLAN)

    facts = await database.fetchrow(FACTS)
    assert (facts["calls"], facts["organizations"], facts["keys"]) == (3_000, 4, 8)
    assert facts["months"] >= 2
    assert facts["models"] == len(fill.PRODUCTS)
    assert facts["end_users"] > 50
    assert facts["outcomes"] >= 6
    assert facts["tagged"] > 1_000
    assert facts["have_times"]
    assert datetime.now(UTC) - facts["last_at"] >= fill.QUIET
    assert await database.fetchval(STRAYS) == 0
    for row in await database.fetch("SELECT id FROM public.organizations"):
        proof = await ledger.prove(database, row["id"])
        assert proof.faults == []
        assert await audit.first_break(database, row["id"]) is None
    limits = await ledger.list_limits(
        database, await accounts.find_organization_id(database, "tenant-001"), FIRST_ID, 10
    )
    used = {(limit.unit, limit.period): float(limit.used) for limit in limits}
    assert used["tokens", "lifetime"] > 0
    assert all(float(limit.used) <= float(limit.ceiling) for limit in limits)


async def test_partitions_are_like_any_other(database_address, database):
    """A filled month has the indexes and triggers of the partitions that the service makes."""
    before = {(row["indexes"], row["triggers"]) for row in await database.fetch(INDEXES)}
    await fill.fill(database_address, Keyring((ENCRYPTION_KEY,)), PLAN)
    after = {(row["indexes"], row["triggers"]) for row in await database.fetch(INDEXES)}

    assert after == before
    assert await ledger.make_partitions(database)


async def test_callers_entries_are_not_mixed_with_others(database_address, database):
    """A database that has entries is refused and left as it is."""
    keyring = Keyring((ENCRYPTION_KEY,))
    await fill.fill(database_address, keyring, PLAN)
    before = await database.fetchrow(FACTS)

    with pytest.raises(click.ClickException, match="has entries"):
        await fill.fill(database_address, keyring, PLAN)
    assert await database.fetchrow(FACTS) == before
