"""The command line of scripts/bench.sh."""

import dataclasses
import functools
import json
import logging
import sys
from pathlib import Path

import click
import structlog

from scripts.bench import machine, report
from scripts.bench.peers import PEERS
from scripts.bench.programs import CACHE, BenchError
from scripts.bench.runs import Bench, Extent
from scripts.bench.sides import OWN, Rialto
from scripts.bench.workloads import WORKLOADS

RESULTS = CACHE / "results.json"
EXTENTS = {
    "quick": Extent(rounds=3, seconds=2, warmup_s=0.5, starts=3, soak_s=0),
    "full": Extent(rounds=3, seconds=8, warmup_s=2, starts=5, soak_s=600),
}
ALL = {**OWN, **PEERS}


def _names(known, default=None):
    """Reads a list like ``a,b`` of known names; in the order in which they are known."""

    def read(_, __, text):
        wanted = text.split(",") if text else default or list(known)
        for name in wanted:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in wanted]

    return read


@click.command()
@click.argument("extent", type=click.Choice(list(EXTENTS)), default="quick")
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
    help="Rialto of another checkout as one more side; repeat for more.",
)
@click.option("--rounds", type=click.IntRange(1), help="Runs of each; the median is shown.")
@click.option("--seconds", type=click.FloatRange(0.1), help="How long a run measures.")
def main(extent, only, chosen, trees, rounds, seconds):
    """Measure Rialto beside others. `quick` takes minutes and has Rialto, a bare pass-through and
    the upstream itself; `full` takes an hour and has every side."""
    names = _names(ALL)(None, None, only or (",".join(OWN) if extent == "quick" else None))
    planned = EXTENTS[extent]
    changes = {"rounds": rounds, "seconds": seconds}
    planned = Extent(**{**dataclasses.asdict(planned), **{k: v for k, v in changes.items() if v}})
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    kinds = [ALL[name] for name in names]
    kinds += [functools.partial(Rialto, tree=tree) for tree in trees]
    try:
        results = Bench(kinds, [WORKLOADS[name] for name in chosen], planned).run()
    except BenchError as error:
        sys.exit(str(error))
    RESULTS.write_text(json.dumps(results, indent=1))
    click.echo("\n".join(machine.described(results["machine"])))
    for table in report.tables(results):
        click.echo(f"\n{report.as_text(table)}")
    for one in results["void"]:
        click.echo(f"void: {one['workload']} of {one['side']}: {one['reason']}", err=True)
    sys.exit(bool(results["void"]))


if __name__ == "__main__":
    main()
