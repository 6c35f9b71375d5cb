"""A victim calls and streams beside every attack of ``attacks``, and must not become slower.

The quiet value is measured while the same attack runs against another process, so that the load on
the machine does not count. The result depends on time, so the test suite does not run this:
``scripts/victims.sh`` does, on a machine that is otherwise idle.
"""

import asyncio
import contextlib
import math
import os
import sys
import time

import aiohttp
import pytest
from attacks import ATTACKS
from process import ROOT, client_of, database_url, started

ATTACK_S = 3.0
ROUNDS = 3
MARGIN_S = 0.05
"""Tolerance beside twice the quiet value, for two processors that also do other work."""
EVENT_S = 0.02


def p99(times):
    """Return the 99th percentile."""
    return sorted(times)[math.ceil(len(times) * 0.99) - 1]


async def time_calls(victim, ends_at):
    """Return the duration of each of the victim's plain calls, made one after the other."""
    times = []
    while time.monotonic() < ends_at:
        began = time.monotonic()
        async with victim.chat() as response:
            assert response.status == 200, await response.text()
            await response.read()
        times.append(time.monotonic() - began)
    return times


async def time_events(victim, ends_at):
    """Return how long the victim waits for each event of a steady stream."""
    times = []
    while time.monotonic() < ends_at:
        content = f"[tokens=50][delay={EVENT_S}]"
        last = time.monotonic()
        async with victim.chat(content, stream=True) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now = time.monotonic()
                    times.append(now - last)
                    last = now
    return times


async def measure_victim(victim, seconds):
    """Return the 99th percentiles of the victim's calls and of the pauses in its stream."""
    ends_at = time.monotonic() + seconds
    calls, pauses = await asyncio.gather(time_calls(victim, ends_at), time_events(victim, ends_at))
    return p99(calls), p99(pauses)


@contextlib.asynccontextmanager
async def attack(name, port, key):
    """Run the attack in a separate process with a lower priority than everything else."""
    process = await asyncio.create_subprocess_exec(
        "nice",
        "-n",
        "19",
        sys.executable,
        str(ROOT / "tests" / "attacks.py"),
        name,
        str(port),
        key,
        str(ATTACK_S + 2),
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        await process.stdout.readline()
        # Wait until the bodies are made and the first are being sent.
        await asyncio.sleep(1)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


VENICE = """
import socket, sys
from aiohttp import web
from service.sandbox import create_sandbox
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen(128)
print(sock.getsockname()[1], flush=True)
web.run_app(create_sandbox(["sandbox"]), sock=sock, print=None, handler_cancellation=True)
"""


@pytest.fixture
async def venice():
    """The URL of a sandbox in a separate process, so that its requests do not slow the
    measurement."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        VENICE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
    port = int(await process.stdout.readline())
    yield f"http://127.0.0.1:{port}"
    process.kill()
    await process.wait()


async def poison(venice):
    """Let the edge before Venice refuse the attacker's requests."""
    fault = {"kind": "edge_page", "path": "/responses"}
    async with (
        aiohttp.ClientSession() as http,
        http.put(f"{venice}/sandbox/faults", json=fault) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_victim_feels_nothing(tmp_path, database_address, venice, name):
    """The victim's p99 is at most twice the quiet value plus 50 ms in the best of three rounds."""
    if name == "poisoned_prompts":
        await poison(venice)
    variables = {
        "DATABASE_URL": database_url(database_address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{venice}/api/v1",
    }
    async with (
        started(tmp_path, **variables) as process,
        started(tmp_path, **variables) as decoy,
        client_of(process) as service,
    ):
        port, other_port = await process.listening(), await decoy.listening()
        victim = await service.new_caller("victim")
        attacker = await service.new_caller("attacker")
        await measure_victim(victim, 0.5)
        results = []
        for _ in range(ROUNDS):
            async with attack(name, other_port, attacker.key):
                quiet = await measure_victim(victim, ATTACK_S)
            async with attack(name, port, attacker.key):
                attacked = await measure_victim(victim, ATTACK_S)
            results.append((quiet, attacked))
            if all(b <= 2 * a + MARGIN_S for a, b in zip(quiet, attacked, strict=True)):
                break
        else:
            pytest.fail(f"calls and pauses, quiet and attacked, in seconds: {results}")
        assert process.is_running
