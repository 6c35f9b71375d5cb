"""Credits, repair and retention on the command line, while the service runs."""

import asyncio
import contextlib
import sys

import psycopg
import pytest
from process import database_url
from support import cost_of
from test_command_line import rialto, run

from service.db import uuid7


@pytest.fixture
def command(tmp_path, database_address):
    """How a command is run against the test's database."""
    return {"directory": tmp_path, "DATABASE_URL": database_url(database_address)}


def changed(address, statement):
    """Change the database behind the service's back."""
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, dbname=address.database
    ) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement)


async def audited(command, *options):
    """Exit status of ``audit`` and what it printed."""
    status, out, _ = await run(sys.executable, "-m", "service", "audit", *options, **command)
    return status, out


@contextlib.asynccontextmanager
async def calling(caller):
    """Calls go on for the length of the block, and one has ended when it begins; yields the
    statuses."""
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
    """Prints the entry; again with its id it changes nothing; too much is one line."""
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
    assert err.startswith("conflict: usd: must not be above 0.00, what the call costs")
