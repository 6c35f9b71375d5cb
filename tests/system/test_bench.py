"""The bench measures what it reports and rejects responses that are not the upstream's. No speed is
asserted."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import psutil
import pytest

from scripts.bench import documents, loads, programs, report
from scripts.bench.pythons import Python
from scripts.bench.rialto import LedgerAlone, Replicas, Rialto, RialtoWithoutBooks
from scripts.bench.runs import Bench, Extent, Place
from scripts.bench.sides import Aiohttp, Direct, Lean
from scripts.bench.workloads import WORKLOADS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("gcc") is None or shutil.which("taskset") is None,
        reason="the bench is made with gcc and runs with taskset",
    ),
]
SHORTEST = Extent(rounds=1, seconds=0.3, warmup_s=0.1, starts=1, fresh_starts=0, soak_s=0, idle_s=0)


def changed(name, **changes):
    """Return a workload as it is measured, with the test's changes."""
    return dataclasses.replace(WORKLOADS[name], **changes)


def measured(sides, *workloads):
    """Return the results, and those of each run by workload and side."""
    results = Bench(sides, workloads, SHORTEST).run()
    return results, {(run["workload"], run["side"]): run for run in results["runs"]}


def test_results_are_complete(tmp_path):
    """The results, the document and its charts have every figure of every workload and side."""
    sides = {"direct", "rialto", "aiohttp"}

    results, runs = measured([Direct, Rialto, Aiohttp], WORKLOADS["plain8"], WORKLOADS["stream64"])

    assert (results["void"], results["skipped"]) == ([], {})
    assert set(results["sides"]) == sides
    assert set(runs) == {(name, side) for name in ("plain8", "stream64") for side in sides}
    for run in runs.values():
        assert run["requests"] > 0
        assert 0 < run["first_byte_p50_ms"] <= run["latency_p50_ms"] <= run["latency_max_ms"]
        assert run["markers"] == run["completed"] * (200 if run["workload"] == "stream64" else 1)
        assert (run["postgres_cpu_us"] is not None) == (run["side"] == "rialto")
        assert (run["batch_size"] is not None) == (run["side"] == "rialto")
    for part in ("memory_bytes", "start_s"):
        assert set(results[part]) == {"rialto", "aiohttp"}

    (tmp_path / "docs").mkdir()
    for name in ("benchmarks.md", "benchmarks-results.md"):
        shutil.copy(programs.ROOT / "docs" / name, tmp_path / "docs")
    documents.write(results, tmp_path)

    written = (tmp_path / "docs" / "benchmarks-results.md").read_text()
    for name in ("plain8", "stream64", "memory", "start"):
        assert f"(benchmarks/{name}.svg)" in written
        ElementTree.parse(tmp_path / "docs" / "benchmarks" / f"{name}.svg")


def test_the_lean_pass_through_keeps_its_connections(tmp_path):
    """It answers plain and streamed calls over as many connections as calls are open."""
    with contextlib.ExitStack() as stack:
        side = Lean(Place(tmp_path, stack, Python(sys.executable)))
        stack.callback(side.stop)
        side.install()
        side.start()

        for name, changes in (("plain8", {}), ("stream64", {"connections": 8})):
            loads.run(changed(name, **changes), side, tmp_path, warmup_s=0, seconds=0.3)

        (pid,) = side.pids
        peers = [one.raddr for one in psutil.Process(pid).net_connections() if one.raddr]
        assert 1 <= sum(peer.port == side.place.upstream.port for peer in peers) <= 8


def test_processes_get_their_organizations():
    """Several processes get calls of all organizations or, if disjoint, of their own, in equal
    shares."""
    for name in ("shared2", "shared4", "disjoint2", "disjoint4"):
        workload = WORKLOADS[name]
        counted = Counter(map(workload.place_of, range(workload.connections)))
        pairs = 16 if workload.is_disjoint else 16 * workload.processes

        assert set(counted.values()) == {workload.connections // pairs}
        assert len(counted) == pairs
        assert {organization for _, organization in counted} == set(range(16))


def test_several_processes_are_measured():
    """Four services and four ledgers on one database admit and settle calls of 16 organizations."""
    workloads = [changed(name, connections=64, least_s=1.5) for name in ("shared4", "disjoint4")]

    results, runs = measured([Replicas, LedgerAlone], *workloads)

    assert (results["void"], results["skipped"]) == ([], {})
    sides = {"rialto-4", "ledger"}
    assert set(runs) == {(name, side) for name in ("shared4", "disjoint4") for side in sides}
    for run in runs.values():
        assert run["requests"] > 0
        assert run["batch_size"] >= 1
        assert min(run["gateway_cpu_us"], run["postgres_cpu_us"]) > 0
        # An entry alone has some 300 bytes; that of WAL is at least as much again.
        assert run["wal_bytes"] > run["ledger_bytes"] > 200


def test_a_burst_begins_together():
    """Of 20 requests a second in bursts of 8, two whole bursts are due within 0.6 s."""
    burst = changed("burst64", connections=8, rate=20, burst=8, least_s=0.5)
    burst = dataclasses.replace(burst, content="[chunks=20] [pace=200]")

    _, runs = measured([Direct], burst)

    assert runs["burst64", "direct"]["completed"] == 16


def test_wrong_responses_void_a_run():
    """A run has no figures if one response is an error or if the upstream received fewer calls."""
    error = changed("plain8", content="[status=503]")
    chunk_missing = changed("stream64", content="[chunks=199]")

    results, runs = measured([Direct], error, chunk_missing)

    assert runs == {}
    assert [void["workload"] for void in results["void"]] == ["plain8", "stream64"]
    assert "503" in results["void"][0]["reason"]
    assert "199 times, not 200" in results["void"][1]["reason"]
    plain, stream, *_ = report.tables(results)
    assert plain.rows[0][:2] == stream.rows[0][:2] == ["direct", "void"]


def test_a_load_that_does_not_end_voids_its_run(monkeypatch):
    """It is killed, and the other runs of the bench go on."""
    monkeypatch.setattr(loads, "LOAD_TIMEOUT_S", -SHORTEST.seconds)

    results, runs = measured([Direct], WORKLOADS["plain8"])

    assert runs == {}
    (void,) = results["void"]
    assert void["reason"] == "the load did not end within 0.1 s"


def test_an_open_loop_includes_the_wait():
    """A latency starts when the request was due, and unsent requests are reported: 100 requests a
    second are due while one connection takes 0.1 s for each."""
    late = changed(
        "paced64", content="[chunks=200] [pace=2000]", connections=1, rate=100, least_s=0.5
    )

    _, runs = measured([Direct], late)

    run = runs["paced64", "direct"]
    assert run["never_sent"] > 0
    assert run["latency_max_ms"] > 200


def test_concurrent_builds_of_a_program(tmp_path, monkeypatch):
    """Each of several concurrent builds of a program gets one that runs."""
    monkeypatch.setattr(programs, "CACHE", tmp_path)

    def make_and_run(_):
        # The program ends at once because its lists are missing.
        return subprocess.run([programs.compiled("upstream")], check=False).returncode

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(make_and_run, range(8)))) == 1


def test_a_program_is_compiled_again_when_its_text_differs(tmp_path, monkeypatch):
    """Each text has a program of its own, even if it is older than the program of another."""
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setattr(programs, "SOURCES", tmp_path)
    source = tmp_path / "ends.c"
    statuses = []

    for status in (1, 2, 1):
        source.write_text(f"int main(void) {{ return {status}; }}\n")
        os.utime(source, (0, 0))
        statuses.append(subprocess.run([programs.compiled("ends")], check=False).returncode)

    assert statuses == [1, 2, 1]


def test_rialto_without_its_books_answers():
    """The side that leaves the books out starts and answers every call."""
    results, runs = measured([RialtoWithoutBooks], WORKLOADS["plain8"])

    assert (results["void"], results["skipped"]) == ([], {})
    assert runs["plain8", "rialto-no-books"]["completed"] > 0
