"""Money across processes: the same limit on all of them, and through kill -9."""

import asyncio
import contextlib
import random
import signal
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from process import database_url, started, talking
from support import Caller

from service.db import connect_arguments
from service.ledger.proofs import FIND_FAULTS


@pytest.fixture
def environment(database_address, upstream):
    """What a process needs to run."""
    return {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "SHUTDOWN_LISTEN_SECONDS": "0",
    }


@pytest.fixture
async def connection(database_address):
    """A connection to look at the books with."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    yield connection
    await connection.close()


async def limited(caller, **limit):
    """Set a limit on the caller's organization."""
    path = f"/admin/v1/organizations/{caller.organization_id}/limits"
    status, made = await caller.service.operate("POST", path, json=limit)
    assert status == 201, made
    return made


async def audited(connection, organization_id):
    """The limits, after the audit."""
    assert await connection.fetch(FIND_FAULTS, organization_id) == []
    return await connection.fetch("SELECT unit, used, held FROM limits ORDER BY unit DESC")


@pytest.mark.parametrize("processes", [1, 2, 3])
async def test_exactly_as_many_reach_venice_as_fit(
    tmp_path, environment, upstream, connection, processes
):
    """1,000 calls at once against room for 20 that cost exactly their bound, while Venice holds
    every answer back: 20 reach it, on any number of processes."""
    async with contextlib.AsyncExitStack() as stack:
        services = []
        for _ in range(processes):
            process = await stack.enter_async_context(started(tmp_path, **environment))
            services.append(await stack.enter_async_context(talking(process)))
        first = await services[0].new_caller()
        callers = [
            Caller(service, first.organization_id, {"id": first.key_id, "key": first.key})
            for service in services
        ]
        await limited(first, unit="requests", period="hour", ceiling=20)
        await limited(first, unit="usd", period="month", ceiling="1000")

        async def call(caller):
            async with caller.chat("[tokens=3][delay=2]") as response:
                return response.status, await response.json()

        calls = [asyncio.create_task(call(callers[number % processes])) for number in range(1000)]
        answers = await asyncio.gather(*calls)

        statuses = [status for status, _ in answers]
        assert statuses.count(200) == 20
        assert statuses.count(429) == 980
        assert len(upstream.calls.to("/chat/completions")) == 20
        for status, body in answers:
            if status == 429:
                limit = body["error"]["limit"]
                assert limit["used"] + limit["needed"] > limit["ceiling"]
        assert await connection.fetchval("SELECT count(*) FROM ledger_entries") == 20
        assert await connection.fetchval("SELECT count(*) FROM holds") == 0


async def test_kill_9_loses_no_call(tmp_path, environment, connection):
    """A process is killed under load, again and again: what was acknowledged is in the books, what
    was in flight is settled at its bound by the next process, and the sums agree."""
    acknowledged = 0
    organization = None
    for seed in range(3):
        async with started(tmp_path, **environment) as process, talking(process) as service:
            if organization is None:
                caller = await service.new_caller()
                organization, key = caller.organization_id, {"id": caller.key_id, "key": caller.key}
                await limited(caller, unit="usd", period="lifetime", ceiling="1000000")
                await limited(caller, unit="concurrency", ceiling=1000)
            caller = Caller(service, organization, key)
            done = 0

            async def work(caller=caller):
                nonlocal done
                while True:
                    async with caller.chat("[tokens=5][delay=0.005]", stream=True) as response:
                        text = await response.text()
                        done += text.endswith("data: [DONE]\n\n")

            workers = [asyncio.create_task(work()) for _ in range(16)]
            await asyncio.sleep(random.Random(seed).uniform(0.7, 1.5))
            process.send(signal.SIGKILL)
            await process.ended()
            for worker in workers:
                worker.cancel()
            ended = await asyncio.gather(*workers, return_exceptions=True)
            kinds = (aiohttp.ClientError, asyncio.CancelledError, ConnectionError)
            assert all(isinstance(error, kinds) for error in ended)
            acknowledged += done
        await audited(connection, UUID(organization))
        await connection.execute("UPDATE holds SET lease_until = now() - interval '1 s'")

    async with started(tmp_path, **environment) as process:
        await process.listening()
        async with asyncio.timeout(20):
            while await connection.fetchval("SELECT count(*) FROM holds"):
                await asyncio.sleep(0.05)

    usd, concurrency = await audited(connection, UUID(organization))
    outcomes = dict(
        await connection.fetch("SELECT outcome, count(*) FROM ledger_entries GROUP BY outcome")
    )
    assert acknowledged > 0
    assert outcomes["ok"] >= acknowledged
    assert outcomes["interrupted"] > 0
    assert (usd["held"], concurrency["held"]) == (0, 0)
    total = await connection.fetchval("SELECT sum(cost_nanos) FROM ledger_entries")
    assert usd["used"] == total
    sources = await connection.fetch(
        "SELECT DISTINCT outcome, cost_source FROM ledger_entries ORDER BY outcome"
    )
    assert ("interrupted", "bound") in {tuple(row) for row in sources}
