"""Long tasks show on a terminal how much is done, of how much, and how fast."""

import asyncpg
import pytest
from command_line import on_terminal, rialto

MONTH = (
    "CREATE TABLE ledger_partitions.ledger_entries_2025_01 PARTITION OF ledger_entries"
    " FOR VALUES FROM (uuid7_floor('2025-01-01 00:00Z')) TO (uuid7_floor('2025-02-01 00:00Z'))"
)
ENTRIES = """
    INSERT INTO ledger_entries (organization_id, id, kind, cost_nanos, cost_source, counted_at)
    SELECT $1, uuid7_floor('2025-01-03 00:00Z'::timestamptz + n * interval '1 second'),
           'unattributed', 1500000000, 'reported', '2025-01-03 00:00Z'
    FROM generate_series(1, 1200) n
"""


@pytest.fixture
async def acme(command):
    """An organization with 1,200 entries in an old month."""
    (organization,) = await rialto("organizations", "create", "acme", **command)
    connection = await asyncpg.connect(command["DATABASE_URL"])
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(MONTH)
    await connection.execute(ENTRIES, organization["id"])
    await connection.close()
    return ("--organization", "acme")


async def test_an_export_shows_its_progress(command, acme, tmp_path):
    """The terminal shows the number of all entries while they are written to the file, and the
    file has them."""
    shown = await on_terminal(
        *("ledger", "export", *acme, "--from", "2025-01-01", "--to", "2025-02-01"),
        *("--output", "entries.csv"),
        **command,
    )

    assert shown.status == 0, shown.text
    assert "/1200" in shown.text
    assert "/s" in shown.text
    assert shown.lines[-1] == "1,200 entries"
    assert (tmp_path / "entries.csv").read_text().count("\n") == 1201


async def test_retention_asks_and_shows_its_progress(command, acme):
    """The question has the month and the number of entries; the table has the month's totals."""
    shown = await on_terminal("ledger", "retain", "--months", "12", types="y\n", **command)

    assert shown.status == 0, shown.text
    assert "Drop 2025-01 with 1,200 entries? This cannot be undone." in shown.text
    assert any(line.split()[:3] == ["2025-01", "1", "1,200"] for line in shown.lines)
    assert await rialto("ledger", "retain", "--months", "12", "--dry-run", **command) == []


async def test_an_audit_shows_its_progress(command, acme):
    """The terminal shows how many organizations are checked, then the table."""
    shown = await on_terminal("audit", **command)

    assert shown.status == 0, shown.text
    assert "/2" in shown.text
    assert any(
        line.split()[0:1] == ["acme"] and line.split()[-1] == "intact" for line in shown.lines
    )


async def test_a_pipe_has_no_progress(command, acme):
    """Without a terminal there is nothing but the result."""
    (operator, found) = await rialto("audit", **command)

    assert (operator["organization_name"], found["entries"]) == ("operator", 1200)
