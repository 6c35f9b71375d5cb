"""The failover drill: of three upstream keys one is invalid, one is spent, and one is overloaded
half of the time. No call may be lost, and none may be charged twice."""

import asyncio
import contextlib
import dataclasses
import statistics
import time
from uuid import UUID

import aiohttp
from charges import Charges, number_tag, request_id
from process import client_of, database_url, started
from support import MODEL, make_settings, set_limit
from upstream import KEYS, running_sandbox

from service import audit, ledger
from service.audit import OPERATOR_ORGANIZATION_ID
from service.database.pool import open_pool

CONNECTIONS = 64
UPSTREAM_KEYS = "/admin/v1/upstream-keys"
GOOD, SPENT, OVERLOADED = KEYS
INVALID = "no-key-of-venices"
LIMITS = (
    {"unit": "usd", "period": "day", "ceiling": "100000"},
    {"unit": "usd", "period": "lifetime", "ceiling": "100000", "of_key": True},
    {"unit": "requests", "period": "minute", "ceiling": 10**9},
    {"unit": "tokens", "period": "hour", "ceiling": 10**12, "of_key": True},
    {"unit": "concurrency", "ceiling": 10_000},
    {"unit": "usd", "period": "month", "ceiling": "100000", "each_end_user": True},
)
"""Limits of every kind, with room for everything."""


@dataclasses.dataclass
class Report:
    """The results of one load."""

    calls: int
    lost: int
    charged_twice: int
    attempts: int
    calls_a_second: float
    p50_ms: float
    p99_ms: float
    charged_by: set
    problems: list


class Load:
    """A closed loop of one caller's calls; collects those that failed."""

    def __init__(self, service, caller):
        self.url = f"{service.url}/v1/chat/completions"
        self.headers = caller.headers
        self.latencies_ms, self.lost = [], []

    async def run(self, requests):
        """Send the requests, given as arguments for aiohttp; return calls per second."""
        waiting = iter(requests)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector, headers=self.headers) as http:
            started = time.perf_counter()
            await asyncio.gather(*(self._work(http, waiting) for _ in range(CONNECTIONS)))
            return len(self.latencies_ms) / (time.perf_counter() - started)

    async def _work(self, http, waiting):
        for request in waiting:
            started = time.perf_counter()
            try:
                async with http.post(self.url, **request) as response:
                    await response.read()
                    if response.status != 200:
                        self.lost.append(str(response.status))
            except aiohttp.ClientError as error:
                self.lost.append(str(error))
            self.latencies_ms.append((time.perf_counter() - started) * 1000)


async def run(address, directory, calls, *, failing):
    """Run the load on a service with three failing keys, or with one good key; return its Report.
    The database must have its tables, and no data of another run."""
    environment = {
        "DATABASE_URL": database_url(address),
        "VENICE_API_KEY": INVALID if failing else GOOD,
        "VENICE_RETRY_SECONDS": "30",
        "SHUTDOWN_LISTEN_SECONDS": "0",
    }
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running_sandbox())
        environment["VENICE_BASE_URL"] = f"{upstream.url}/api/v1"
        process = await stack.enter_async_context(started(directory, **environment))
        service = await stack.enter_async_context(client_of(process))
        caller = await service.new_caller("drill")
        for limit in LIMITS:
            await set_limit(caller, **limit)
        await _wait_for_prices(caller)
        if failing:
            await _break_keys(service, upstream)
        return await _loaded(address, upstream, Load(service, caller), caller, calls)


async def _wait_for_prices(caller):
    """Wait until the service has loaded the catalog."""
    async with asyncio.timeout(20):
        while True:
            async with caller.chat(path="/v1/quote") as response:
                if (await response.json()).get("would_pass"):
                    return
            await asyncio.sleep(0.05)


async def _break_keys(service, upstream):
    """Add a spent and an overloaded key. Venice does not know the key in the settings."""
    for name in (SPENT, OVERLOADED):
        status, made = await service.operate(
            "POST", UPSTREAM_KEYS, json={"name": name, "key": name}
        )
        assert status == 201, made
    for path in ("/chat/completions", "/api_keys/rate_limits"):
        upstream.faults.push(path, "insufficient_balance", key=SPENT)
    upstream.faults.push(
        "/chat/completions", "model_overloaded", key=OVERLOADED, chance=0.5, retry_after=0
    )


async def _loaded(address, upstream, load, caller, calls):
    charges = Charges(upstream)
    watching = asyncio.create_task(charges.watch())
    try:
        rate = await load.run(map(_request, range(calls)))
    finally:
        watching.cancel()
    async with open_pool(make_settings(address, "http://x"), address) as database:
        answered = range(calls) if not load.lost else ()
        problems = await charges.disagreements(database, answered)
        problems += await _audit_faults(database, UUID(caller.organization_id))
        entries = await database.fetchval("SELECT count(*) FROM public.ledger_entries")
        cost_nanos = await database.fetchval("SELECT sum(cost_nanos) FROM public.ledger_entries")
    if entries != calls:
        problems.append(f"{entries} entries for {calls} calls")
    if cost_nanos != upstream.calls.charged_nanos:
        problems.append(f"{upstream.calls.charged_nanos} charged, {cost_nanos} booked")
    cuts = statistics.quantiles(load.latencies_ms, n=100)
    return Report(
        calls=calls,
        lost=len(load.lost),
        charged_twice=len(charges.charged_twice),
        attempts=charges.attempts,
        calls_a_second=rate,
        p50_ms=cuts[49],
        p99_ms=cuts[98],
        charged_by=set(charges.keys),
        problems=[*sorted(set(load.lost)), *problems],
    )


def _request(number):
    content = f"[tokens=5] {number_tag(number)}"
    return {
        "json": {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 100,
            "stream": number % 2 == 1,
            "user": f"user {number % 50}",
        },
        "headers": {"X-Request-ID": request_id(number)},
    }


async def _audit_faults(database, organization_id):
    """Return the faults that the audit finds in limits and in both chains of audit events."""
    proof = await ledger.prove(database, organization_id)
    held = await database.fetchval("SELECT count(*) FROM public.holds")
    broken = [
        f"the chain of {one} breaks"
        for one in (organization_id, OPERATOR_ORGANIZATION_ID)
        if await audit.first_break(database, one) is not None
    ]
    return [f"books: {fault}" for fault in proof.faults] + broken + [f"{held} held"] * bool(held)
