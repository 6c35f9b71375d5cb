"""Sends many calls through a service with failing upstream keys, then the same load through one
with a good key. See tests/drill.py."""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import click  # noqa: E402
import drill  # noqa: E402
import structlog  # noqa: E402
from postgres import durable_server  # noqa: E402


@click.command()
@click.option("--calls", type=click.IntRange(100), default=10_000, help="Calls per load.")
def main(calls: int) -> None:
    """Send calls while one upstream key is invalid, one is spent and one is overloaded half of the
    time: no call may be lost, and none charged twice.

    The exit status is 1 if anything is wrong.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    reports = []
    for failing in (True, False):
        with durable_server("drill") as (_, address), tempfile.TemporaryDirectory() as directory:
            report = asyncio.run(drill.run(address, Path(directory), calls, failing=failing))
        reports.append(("three failing" if failing else "one good", report))
    click.echo(
        "| upstream keys | calls | attempts | lost | charged twice | books | calls/s | p50 ms"
        " | p99 ms |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for name, report in reports:
        verdict = f"{len(report.problems)} wrong" if report.problems else "proven"
        click.echo(
            f"| {name} | {report.calls:,} | {report.attempts:,} | {report.lost}"
            f" | {report.charged_twice} | {verdict} | {report.calls_a_second:,.0f}"
            f" | {report.p50_ms:,.0f} | {report.p99_ms:,.0f} |"
        )
    for name, report in reports:
        for problem in report.problems[:20]:
            click.echo(f"{name}: {problem}")
    sys.exit(any(report.problems for _, report in reports))


if __name__ == "__main__":
    main()
