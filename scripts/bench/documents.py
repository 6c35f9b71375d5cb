"""Puts the results into the documents, so that no number of a run is typed by hand."""

import statistics
import textwrap

from scripts.bench import charts, machine, report
from scripts.bench.programs import ROOT, BenchError
from scripts.bench.workloads import WORKLOADS

WIDTH = 108
MAIN = WORKLOADS["plain64"]
"""The workload of the summary."""
ACCOUNT_CALLS_PER_S = 50 * 500 / 60
"""What a usual account at Venice allows: 500 requests a minute of each of 50 models."""
DAY_S = 86_400
LEFT_OUT_OF_SUMMARY = ("direct",)


def write(results, root=ROOT):
    """Fill docs/benchmarks-results.md with its charts, the summary and the aims of
    docs/benchmarks.md, and what the results allow of docs/scaling.md and README.md.

    :raises BenchError: if a document has no place for them.
    """
    docs = root / "docs"
    _fill(docs / "benchmarks-results.md", "results", _results(results, docs / "benchmarks"))
    _fill(docs / "benchmarks.md", "aims", report.as_markdown(report.of_aims(results)))
    if medians := _medians(results, MAIN.name):
        _fill(docs / "benchmarks.md", "summary", _summary(results, medians))
    if {"rialto", "aiohttp", "litellm"} <= medians.keys():
        _fill(root / "README.md", "speed", _speed(results, medians))
    if rows := list(_ledger_rows(results)):
        _fill(docs / "scaling.md", "calls", _ledger(results, rows))


def _fill(path, name, text):
    begin = f"<!-- {name}: made by scripts/bench.sh --write -->"
    end = f"<!-- end of {name} -->"
    before, found_begin, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise BenchError(f"{path} has no place for {name}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _medians(results, workload):
    """Return the median of each figure of a workload, by side and key."""
    void = {one["side"] for one in results["void"] if one["workload"] == workload}
    runs = {}
    for run in results["runs"]:
        if run["workload"] == workload and run["side"] not in void:
            runs.setdefault(run["side"], []).append(run)
    return {side: _medians_of(its) for side, its in runs.items()}


def _medians_of(runs):
    known = {}
    for key in runs[0]:
        values = [run[key] for run in runs]
        if all(isinstance(value, int | float) for value in values):
            known[key] = statistics.median(values)
    return known


def _conditions(results):
    """Describe the run in a sentence."""
    known, extent = results["machine"], results["extent"]
    return (
        f"Python {known['python']} ({known['python_build']}), {known['cpu']}, measured"
        f" {known['measured_at'][:10]}: medians of {extent['rounds']} rounds of"
        f" {extent['seconds']:g} s."
    )


def _summary(results, medians):
    lines = ["| | CPU for each request | ÷ bare aiohttp | requests/s | what it keeps |"]
    lines.append("|---|---:|---:|---:|---|")
    bare = medians.get("aiohttp", {}).get("gateway_cpu_us")
    for side, its in sorted(medians.items(), key=lambda item: item[1]["gateway_cpu_us"]):
        if side in LEFT_OUT_OF_SUMMARY:
            continue
        about, cpu_us = results["sides"][side], its["gateway_cpu_us"]
        ratio = f"{cpu_us / bare:,.2f}" if bare else "–"
        cells = [about["title"], f"{cpu_us:,.0f} µs", ratio, f"{its['requests_per_s']:,.0f}"]
        if side == "rialto":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} | {about['keeps']} |")
    opening = f"{MAIN.title}, one core for each gateway, all in one run. {_conditions(results)}"
    chart = f"![{MAIN.title}: CPU for each request](benchmarks/{MAIN.name}.svg)"
    return "\n\n".join((textwrap.fill(opening, WIDTH), "\n".join(lines), chart))


def _speed(results, medians):
    mine, bare, litellm = (medians[side] for side in ("rialto", "aiohttp", "litellm"))
    known = results["machine"]
    where = f"Python {known['python']}, {known['cpu']}"
    text = (
        f"With its books on, Rialto takes {mine['gateway_cpu_us']:,.0f} µs of CPU for a plain"
        f" answer and serves {mine['requests_per_s']:,.0f} a second on one core ({where})."
        " A bare aiohttp pass-through that keeps nothing takes"
        f" {bare['gateway_cpu_us']:,.0f} µs, and LiteLLM's proxy without its database"
        f" {litellm['gateway_cpu_us']:,.0f} µs. [docs/benchmarks.md](docs/benchmarks.md) has the"
        " whole run and how to repeat it."
    )
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _ledger_rows(results):
    """Yield what the ledger alone made, for each number of processes."""
    for workload in WORKLOADS.values():
        its = _medians(results, workload.name).get("ledger") if workload.processes else None
        if its is not None:
            yield (
                workload.title,
                f"{its['requests_per_s']:,.0f}",
                f"{its['batch_size']:,.1f}",
                f"{its['postgres_cpu_us']:,.0f} µs",
                f"{its['gateway_cpu_us']:,.0f} µs",
                f"{its['wal_bytes']:,.0f}",
                f"{its['ledger_bytes']:,.0f}",
            )


def _ledger(results, rows):
    lines = [
        "| processes | calls/s | calls/batch | PostgreSQL's CPU a call | the ledger's CPU a call"
        " | WAL bytes a call | ledger bytes a call |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    known = results["machine"]
    opening = f"{known['postgres']} on one core. {_conditions(results)}"
    return "\n\n".join((textwrap.fill(opening, WIDTH), "\n".join(lines), *_conclusions(results)))


def _conclusions(results):
    """Yield what the ledger's figures come to, in accounts at Venice and in bytes."""
    medians = {name: _medians(results, name).get("ledger") for name in WORKLOADS}
    if best := medians["disjoint4"]:
        calls_per_s = best["requests_per_s"]
        yield textwrap.fill(
            f"So one core of PostgreSQL takes {calls_per_s:,.0f} calls a second from four processes"
            f" with organizations of their own, which is {calls_per_s / ACCOUNT_CALLS_PER_S:,.1f}"
            " accounts at Venice with all models in use.",
            WIDTH,
        )
    if single := medians["single"]:
        wal_mb_per_s = single["wal_bytes"] * ACCOUNT_CALLS_PER_S / 1e6
        ledger_gb_a_day = single["ledger_bytes"] * ACCOUNT_CALLS_PER_S * DAY_S / 1e9
        yield textwrap.fill(
            f"One such account makes {wal_mb_per_s:,.1f} MB of WAL a second, which is"
            f" {wal_mb_per_s * DAY_S / 1e3:,.0f} GB a day for a standby or an archive, and"
            f" {ledger_gb_a_day:,.0f} GB of ledger a day.",
            WIDTH,
        )


def _results(results, charts_directory):
    """Return all tables, with the charts beside them."""
    charts_directory.mkdir(exist_ok=True)
    for old in charts_directory.glob("*.svg"):
        old.unlink()
    parts = [
        "\n".join(f"- {line}" for line in machine.described(results["machine"])),
        _sides(results),
    ]
    for table in report.tables(results):
        parts.append(f"### {table.title}")
        shown = {side: value for side, value in table.values.items() if value[1] > 0}
        if shown:
            path = charts_directory / f"{table.name}.svg"
            path.write_text(charts.svg(table.title, table.main, shown))
            parts.append(f"![{table.title}: {table.main}]({charts_directory.name}/{path.name})")
        parts.append(report.as_markdown(table))
    parts += [
        f"Void: {one['workload']} of {one['side']}: {_quoted(one['reason'])}"
        for one in results["void"]
    ]
    return "\n\n".join(parts)


def _quoted(reason):
    """Escape a program's output for a table, without the place of this checkout."""
    reason = reason.replace(f"{ROOT}/", "")
    return f"`{reason.replace('|', '/').replace('`', chr(39))[:160]}`"


def _sides(results):
    extent = results["extent"]
    lines = ["| side | version | what it is |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {side['version']} | {side['about']} |"
        for name, side in results["sides"].items()
    ]
    lines += [f"| {name} | left out | {_quoted(why)} |" for name, why in results["skipped"].items()]
    runs = f"{extent['rounds']} runs of {extent['seconds']:g} s each after {extent['warmup_s']:g} s"
    return "\n".join(lines) + f"\n\nMedians of {runs} of warm-up; the sides take turns."
