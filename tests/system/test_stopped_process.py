"""A stopped process does not stop the others."""

import asyncio
import contextlib
import os
import signal
import sys
import time

import aiohttp
import pytest
from process import ROOT, client_of, database_url, started
from support import MODEL, ORGANIZATIONS

from service import ledger
from service.database.connections import WAITS_MS
from service.errors import Unavailable
from service.ids import uuid7
from service.ledger import Ledger

LOCK_TIMEOUT_S = WAITS_MS["lock_timeout"] / 1000
IDLE_S = WAITS_MS["idle_in_transaction_session_timeout"] / 1000


@contextlib.asynccontextmanager
async def stopped_in_a_transaction(address, organization_id):
    """Run a process that holds the organization's limits and is stopped; yield it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests" / "stopping.py")),
        *(database_url(address), str(organization_id)),
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert await process.stdout.readline() == b"stopping\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def timed(books, hold):
    """Return how long an admission takes, and its outcome."""
    started_at = time.monotonic()
    try:
        outcome = await books.ledger.admit(hold)
    except Unavailable as error:
        outcome = error
    return time.monotonic() - started_at, outcome


async def test_a_stopped_process_loses_its_locks(books, database_address):
    """Calls that wait for a stopped process's locks are admitted before they would give up; when it
    wakes its transaction is rolled back."""
    limit_id = await books.limit("usd", "lifetime", 10**9)
    async with stopped_in_a_transaction(database_address, books.organization_id) as process:
        calls = []
        for _ in range(5):
            calls.append(asyncio.create_task(timed(books, books.hold())))
            await asyncio.sleep(IDLE_S / 4)
        ended = await asyncio.gather(*calls)
        process.send_signal(signal.SIGCONT)
        assert await process.stdout.read() == b"lost\n"

    assert [outcome for _, outcome in ended if isinstance(outcome, Unavailable)] == []
    assert max(seconds for seconds, _ in ended) < LOCK_TIMEOUT_S
    assert await books.state(limit_id) == ("0.00", "0.000000005")


async def test_the_wait_for_a_lock_has_a_timeout(books):
    """Calls that wait for a lock that is never released are refused with a retry at the timeout,
    including those that queued behind others."""
    await books.limit("usd", "lifetime", 10**9)
    async with books.connection.transaction():
        await books.connection.fetch("SELECT FROM public.limits FOR NO KEY UPDATE")
        calls = []
        for _ in range(8):
            calls.append(asyncio.create_task(timed(books, books.hold())))
            await asyncio.sleep(0.25)
        ended = await asyncio.gather(*calls)

    assert {type(outcome) for _, outcome in ended} == {Unavailable}
    assert all(outcome.retry_after_s for _, outcome in ended)
    # A margin for an event loop that runs late.
    assert max(seconds for seconds, _ in ended) < LOCK_TIMEOUT_S + 0.5


async def test_a_slow_report_is_not_cancelled(books):
    """A slow statement that only reads is not cancelled, because no call waits for it."""
    async with ledger.entries.reading_ledger(books.database, 30) as conn:
        await asyncio.sleep(IDLE_S * 1.5)
        assert (await conn.fetchrow("SELECT 1 AS one"))["one"] == 1


@pytest.mark.timeout(300)
async def test_stops_and_stalls_lose_nothing(tmp_path, database_address, upstream, books):
    """While a process under load is stopped repeatedly for two seconds another one's calls are
    hardly delayed; its own continue when it wakes, and each call is recorded once."""
    limit_id = await books.limit("usd", "lifetime", 10**15)
    environment = {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
    }
    # Both processes call for one organization, so that they share a limit.
    async with started(tmp_path, **environment) as process, client_of(process) as service:
        path = f"{ORGANIZATIONS}/{books.organization_id}/keys"
        status, key = await service.operate("POST", path, json={"name": "a"})
        assert status == 201, key
        answered, durations, is_over = [], [], asyncio.Event()
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}

        async def call_stopped():
            headers = {"Authorization": f"Bearer {key['key']}"}
            while not is_over.is_set():
                with contextlib.suppress(aiohttp.ClientError):
                    async with service.http.post(
                        "/v1/chat/completions", json=body, headers=headers
                    ) as response:
                        answered.append(response.status)
                        await response.read()

        async def call_other():
            other = Ledger(books.database, uuid7())
            while not is_over.is_set():
                hold, began = books.hold(), time.monotonic()
                await other.admit(hold)
                durations.append(time.monotonic() - began)
                await books.settle(hold, 1)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(call_stopped())
            for _ in range(2):
                group.create_task(call_other())
            for _ in range(4):
                await asyncio.sleep(0.5)
                process.send(signal.SIGSTOP)
                await asyncio.sleep(2)
                process.send(signal.SIGCONT)
            await asyncio.sleep(0.5)
            is_over.set()
        outcomes = await books.connection.fetch(
            "SELECT outcome FROM ledger_entries WHERE api_key_id = $1",
            ledger.credits.UUID(key["id"]),
        )

    assert answered.count(200) > 20
    assert set(answered) <= {200, 503}
    assert [row["outcome"] for row in outcomes].count("ok") == answered.count(200)
    # A call that got a 503 has an entry only if it may have been admitted.
    assert len(outcomes) <= len(answered)
    assert len(durations) > 100
    assert max(durations) < LOCK_TIMEOUT_S
    assert (await books.state(limit_id))[1] == "0.00"
