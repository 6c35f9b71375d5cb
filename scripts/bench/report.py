"""Tables of the results, for the terminal and for the documents."""

import dataclasses
import statistics
from collections.abc import Callable

from scripts.bench import aims
from scripts.bench.workloads import WORKLOADS

RATE = "{:,.0f}".format


@dataclasses.dataclass(frozen=True)
class Figure:
    """A column, with the runs' median as text."""

    title: str
    key: str
    shown: Callable[[float], str] = "{:,.2f}".format


COMMON = (
    Figure("p50 ms", "latency_p50_ms"),
    Figure("p99 ms", "latency_p99_ms"),
    Figure("p99.9 ms", "latency_p99_9_ms"),
)
REQUESTS = Figure("requests/s", "requests_per_s", RATE)
CHUNKS = Figure("chunks/s", "markers_per_s", RATE)
FIRST = (
    Figure("first byte p50 ms", "first_byte_p50_ms"),
    Figure("first byte p99 ms", "first_byte_p99_ms"),
)

BYTES = (
    Figure("WAL bytes/request", "wal_bytes", RATE),
    Figure("ledger bytes/request", "ledger_bytes", RATE),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """The results of one workload: ``rows`` of text by side, and the ``values`` of its chart
    (median, minimum and maximum; none without a chart)."""

    name: str
    title: str
    main: str
    head: list
    rows: list
    values: dict


def tables(results):
    """Return all tables for which there are results."""
    for workload in WORKLOADS.values():
        runs = [run for run in results["runs"] if run["workload"] == workload.name]
        void = [one["side"] for one in results["void"] if one["workload"] == workload.name]
        if runs or void:
            yield _of_workload(workload, results["sides"], runs, void)
    if results["memory_bytes"]:
        yield _of_memory(results["memory_bytes"])
    if results["start_s"]:
        yield _of_starts(results["start_s"])


def of_aims(results):
    """Return the table of what was aimed at and what was found."""
    return Table("aims", "Aims", "", list(aims.HEAD), aims.rows(results), {})


def _figures(workload):
    unit = "chunk" if workload.per == "markers" else "request"
    cpu = (
        Figure(f"CPU µs/{unit}", "gateway_cpu_us", "{:,.1f}".format),
        Figure(f"PostgreSQL µs/{unit}", "postgres_cpu_us", "{:,.1f}".format),
        Figure("calls/batch", "batch_size", "{:,.1f}".format),
    )
    if workload.processes:
        return (*cpu, *BYTES, REQUESTS, *COMMON)
    if workload.is_stream:
        return (*cpu, CHUNKS, *FIRST, *COMMON[:2])
    return (*cpu, REQUESTS, *COMMON)


def _of_workload(workload, sides, runs, void):
    figures = _figures(workload)
    main = next(figure for figure in figures if figure.key == workload.main)
    values, rows = {}, []
    for side in sides:
        its = [] if side in void else [run for run in runs if run["side"] == side]
        if side in void:
            rows.append([side, "void", *[""] * len(figures)])
        if not its:
            continue
        values[side] = _range([run[main.key] for run in its])
        rows.append([side, *(_cell(figure, its) for figure in figures), _noise(main, its)])
    head = ["side", *(figure.title for figure in figures), f"± of {main.title}"]
    return Table(workload.name, workload.title, main.title, head, rows, values)


def _cell(figure, runs):
    known = [run.get(figure.key) for run in runs]
    if None in known:
        return "–"
    if figure is REQUESTS and any(run["never_sent"] for run in runs):
        return f"{figure.shown(statistics.median(known))} (does not keep up)"
    return figure.shown(statistics.median(known))


def _noise(figure, runs):
    """Return half of the range, relative to the median."""
    middle, least, most = _range([run[figure.key] for run in runs])
    return f"{(most - least) / 2 / middle:.0%}" if middle and len(runs) > 1 else "–"


def _range(known):
    return statistics.median(known), min(known), max(known)


def _of_memory(known):
    whens = list(dict.fromkeys(when for side in known.values() for when in side))
    rows = [
        [side, *(f"{its[when] / 1e6:,.0f}" if when in its else "–" for when in whens)]
        for side, its in known.items()
    ]
    values = {
        side: (its["after load"] / 1e6, min(its.values()) / 1e6, max(its.values()) / 1e6)
        for side, its in known.items()
    }
    head = ["side", *(f"MB {when}" for when in whens)]
    return Table("memory", "Resident memory", "MB after load", head, rows, values)


def _of_starts(known):
    rows, values = [], {}
    for side, seconds in known.items():
        if seconds:
            values[side] = _range(seconds)
            rows.append([side, *(f"{figure:.2f}" for figure in values[side])])
    title = "From start to the first call passed on, on an existing database"
    return Table("start", title, "s", ["side", "s", "least", "most"], rows, values)


def as_text(table):
    """Format the table for a terminal with aligned columns."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(table.head))]
    shown = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([table.title, *shown])


def as_markdown(table):
    """Format the table for a document."""
    lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
