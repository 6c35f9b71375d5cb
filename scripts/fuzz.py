"""Sends odd requests to every operation, then audits the books. See tests/fuzz.py."""

import asyncio
import dataclasses
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import click  # noqa: E402
import fuzz  # noqa: E402
import psycopg  # noqa: E402
import structlog  # noqa: E402
from postgres import running_server  # noqa: E402
from support import make_settings, running  # noqa: E402
from upstream import running_sandbox  # noqa: E402

from service.database import schema  # noqa: E402


@click.command()
@click.option("--seed", type=int, default=1, help="Seed of the random requests.")
@click.option("--examples", type=click.IntRange(1), default=50, help="Examples of each kind.")
@click.option("--only", default="", help="Only operations whose name contains this.")
def main(seed: int, examples: int, only: str) -> None:
    """Send described, undescribed and odd requests to every operation.

    The exit status is 1 if a response is a 500 or is not described, or if the audit finds a fault.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    report = asyncio.run(fuzzed(seed, examples, only))
    for name, counts in report.statuses.items():
        listed = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
        click.echo(f"{name:60} {listed}")
    for name, problem in report.problems.items():
        click.echo(f"\n{name}\n{problem}")
    click.echo(f"seed {seed}: {report.calls:,} calls, {len(report.problems)} problems")
    sys.exit(bool(report.problems))


async def fuzzed(seed: int, examples: int, only: str) -> fuzz.Report:
    """Run the requests on a service and a database of their own; return the report."""
    with running_server() as server:
        address = dataclasses.replace(server.address, database="fuzz")
        with psycopg.connect(
            host=address.host, port=address.port, user=address.user, autocommit=True
        ) as connection:
            connection.execute("CREATE DATABASE fuzz")
        schema.apply(address)
        async with (
            running_sandbox() as upstream,
            running(make_settings(address, upstream.url)) as service,
        ):
            caller = await service.new_caller()
            report = await asyncio.to_thread(
                fuzz.run, service.url, caller.key, seed, examples, lambda name: only in name
            )
            await service.audit()
            return report


if __name__ == "__main__":
    main()
