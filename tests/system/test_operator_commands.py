"""Credits, repair and retention on the command line while the service runs."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import psycopg
import pytest
from command_line import rialto, run
from process import client_of, database_url, started
from support import ENCRYPTION_KEY, OPERATOR_KEY, cost_of

from service.ids import uuid7

TEST_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    "OPERATOR_KEY": OPERATOR_KEY,
    "ENCRYPTION_KEY": ENCRYPTION_KEY,
}


@pytest.fixture
def command(tmp_path, database_address):
    """Runs a command on the test's database."""
    return {"directory": tmp_path, "DATABASE_URL": database_url(database_address)}


def manipulate(address, statement):
    """Change the database behind the service's back."""
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, dbname=address.database
    ) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement)


async def audited(command, *options):
    """Return the exit status of ``audit``, and the faults, the repaired faults and the breaks of
    chains that it printed."""
    status, out, _ = await run(sys.executable, "-m", "service", "audit", *options, **command)
    checked = [json.loads(line) for line in out.splitlines()]
    faults = [fault for one in checked for fault in one["faults"]]
    repaired = [fault for one in checked for fault in one["repaired"]]
    breaks = [one["chain_breaks_at"] for one in checked if one["chain_breaks_at"] is not None]
    return status, faults, repaired, breaks


@contextlib.asynccontextmanager
async def calling(caller):
    """Make calls for the length of the block, of which one has ended when it begins; yield the list
    of statuses."""
    statuses = set()
    is_over = False

    async def work():
        while not is_over:
            async with caller.chat("[tokens=3][delay=0.002]", stream=True) as response:
                await response.read()
                statuses.add(response.status)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(work())
        try:
            async with asyncio.timeout(20):
                while not statuses:
                    await asyncio.sleep(0.01)
            yield statuses
        finally:
            is_over = True


async def test_a_credit_on_the_command_line(service, caller, command):
    """A credit prints its entry, a repetition with the same id changes nothing, and too large a
    credit is one line of error."""
    async with caller.chat() as response:
        assert response.status == 200
    (call,) = await caller.entries()
    words = ("ledger", "credit", call["id"], "--usd", call["cost_usd"], "--note", "cut")
    credit_id = str(uuid7())

    (made,) = await rialto(*words, "--id", credit_id, **command)
    (again,) = await rialto(*words, "--id", credit_id, **command)

    assert made == again
    assert (made["id"], made["kind"], made["note"]) == (credit_id, "credit", "cut")
    assert sum(map(cost_of, await caller.entries())) == 0
    status, out, err = await run(sys.executable, "-m", "service", *words, **command)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("conflict: usd: must not be above 0.00, the call's remaining cost")


async def test_the_books_are_repaired(database_address, command, tmp_path, upstream):
    """Under load the audit finds a manipulated limit and fails, the repair prints and fixes it, and
    then the audit passes."""
    environment = {
        "DATABASE_URL": command["DATABASE_URL"],
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
    }
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        caller = await service.new_caller()
        path = f"/admin/v1/organizations/{caller.organization_id}/limits"
        for limit in (
            {"unit": "usd", "period": "month", "ceiling": "1000"},
            {"unit": "requests", "period": "hour", "ceiling": 100_000},
            {"unit": "concurrency", "ceiling": 100},
        ):
            await service.operate("POST", path, json=limit)
        harm = (
            "UPDATE limits SET held = held + 50;"
            "UPDATE limits SET used = used + 7 WHERE unit = 'usd';"
            "UPDATE limits SET buckets[1] = buckets[1] + 9 WHERE unit = 'requests'"
        )
        async with calling(caller) as statuses:
            manipulate(database_address, harm)

            status, faults, repaired, _ = await audited(command)
            assert (status, len(faults), repaired) == (1, 4, [])
            status, faults, repaired, _ = await audited(command, "--repair")
            assert (status, faults, len(repaired)) == (0, [], 4)
            assert any(fault["what"] == "used" and fault["window_at"] for fault in repaired)
            assert (await audited(command))[0] == 0
        assert statuses == {200}
    assert (await audited(command))[0] == 0
    chain = "UPDATE audit_events SET actor = 'nobody' WHERE sequence = 2"
    manipulate(database_address, chain)
    status, _, repaired, breaks = await audited(command, "--repair")
    assert (status, set(breaks), repaired) == (1, {2}, [])


async def test_months_are_dropped(database_address, command):
    """--dry-run prints what would be dropped; the next run drops it, and nothing is left to do."""
    (organization,) = await rialto("organizations", "create", "acme", **command)
    manipulate(
        database_address,
        "CREATE TABLE ledger_partitions.ledger_entries_2025_01 PARTITION OF ledger_entries"
        " FOR VALUES FROM (uuid7_floor('2025-01-01 00:00Z')) TO (uuid7_floor('2025-02-01 00:00Z'))",
    )
    manipulate(
        database_address,
        "INSERT INTO ledger_entries (organization_id, id, kind, cost_nanos, cost_source)"
        f" VALUES ('{organization['id']}', uuid7_floor('2025-01-03 00:00Z'), 'unattributed',"
        " 1500000000, 'reported')",
    )
    words = ("ledger", "retain", "--months", "12")

    (shown,) = await rialto(*words, "--dry-run", **command)
    status, _, err = await run(sys.executable, "-m", "service", *words, **command)
    assert (status, "repeat it with --yes" in err) == (2, True)
    (dropped,) = await rialto(*words, "--yes", **command)

    assert shown == {
        "month": "2025-01",
        "organizations": 1,
        "entries": 1,
        "requests": 0,
        "tokens": 0,
        "cost_usd": "1.50",
        "is_dropped": False,
    }
    assert dropped == {**shown, "is_dropped": True}
    assert await rialto(*words, "--yes", **command) == []
    assert (await audited(command))[0] == 0


async def test_months_are_dropped_by_the_service(database_address, tmp_path, upstream, command):
    """With LEDGER_RETENTION_MONTHS the service drops months by itself and logs it."""
    manipulate(
        database_address,
        "CREATE TABLE ledger_partitions.ledger_entries_2025_01 PARTITION OF ledger_entries"
        " FOR VALUES FROM (uuid7_floor('2025-01-01 00:00Z')) TO (uuid7_floor('2025-02-01 00:00Z'))",
    )
    environment = {
        "DATABASE_URL": command["DATABASE_URL"],
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
    }
    async with started(tmp_path, **environment) as process:
        await process.listening()
        assert not process.lines_with("ledger month dropped")
    shown = await rialto("ledger", "retain", "--months", "12", "--dry-run", **command)
    assert json.dumps(shown).count("2025-01") == 1
    async with started(tmp_path, LEDGER_RETENTION_MONTHS="12", **environment) as process:
        line = await process.wait_for_line("ledger month dropped")
    assert line["month"] == "2025-01"


async def test_upstream_keys(tmp_path, database_address, upstream, command):
    """Upstream keys are sealed, listed without the key, checked, used within seconds, and
    disabled."""
    venice = {"VENICE_API_KEY": "sandbox", "VENICE_BASE_URL": f"{upstream.url}/api/v1"}
    add = (sys.executable, "-m", "service", "upstream-keys", "add")

    async def typed(line, name="spare", **more):
        process = await asyncio.create_subprocess_shell(
            f"echo {line} | {' '.join(add)} {name}",
            cwd=tmp_path,
            env=os.environ | TEST_ENVIRONMENT | {"DATABASE_URL": command["DATABASE_URL"]} | more,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    status, out, err = await typed("second")
    assert status == 0, err
    assert "second" not in out
    key = json.loads(out)
    assert (key["name"], key["source"], key["balance_usd"]) == ("spare", "database", None)
    assert key["last_check"] is None, "without VENICE_API_KEY there is no Venice to ask"
    assert (await typed("third"))[2].startswith("conflict: ")
    assert (await typed("''"))[2].startswith("invalid_request: key")
    reserved = await typed("third", "environment")
    assert reserved[2].startswith("conflict: 'environment' is reserved for VENICE_API_KEY")
    async with (
        started(tmp_path, DATABASE_URL=command["DATABASE_URL"], **venice) as process,
        client_of(process) as service,
    ):
        caller = await service.new_caller()
        upstream.faults.push("/chat/completions", "invalid_key", key="sandbox")
        async with asyncio.timeout(20):
            while True:
                async with caller.chat() as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.1)
    upstream.faults.clear()
    status, out, err = await typed("wrong", "other", **venice)
    assert (status, json.loads(out)["last_check"]) == (0, "invalid")
    assert "warning: other: Venice rejected the key" in err
    assert "wrong" not in out + err
    other = json.loads(out)["id"]
    assert (await rialto("upstream-keys", "disable", other, **command))[0]["status"] == "disabled"
    checked = await rialto("upstream-keys", "check", **command, **venice)
    assert checked == [
        {"name": "environment", "is_well": True, "problem": None},
        {"name": "spare", "is_well": True, "problem": None},
    ]
    upstream.faults.push("/api_keys/rate_limits", "invalid_key", key="sandbox")
    asking = (sys.executable, "-m", "service", "upstream-keys", "check")
    status, out, _ = await run(*asking, **command, **venice)
    upstream.faults.clear()
    assert (status, out.count('"is_well":false')) == (1, 1)
    listed = await rialto("upstream-keys", "list", **command)
    assert [line["last_check"] for line in listed] == ["invalid", "well", "invalid"]
    listed = listed[:2]
    assert all(float(line["balance_usd"]) > 0 and line["tier"] == "paid" for line in listed)
    (disabled,) = await rialto("upstream-keys", "disable", key["id"], **command)
    assert disabled["status"] == "disabled"
    names = [line["name"] for line in await rialto("upstream-keys", "check", **command, **venice)]
    assert names == ["environment"]
    assert (await audited(command))[0] == 0


async def test_usage_is_counted_again(command, database_address):
    """The audit names a roll-up that the ledger does not prove, and a command counts it again."""
    operator = "00000000-0000-0000-0000-000000000000"
    manipulate(
        database_address,
        "INSERT INTO derived.usage_cursor (counted_to) VALUES (now());"
        " INSERT INTO derived.usage"
        f" SELECT 'key_day', date_trunc('day', now(), 'UTC'), '{operator}', NULL, NULL, NULL, NULL,"
        " 1, 1, 0, 0, 0, 0, 0, 0, 0, 0",
    )
    found = await audited(command)
    rebuild = (sys.executable, "-m", "service", "ledger", "rebuild-usage")
    status, _, shown = await run(*rebuild, **command)

    assert found[0] == 1
    assert "entries in usage by key and day" in {fault["what"] for fault in found[1]}
    assert (status, shown.strip()) == (0, "days counted: 1")
    assert (await audited(command))[0] == 0
