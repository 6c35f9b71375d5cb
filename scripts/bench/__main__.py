"""The command line of scripts/bench.sh."""

import dataclasses
import functools
import json
import logging
import signal
import sys
from pathlib import Path

import click
import structlog

from scripts.bench import documents, machine, report
from scripts.bench.peers import PEERS
from scripts.bench.programs import CACHE, BenchError
from scripts.bench.rialto import (
    LedgerAlone,
    Replicas,
    Rialto,
    RialtoTwice,
    RialtoWithoutBooks,
)
from scripts.bench.runs import Bench, Extent
from scripts.bench.sides import Aiohttp, Direct, Lean
from scripts.bench.workloads import WORKLOADS

RESULTS = CACHE / "results.json"
EXTENTS = {
    "quick": Extent(rounds=3, seconds=2, warmup_s=0.5, starts=3, fresh_starts=0, soak_s=0),
    "full": Extent(rounds=5, seconds=4, warmup_s=1, starts=5, fresh_starts=5, soak_s=600),
}
OWN = (Direct, Rialto, Aiohttp, Lean, RialtoTwice, RialtoWithoutBooks, Replicas, LedgerAlone)
ALL = {**{side.name: side for side in OWN}, **PEERS}
QUICK = ("direct", "rialto", "aiohttp")


def _names(known):
    """Return a click callback that parses a list such as ``a,b``, in the order of the known
    names."""

    def read(_, __, text):
        wanted = text.split(",") if text else list(known)
        for name in wanted:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in wanted]

    return read


@click.command()
@click.argument("extent", type=click.Choice([*EXTENTS, "last", "aims"]), default="quick")
@click.option("--only", metavar="SIDE,...", help="These sides: " + ", ".join(ALL) + ".")
@click.option(
    "--workload",
    "chosen",
    metavar="NAME,...",
    callback=_names(WORKLOADS),
    help="These workloads: " + ", ".join(WORKLOADS) + ".",
)
@click.option(
    "--tree",
    "trees",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The sides of Rialto also from another checkout; repeat for more.",
)
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Interpreter of the sides in Python; without it that of the bench.",
)
@click.option("--rounds", type=click.IntRange(1), help="Runs of each; the median is shown.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long a run measures.")
@click.option("--write", "is_write", is_flag=True, help="Write the results into the documents.")
def main(*, extent, only, chosen, trees, python, rounds, seconds, is_write):
    """Measure Rialto beside others. `quick` takes minutes and has Rialto, a bare pass-through and
    the upstream itself; `full` takes more than an hour and has every side. `last` shows the last
    results again without measuring, and `aims` only what they give for each aim.

    The exit status is 1 if any run was void.
    """
    try:
        if extent in EXTENTS:
            names = _names(ALL)(
                None, None, only or (",".join(QUICK) if extent == "quick" else None)
            )
            changes = {"rounds": rounds, "seconds": seconds}
            changes = {name: value for name, value in changes.items() if value}
            planned = dataclasses.replace(EXTENTS[extent], **changes)
            kinds = [ALL[name] for name in names]
            # Of a checkout there is the same as of this one, at least the service itself.
            own = [kind for kind in kinds if issubclass(kind, Rialto)] or [Rialto]
            kinds += [functools.partial(kind, tree=tree) for tree in trees for kind in own]
            results = _measured(kinds, [WORKLOADS[name] for name in chosen], planned, python)
            RESULTS.write_text(json.dumps(results, indent=1))
        else:
            results = _last_results()
        _show(results, only_aims=extent == "aims")
        if is_write:
            documents.write(results)
    except (BenchError, FileNotFoundError) as error:
        sys.exit(str(error))
    sys.exit(bool(results["void"]))


def _measured(kinds, chosen, planned, python):
    # Leaving the stack on this signal ends the programs that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return Bench(kinds, chosen, planned, python).run()


def _last_results():
    if not RESULTS.exists():
        raise BenchError(
            "There are no results to show yet. Run scripts/bench.sh quick or scripts/bench.sh full"
            " first."
        )
    return json.loads(RESULTS.read_text())


def _show(results, *, only_aims):
    click.echo("\n".join(machine.described(results["machine"])))
    for table in [report.of_aims(results)] if only_aims else report.tables(results):
        click.echo(f"\n{report.as_text(table)}")
    for one in results["void"]:
        click.echo(f"void: {one['workload']} of {one['side']}: {one['reason']}", err=True)


if __name__ == "__main__":
    main()
