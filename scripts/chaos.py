"""Injects many faults under load and audits the books after each scenario. See tests/chaos.py."""

import asyncio
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import chaos  # noqa: E402
import click  # noqa: E402
import structlog  # noqa: E402
from postgres import durable_server  # noqa: E402

LONG_FORM = {
    "kill-service": 100,
    "kill-postgres": 12,
    "lose-connections": 10,
    "reset-connections": 40,
    "run-late": 30,
    "stall-postgres": 3,
    "freeze-service": 10,
    "full-disk": 10,
    "read-only": 8,
    "clock-skew": 12,
    "stalled-log": 8,
    "poisoned-prompt": 10,
    "zip-bombs": 8,
}
COLUMNS = (
    "faults",
    "calls",
    "answered",
    "refused",
    "unavailable",
    "cut",
    "interrupted",
    "corrections",
)


@click.command()
@click.option("--only", type=click.Choice(list(LONG_FORM)), multiple=True, help="Only this fault.")
@click.option("--faults", type=click.IntRange(1), help="Faults per scenario.")
@click.option("--seed", type=int, default=1, help="Seed of the random choices.")
def main(only: tuple[str, ...], faults: int | None, seed: int) -> None:
    """Kill, cut, stall and freeze the service and PostgreSQL under load, and audit the books after
    each scenario.

    The exit status is 1 if anything is wrong.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # The connections are cut on purpose, so their errors are not logged.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    reports = []
    for name, count in LONG_FORM.items():
        if not only or name in only:
            reports.append(asyncio.run(scenario(name, faults or count, seed)))
    show(reports, seed)
    sys.exit(any(report.problems for report in reports))


async def scenario(name: str, count: int, seed: int) -> chaos.Report:
    """Run a scenario on a server of its own that keeps everything it acknowledged."""

    def progress(report: chaos.Report) -> None:
        end = "\n" if report.faults == count or not sys.stderr.isatty() else ""
        click.echo(
            f"\r{name}: {report.faults}/{count} faults, {report.calls:,} calls,"
            f" {report.seconds:.0f} s  {end}",
            nl=False,
            err=True,
        )

    with (
        durable_server("chaos") as (server, address),
        tempfile.TemporaryDirectory() as directory,
    ):
        return await chaos.run(server, address, Path(directory), name, count, seed, progress)


def show(reports: list[chaos.Report], seed: int) -> None:
    """Print the table and every problem."""
    click.echo(f"seed {seed}")
    head = "".join(f" {name:>11}" for name in COLUMNS)
    click.echo(f"{'scenario':18}{head} {'seconds':>8}  books")
    for report in reports:
        row = "".join(f" {getattr(report, name):>11,}" for name in COLUMNS)
        verdict = f"{len(report.problems)} wrong" if report.problems else "right"
        click.echo(f"{report.name:18}{row} {report.seconds:>8.0f}  {verdict}")
    for report in reports:
        for problem in report.problems[:20]:
            click.echo(f"{report.name}: {problem}")


if __name__ == "__main__":
    main()
