"""Faults under load: two replicas on one database, many calls, and something that dies.

The checks afterwards: each call that Venice charged for has one entry, each response that a client
received in full is settled at the right cost, each refusal's numbers justify it, no limit was
exceeded, nothing is held, and the audit finds no faults.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import aiohttp
import psutil
from charges import Charges, number_tag, request_id
from faults import TcpProxy
from postgres import administration
from process import client_of, database_url, started
from support import MODEL, Caller, make_settings, set_limit
from upstream import running_sandbox

from service import ledger
from service.database.pool import open_pool
from service.errors import Unavailable
from service.sandbox import Fault, FaultKind

WORKERS = 24
FIRST_ANSWERS = 25
"""How many calls must be answered before the first fault, however busy the machine is."""
CUT = (aiohttp.ClientError, ConnectionError, TimeoutError, RuntimeError)
"""Errors of a cut connection. A session that was closed with its replica raises the last one."""
RESOLVE_TIMEOUT_S = 90
WATCH_LIMITS_EVERY_S = 0.05
OVERBOOKED = """
    SELECT l.unit, l.ceiling, s.used, h.held
    FROM public.limits l
    JOIN public.limits_as_of(ARRAY(SELECT id FROM public.limits), clock_timestamp()) s USING (id)
    CROSS JOIN LATERAL (
        SELECT sum(CASE WHEN l.unit = 'usd' THEN h.bound_nanos ELSE 1 END) AS held
        FROM public.holds h
        WHERE l.id = ANY (h.limit_ids)
    ) h
    WHERE l.unit IN ('usd', 'concurrency')
      AND s.used + h.held > s.ceiling
"""
"""Selects limits that the calls in flight could exceed, by the holds themselves rather than by the
counters that admission reads. Rates have already counted a call when they hold it."""
LIMITS = (
    {"unit": "usd", "period": "lifetime", "ceiling": "1000000"},
    {"unit": "usd", "period": "day", "ceiling": "0.4", "of_key": True},
    {"unit": "requests", "period": "minute", "ceiling": 6_000},
    {"unit": "tokens", "period": "hour", "ceiling": 400_000_000, "of_key": True},
    {"unit": "concurrency", "ceiling": 8, "of_key": True},
    {"unit": "requests", "period": "hour", "ceiling": 1_000, "each_end_user": True},
)
"""Some limits have room for everything; the others refuse calls."""
SKEWS_S = (7_200, -7_200, 400, -400)
"""Clock errors longer than a lease, and larger than any clock set over the network has."""
BOMBS = 20
BOMB = gzip.compress(bytes(200_000_000), 1)
MAX_RSS_BYTES = 500_000_000
MAX_HEALTH_S = 10
VENICES_FAULTS = (
    FaultKind.MODEL_OVERLOADED,
    FaultKind.INFERENCE_FAILED,
    FaultKind.DISCONNECT,
    FaultKind.CUT,
    FaultKind.AT_CAPACITY,
)


@dataclasses.dataclass
class Report:
    """The results of a scenario."""

    name: str
    faults: int = 0
    calls: int = 0
    answered: int = 0
    refused: int = 0
    unavailable: int = 0
    cut: int = 0
    interrupted: int = 0
    corrections: int = 0
    seconds: float = 0.0
    problems: list = dataclasses.field(default_factory=list)


class Replica:
    """A service process that is started again when it has died."""

    def __init__(self, directory, environment):
        self.directory, self.environment = directory, environment
        self.stack = contextlib.AsyncExitStack()
        self.process = self.service = None
        self.more = {}
        """Extra environment variables of this replica."""

    async def start(self):
        started_process = started(self.directory, **self.environment, **self.more)
        self.process = await self.stack.enter_async_context(started_process)
        self.service = await self.stack.enter_async_context(client_of(self.process))

    async def restart(self):
        """Start the replica again after it ended."""
        await self.process.ended()
        await self.stack.aclose()
        await self.start()


class Chaos:
    """The replicas, the load on them, and the results."""

    def __init__(self, server, address, directory, seed):
        self.server, self.address, self.directory = server, address, directory
        self.chance = random.Random(seed)
        self.answers, self.refusals = {}, []
        self.overbooked = set()
        self.harmed = []
        self.seen = Counter()
        self.callers = []

    @contextlib.asynccontextmanager
    async def running(self):
        """Run everything for the length of the block; the replicas reach the database through the
        proxy."""
        async with contextlib.AsyncExitStack() as stack:
            self.upstream = await stack.enter_async_context(running_sandbox())
            self.charges = Charges(self.upstream)
            self.proxy = await stack.enter_async_context(TcpProxy(self.address))
            environment = {
                "DATABASE_URL": database_url(self.proxy.address) + "?sslmode=disable",
                "VENICE_API_KEY": "sandbox",
                "VENICE_BASE_URL": f"{self.upstream.url}/api/v1",
                "SHUTDOWN_LISTEN_SECONDS": "0",
            }
            self.replicas = [Replica(self.directory, environment) for _ in range(2)]
            for replica in self.replicas:
                await replica.start()
                stack.push_async_callback(replica.stack.aclose)
            pool = open_pool(make_settings(self.address, "http://x"), self.address)
            self.database = await stack.enter_async_context(pool)
            await self._prepare()
            yield self

    async def _prepare(self):
        first = await self.replicas[0].service.new_caller()
        for limit in LIMITS:
            await set_limit(first, **limit)
        path = f"/admin/v1/organizations/{first.organization_id}/keys"
        _, key = await first.service.operate("POST", path, json={"name": "second"})
        self.organization_id = first.organization_id
        self.began_at = await self._count("SELECT clock_timestamp()")
        self.callers = [{"id": first.key_id, "key": first.key}, key]

    async def load(self, faults):
        """Send calls from many clients for as long as ``faults`` runs."""
        working = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        failing = asyncio.create_task(self._fail_venice())
        watching = [
            asyncio.create_task(work) for work in (self.charges.watch(), self._watch_limits())
        ]
        try:
            await faults
        finally:
            failing.cancel()
            for task in watching:
                task.cancel()
            self.is_over = True
            await asyncio.wait_for(asyncio.gather(*working), 60)
            for ended in await asyncio.gather(*watching, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended

    is_over = False

    async def _watch_limits(self):
        """Check repeatedly that no limit can be exceeded by the calls in flight."""
        while True:
            with contextlib.suppress(Unavailable):
                for row in await self.database.fetch(OVERBOOKED):
                    self.overbooked.add(f"a limit of {row['ceiling']} {row['unit']} was overbooked")
            await asyncio.sleep(WATCH_LIMITS_EVERY_S)

    async def _fail_venice(self):
        while True:
            await asyncio.sleep(self.chance.uniform(0.05, 0.2))
            kind = self.chance.choice(VENICES_FAULTS)
            self.upstream.faults.add(Fault(kind=kind, path="/chat/completions", times=1))

    async def _work(self):
        while not self.is_over:
            replica = self.chance.choice(self.replicas)
            key = self.chance.choice(self.callers)
            if not replica.process.is_running:
                await asyncio.sleep(0.05)
                continue
            self.seen["calls"] += 1
            number = self.seen["calls"]
            caller = Caller(replica.service, self.organization_id, key)
            caller.headers["X-Request-ID"] = request_id(number)
            try:
                await asyncio.wait_for(self._call(caller, number), 40)
            except CUT:
                self.seen["cut"] += 1
                await asyncio.sleep(0.05)

    async def _call(self, caller, number):
        tokens = self.chance.randrange(1, 40)
        is_stream = self.chance.random() < 0.5
        leaves = self.chance.random() < 0.1
        call = caller.chat(
            f"[tokens={tokens}][delay={self.chance.uniform(0, 0.01):.4f}] {number_tag(number)}",
            stream=is_stream,
            user=f"user {self.chance.randrange(30)}",
            max_tokens=100,
        )
        async with call as response:
            if leaves and response.status == 200:
                self.seen["left"] += 1
                return
            text = await response.text()
            if response.status in (402, 429) and '"limit"' in text:
                self.refusals.append(json.loads(text)["error"])
                await asyncio.sleep(0.02)
            elif response.status == 503:
                self.seen["unavailable"] += 1
                await asyncio.sleep(0.1)
            elif response.status == 200:
                whole = text.endswith("data: [DONE]\n\n") and '"error"' not in text
                if whole or not is_stream:
                    self.answers[number] = response.headers.get("x-rialto-cost-usd")

    async def resolve(self):
        """Wait until nothing is held: queued settlements are written, and the holds of a dead
        process are swept. Its leases are expired here, because the sweeper waits for that."""
        deadline = time.monotonic() + RESOLVE_TIMEOUT_S
        await asyncio.sleep(1)
        while await self._count("SELECT count(*) FROM public.holds"):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(2)
            await self.database.fetch(
                "UPDATE public.holds SET lease_until = now() - interval '1 s'"
                " WHERE created_at < now() - interval '6 s'"
            )
            await ledger.sweep(self.database)
        # Settlements of calls that were swept anyway arrive as corrections.
        await asyncio.sleep(6)

    async def _count(self, sql):
        return await self.database.fetchval(sql)

    async def check(self):
        """Return a line for each violated invariant."""
        problems = await self.charges.disagreements(self.database, self.answers)
        problems += [
            f"unproven refusal: {error}" for error in self.refusals if not is_justified(error)
        ]
        problems += await self._limits()
        problems += sorted(self.overbooked) + self.harmed
        strays = await self.database.fetchval(
            "SELECT count(*) FROM public.ledger_entries"
            " WHERE counted_at NOT BETWEEN $1 AND clock_timestamp()",
            self.began_at,
        )
        if strays:
            problems.append(f"{strays} entries count at a time that was not")
        if held := await self._count("SELECT count(*) FROM public.holds"):
            problems.append(f"{held} calls are still held")
        return problems

    async def _limits(self):
        proof = await ledger.prove(self.database, self.organization_id)
        passed = await self.database.fetch(
            "SELECT s.id, s.used, s.ceiling FROM public.limits_as_of("
            " ARRAY(SELECT id FROM public.limits), clock_timestamp()) s WHERE s.used > s.ceiling"
        )
        return [f"books: {fault}" for fault in proof.faults] + [
            f"limit {row['id']}: {row['used']} used of {row['ceiling']}" for row in passed
        ]

    # The faults: one function each.

    async def kill_service(self):
        """Kill a replica with SIGKILL and start it again."""
        replica = self.chance.choice(self.replicas)
        replica.process.send(signal.SIGKILL)
        await replica.restart()

    async def kill_postgres(self):
        """Kill PostgreSQL and its processes with SIGKILL. Every other time, and the first time, it
        stays down for longer than calls wait."""
        await asyncio.to_thread(self.server.kill)
        self.seen["kills"] += 1
        await asyncio.sleep(8 if self.seen["kills"] % 2 else 0.5)
        await asyncio.to_thread(self.server.start)

    async def lose_connections(self):
        """Let the network drop all data silently and forget the connections."""
        self.proxy.blackhole()
        await asyncio.sleep(self.chance.uniform(0.5, 3))
        await self.proxy.restore()

    async def reset_connections(self):
        """Reset every connection in the middle of its work."""
        self.proxy.reset()

    async def run_late(self):
        """Break connections under statements that the server runs only later, when they have long
        been retried."""
        with stopped(self._backends()):
            await asyncio.sleep(self.chance.uniform(0.01, 0.3))
            self.proxy.reset()
            await asyncio.sleep(self.chance.uniform(0.5, 2.5))

    async def stall_postgres(self, seconds=10):
        """Stop PostgreSQL for a while, in the middle of commits."""
        server = psutil.Process(self.server.pid)
        with stopped([server, *server.children()]):
            await asyncio.sleep(seconds)

    async def freeze_service(self):
        """Stop a replica for longer than the leases of its calls, so that the other replica settles
        them."""
        replica = self.chance.choice(self.replicas)
        with stopped([psutil.Process(replica.process.process.pid)]):
            await asyncio.sleep(1)
            await self.database.fetch(
                "UPDATE public.holds SET lease_until = now() - interval '1 s'"
            )
            await ledger.sweep(self.database)
        await asyncio.sleep(1)

    async def fill_disk(self):
        """Let PostgreSQL fail every write to a file, as when its disk is full; usually it
        crashes."""
        postmaster = psutil.Process(self.server.pid)
        await asyncio.to_thread(limit_files, postmaster, "0")
        await asyncio.sleep(self.chance.uniform(0.5, 3))
        await asyncio.to_thread(limit_files, postmaster, "unlimited")
        # It may still find that the last bytes it wrote are missing.
        await asyncio.sleep(2)
        if not postmaster.is_running():
            await asyncio.to_thread(self.server.start)

    async def forbid_writing(self):
        """Make the database read-only, as after a failover to a standby."""
        await asyncio.to_thread(self._set_read_only, "on")
        await asyncio.sleep(self.chance.uniform(1, 8))
        await asyncio.to_thread(self._set_read_only, "off")

    def _set_read_only(self, value):
        with administration(self.server) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")

    async def skew_clock(self):
        """Start a replica again with a clock that is hours off."""
        library = self.directory / "skewed_clock.so"
        if not library.exists():
            source = Path(__file__).with_name("skewed_clock.c")
            command = ["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"]
            await asyncio.to_thread(subprocess.run, command, check=True)
        self.seen["skews"] += 1
        skew_s = SKEWS_S[self.seen["skews"] % len(SKEWS_S)]
        replica = self.chance.choice(self.replicas)
        replica.more = {"LD_PRELOAD": str(library), "SKEW_SECONDS": str(skew_s)}
        replica.process.send(signal.SIGKILL)
        await replica.restart()
        await asyncio.sleep(2)

    async def stall_log(self):
        """Stop reading the replicas' logs and check that calls continue."""
        pipes = [
            replica.process.process._transport.get_pipe_transport(2) for replica in self.replicas
        ]
        for pipe in pipes:
            pipe.pause_reading()
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, 4096)
        try:
            await asyncio.sleep(2)
            await self._check_calls_continue("while its log was not read")
        finally:
            for pipe in pipes:
                pipe.resume_reading()

    async def poison_prompt(self):
        """Let the edge before Venice refuse one caller's prompts and check that other callers'
        calls of the same model succeed."""
        service = self.chance.choice(self.replicas).service
        poisoner = await service.new_caller("poisoner")
        self.upstream.faults.add(Fault(kind=FaultKind.EDGE_PAGE, path="/responses", times=20))
        for _ in range(20):
            body = {"model": MODEL, "input": "/etc/passwd", "max_output_tokens": 10}
            async with service.http.post(
                "/v1/responses", json=body, headers=poisoner.headers
            ) as response:
                await response.read()
        await self._check_calls_continue("after one caller's prompts were refused")

    async def send_bombs(self):
        """Send small bodies that inflate to large ones, with and without a key."""
        replica = self.chance.choice(self.replicas)

        async def send(headers):
            headers = {**headers, "Content-Encoding": "gzip", "Content-Type": "application/json"}
            with contextlib.suppress(*CUT):
                async with replica.service.http.post(
                    "/v1/chat/completions", data=BOMB, headers=headers
                ) as response:
                    await response.read()

        key = {"Authorization": f"Bearer {self.callers[0]['key']}"}
        bombs = [asyncio.create_task(send(key if n % 2 else {})) for n in range(BOMBS)]
        began = time.monotonic()
        async with replica.service.http.get("/health") as response:
            await response.read()
        if time.monotonic() - began > MAX_HEALTH_S:
            self.harmed.append("health took too long beside bombs")
        rss = 0
        while not all(bomb.done() for bomb in bombs):
            rss = max(rss, psutil.Process(replica.process.process.pid).memory_info().rss)
            await asyncio.sleep(0.05)
        if rss > MAX_RSS_BYTES:
            self.harmed.append(f"bombs took {rss // 2**20} MiB")
        await self._check_calls_continue("after bombs")

    async def _check_calls_continue(self, when):
        """Record a problem if no call is answered within a few seconds."""
        before, deadline = len(self.answers), time.monotonic() + 10
        while len(self.answers) == before:
            if time.monotonic() > deadline:
                self.harmed.append(f"no call was answered {when}")
                return
            await asyncio.sleep(0.05)

    def _backends(self):
        """Return the server's backend processes, one for each client."""
        for process in psutil.Process(self.server.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "[local]" in "".join(process.cmdline()):
                    yield process


SCENARIOS = {
    "kill-service": Chaos.kill_service,
    "kill-postgres": Chaos.kill_postgres,
    "lose-connections": Chaos.lose_connections,
    "reset-connections": Chaos.reset_connections,
    "run-late": Chaos.run_late,
    "stall-postgres": Chaos.stall_postgres,
    "freeze-service": Chaos.freeze_service,
    "full-disk": Chaos.fill_disk,
    "read-only": Chaos.forbid_writing,
    "clock-skew": Chaos.skew_clock,
    "stalled-log": Chaos.stall_log,
    "poisoned-prompt": Chaos.poison_prompt,
    "zip-bombs": Chaos.send_bombs,
}
"""The scenarios by name."""


def limit_files(postmaster, size):
    """Let no process of the server write beyond so many bytes of any file."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (postmaster, *postmaster.children()):
            # As the server's own user, because root alone may not do this in a container.
            user = process.uids().real if os.getuid() == 0 else None
            command = ["prlimit", f"--pid={process.pid}", f"--fsize={size}:"]
            subprocess.run(command, user=user, capture_output=True, check=False)


@contextlib.contextmanager
def stopped(processes):
    """Stop the processes for the length of the block."""
    processes = list(processes)
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def is_justified(error):
    """Return whether the numbers in the error show that the limit had no room."""
    facts = error["limit"]
    if facts["needed"] is None:
        return error["code"] == "price_unknown"
    used, held, needed, ceiling = (
        Decimal(facts[name]) for name in ("used", "held", "needed", "ceiling")
    )
    return used + held + needed > ceiling


async def run(server, address, directory, name, count, seed, progress=lambda _: None):
    """Run a scenario with so many faults; return its Report. The database must have its tables."""
    began = time.monotonic()
    report = Report(name)
    async with Chaos(server, address, directory, seed).running() as chaos:

        async def fail():
            async with asyncio.timeout(60):
                while len(chaos.answers) < FIRST_ANSWERS:
                    await asyncio.sleep(0.05)
            for _ in range(count):
                await SCENARIOS[name](chaos)
                report.faults += 1
                report.calls, report.answered = chaos.seen["calls"], len(chaos.answers)
                report.seconds = time.monotonic() - began
                progress(report)
                await asyncio.sleep(chaos.chance.uniform(0.2, 1))
            await asyncio.sleep(1)

        await chaos.load(fail())
        await chaos.resolve()
        report.problems = await chaos.check()
        report.calls, report.answered = chaos.seen["calls"], len(chaos.answers)
        report.refused, report.cut = len(chaos.refusals), chaos.seen["cut"]
        report.unavailable = chaos.seen["unavailable"]
        report.interrupted = await chaos._count(
            "SELECT count(*) FROM public.ledger_entries WHERE outcome = 'interrupted'"
            " AND kind = 'call'"
        )
        report.corrections = await chaos._count(
            "SELECT count(*) FROM public.ledger_entries WHERE kind = 'correction'"
        )
    report.seconds = time.monotonic() - began
    return report
