"""Limits across processes and after SIGKILL."""

import asyncio
import contextlib
import random
import signal
from decimal import Decimal
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from process import client_of, database_url, started
from support import Caller, set_limit

from service.database.connections import connect_arguments
from service.ledger.proofs import FIND_FAULTS
from service.sandbox import Fault, FaultKind


@pytest.fixture
def environment(database_address, upstream):
    """The environment that a process needs."""
    return {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        "SHUTDOWN_LISTEN_SECONDS": "0",
    }


@pytest.fixture
async def connection(database_address):
    """A connection for looking at the database."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    yield connection
    await connection.close()


async def audited(connection, organization_id):
    """Audit the organization; return its limits."""
    assert await connection.fetch(FIND_FAULTS, organization_id) == []
    return await connection.fetch(
        "SELECT unit, used, held, ceiling FROM limits WHERE organization_id = $1"
        " ORDER BY unit DESC",
        organization_id,
    )


ROOM = 20
UNITS = [
    (unit, period)
    for unit in ("usd", "requests", "tokens")
    for period in ("minute", "hour", "day", "month", "lifetime")
] + [("concurrency", None)]


async def room_for(caller, unit, period, count):
    """Set a limit with room for so many calls, using the amount that a refusal states for one."""
    facts = {"unit": unit, "period": period} if period else {"unit": unit}
    limit = await set_limit(caller, **facts, ceiling="0" if unit == "usd" else 0)
    async with caller.chat() as response:
        needed = (await response.json())["error"]["limit"]["needed"]
    ceiling = str(Decimal(needed) * count) if unit == "usd" else needed * count
    change = {"ceiling": ceiling}
    await caller.service.operate("PATCH", f"/admin/v1/limits/{limit['id']}", json=change)


async def answered(caller):
    """Make a call; return the status and the body."""
    async with caller.chat() as response:
        return response.status, await response.json()


def check_refusals(answers):
    """Assert that the numbers of each refusal justify it."""
    for status, body in answers:
        if status != 200:
            assert status in (402, 429)
            facts = body["error"]["limit"]
            used, held, needed, ceiling = (
                Decimal(facts[name]) for name in ("used", "held", "needed", "ceiling")
            )
            assert used + held + needed > ceiling, facts


@pytest.mark.parametrize("processes", [1, 2, 3])
async def test_exactly_as_many_reach_venice_as_fit(
    tmp_path, environment, upstream, connection, processes
):
    """Many concurrent calls against room for 20 reach Venice exactly 20 times while it holds its
    responses back, for each unit, period and number of processes; and the ceiling also holds when
    calls end and others take their room."""
    async with contextlib.AsyncExitStack() as stack:
        services = []
        for _ in range(processes):
            process = await stack.enter_async_context(started(tmp_path, **environment))
            services.append(await stack.enter_async_context(client_of(process)))
        for unit, period in UNITS:
            count = 1000 if (unit, period) == ("usd", "month") else 120
            first = await services[0].new_caller()
            callers = [
                Caller(service, first.organization_id, {"id": first.key_id, "key": first.key})
                for service in services
            ]
            await room_for(first, unit, period, ROOM)
            upstream.calls.clear()
            upstream.faults.add(Fault(kind=FaultKind.BARRIER, path="/chat/completions"))

            calls = [
                asyncio.create_task(answered(callers[number % processes]))
                for number in range(count)
            ]
            async with asyncio.timeout(60):
                while sum(call.done() for call in calls) < count - ROOM:
                    await asyncio.sleep(0.01)
                while len(upstream.calls.to("/chat/completions")) < ROOM:
                    await asyncio.sleep(0.01)
            upstream.faults.release()
            answers = await asyncio.gather(*calls)

            assert [status for status, _ in answers].count(200) == ROOM, (unit, period)
            assert len(upstream.calls.to("/chat/completions")) == ROOM
            check_refusals(answers)
            check_refusals(
                await asyncio.gather(*(answered(callers[n % processes]) for n in range(100)))
            )
            (limit,) = await audited(connection, first.organization_id)
            assert limit["held"] == 0
            assert limit["used"] <= limit["ceiling"]
        assert await connection.fetchval("SELECT count(*) FROM holds") == 0


async def test_kill_9_loses_no_call(tmp_path, environment, connection):
    """When a process is killed repeatedly under load, acknowledged calls are in the ledger, calls
    in flight are settled at their bound by the next process, and the sums agree."""
    acknowledged = 0
    organization = None
    for seed in range(3):
        async with started(tmp_path, **environment) as process, client_of(process) as service:
            if organization is None:
                caller = await service.new_caller()
                organization, key = caller.organization_id, {"id": caller.key_id, "key": caller.key}
                await set_limit(caller, unit="usd", period="lifetime", ceiling="1000000")
                await set_limit(caller, unit="concurrency", ceiling=1000)
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
