"""Measures the service against the sandbox directly.

The sandbox and the service are processes of their own; the load comes from this one. Each figure is
the median of several rounds, and rounds of both sides take turns, so that noise hits both alike.
"""

import asyncio
import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import click
import psutil

ROOT = Path(__file__).resolve().parent.parent
BODY = {"model": "llama-3.3-70b", "messages": [{"role": "user", "content": "[tokens=20] Hello"}]}


class Side:
    """One of the two that are compared."""

    def __init__(self, name, url, key):
        self.name, self.url = name, url
        self.headers = {"Authorization": f"Bearer {key}"}

    def failed(self, why):
        """A call was not answered as it should be."""
        sys.exit(f"{self.name} answered {why}: the run is void")


async def measure(side, connections, requests):
    """Calls a second, and the latencies in milliseconds, of a closed loop over the requests, which
    are arguments of aiohttp's."""
    latencies, waiting = [], iter(requests)
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, headers=side.headers) as http:

        async def worker():
            for request in waiting:
                started = time.perf_counter()
                try:
                    async with http.post(side.url, **request) as response:
                        await response.read()
                        if response.status != 200:
                            side.failed(response.status)
                except aiohttp.ClientError as error:
                    side.failed(error)
                latencies.append((time.perf_counter() - started) * 1000)

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(connections)))
        return len(latencies) / (time.perf_counter() - started), latencies


async def compare(sides, connections, calls, rounds, stream):
    """A line of the table: medians of the rounds."""
    rates = {side.name: [] for side in sides}
    middles = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            requests = itertools.repeat({"json": {**BODY, "stream": stream}}, calls)
            rate, latencies = await measure(side, connections, requests)
            rates[side.name].append(rate)
            middles[side.name].append(statistics.median(latencies))
    direct, through = (statistics.median(rates[side.name]) for side in sides)
    added_ms = statistics.median(
        ours - theirs for theirs, ours in zip(*(middles[side.name] for side in sides), strict=True)
    )
    kind = "stream" if stream else "plain"
    click.echo(
        f"| {kind} | {connections} | {direct:,.0f} | {through:,.0f} | {through / direct:.2f}"
        f" | {added_ms:.2f} |"
    )


@contextlib.contextmanager
def process(arguments, environment, said):
    """A process, once it has said ``said``: the first group, its pid, and the seconds until then.

    It writes to a file, since nobody would read a pipe while the load runs.
    """
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output.fileno(),
            stderr=subprocess.STDOUT,
        )
        try:
            while not (found := re.search(said, Path(output.name).read_text())):
                if running.poll() is not None:
                    sys.exit(Path(output.name).read_text())
                time.sleep(0.01)
            yield found[1], running.pid, time.perf_counter() - started
        finally:
            running.terminate()
            running.wait(timeout=30)


def memory_mb(pid):
    """Resident memory of a process."""
    return psutil.Process(pid).memory_info().rss / 1e6


@click.command()
@click.option("--calls", default=2000, help="Calls a round.")
@click.option("--rounds", default=3, help="Rounds a figure; the median is shown.")
def main(calls, rounds):
    """Requests a second and added milliseconds, plain and streamed, at 1, 8 and 64 connections."""
    with tempfile.TemporaryDirectory() as data:
        environment = {
            "DATA_DIRECTORY": data,
            "PORT": "0",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info",
            "VENICE_API_KEY": "sandbox",
        }
        sandbox = process(["service.sandbox", "--port", "0"], {}, r"Venice at (\S+)")
        with sandbox as (sandbox_url, _, _):
            environment["VENICE_BASE_URL"] = sandbox_url
            for start in ("first start, with a database to make", "start on an existing database"):
                with process(["service"], environment, r"Rialto listens on (\S+)") as service:
                    url, pid, seconds = service
                    click.echo(f"{start}: {seconds:.2f} s, the embedded server's own included")
            with process(["service"], environment, r"Rialto listens on (\S+)") as (url, pid, _):
                asyncio.run(bench(sandbox_url, url, pid, Path(data), calls, rounds))


async def bench(sandbox_url, url, pid, data, calls, rounds):
    """The table, and memory before and after."""
    key = (data / "demo_key").read_text()
    sides = [
        Side("sandbox", f"{sandbox_url}/chat/completions", "sandbox"),
        Side("service", f"{url}/v1/chat/completions", key),
    ]
    click.echo(f"memory idle: {memory_mb(pid):.0f} MB")
    click.echo("| kind | connections | direct/s | through/s | ratio | added ms (p50) |")
    click.echo("|---|---|---|---|---|---|")
    for stream in (False, True):
        for connections in (1, 8, 64):
            share = calls // 4 if connections == 1 else calls
            await compare(sides, connections, share, rounds, stream)
    click.echo(f"memory after the run: {memory_mb(pid):.0f} MB")


if __name__ == "__main__":
    main()
