"""What a run found is put into the documents and compared with the aims, so nobody computes by
hand."""

import shutil
from pathlib import Path

import pytest

from scripts.bench import aims, documents
from scripts.bench.programs import BenchError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/benchmarks-results.md", "docs/scaling.md")
SIDES = ("rialto", "aiohttp", "litellm", "ledger")


def copy_documents(root):
    """Copy the documents that have places for results."""
    (root / "docs").mkdir()
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, root / name)


def run_of(workload, side, number=0, **figures):
    """Return one run with every figure, most of them 1."""
    keys = ("requests_per_s", "latency_p50_ms", "latency_p99_ms", "latency_p99_9_ms")
    keys += ("gateway_cpu_us", "postgres_cpu_us", "batch_size", "wal_bytes", "ledger_bytes")
    facts = {"workload": workload, "side": side, "round": number, "never_sent": 0}
    return {**facts, **dict.fromkeys(keys, 1), **figures}


def results_of(*runs, void=()):
    """Return the results of a bench with these runs."""
    about = {"version": "1", "title": "a side", "about": "a server", "keeps": "nothing"}
    return {
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "system": "Linux",
            "gateway_core": 1,
            "load_core": 0,
            "python": "3.11.2",
            "python_build": "a build",
            "event_loop": "uvloop",
            "aiohttp": "3",
            "postgres": "PostgreSQL 18.4",
            "measured_at": "2026-11-28T12:00+00:00",
            "load_average": 0.5,
        },
        "extent": {"rounds": 5, "seconds": 4, "warmup_s": 1},
        "sides": dict.fromkeys(SIDES, about),
        "skipped": {},
        "void": list(void),
        "runs": list(runs),
        "memory_bytes": {"rialto": {"idle": 64e6, "after load": 80e6, "after soak": 81e6}},
        "start_s": {"rialto": [0.5, 0.3, 0.4]},
        "fresh_start_s": [9.0],
    }


def row_of(results, title):
    """Return what the table of the aims has for one of them: found, spread, rounds and verdict."""
    (row,) = (row for row in aims.rows(results) if row[0].startswith(title))
    return row[4:]


def test_an_aim_is_the_median_over_rounds():
    """Each round gives one ratio of neighbouring runs, so a slow round of both changes nothing."""
    rounds = zip((100, 300, 120), (100, 200, 100), strict=True)
    results = results_of(
        *(
            run_of("plain64", side, number, gateway_cpu_us=figure)
            for number, figures in enumerate(rounds)
            for side, figure in zip(("rialto", "aiohttp"), figures, strict=True)
        )
    )

    assert row_of(results, "CPU a request") == ["1.20", "1.00 – 1.50", "3", "met"]


@pytest.mark.parametrize(
    ("rate", "found", "verdict"),
    [(79.9, "0.799", "missed"), (80, "0.800", "met"), (100, "1.00", "stretch")],
)
def test_an_aim_is_met_or_missed(rate, found, verdict):
    """The verdict does not follow the rounded figure."""
    results = results_of(
        run_of("plain64", "rialto", requests_per_s=rate),
        run_of("plain64", "tensorzero", requests_per_s=100),
    )

    assert row_of(results, "requests/s ÷ TensorZero") == [found, f"{found} – {found}", "1", verdict]


def test_what_was_not_measured_has_no_verdict():
    """A side that was left out, a void one and one without that round give no figure."""
    missing = results_of(run_of("plain64", "rialto"), run_of("plain64", "aiohttp", 1))
    void = results_of(
        run_of("plain64", "rialto"),
        run_of("plain64", "aiohttp"),
        void=[{"workload": "plain64", "side": "aiohttp", "reason": "an error"}],
    )

    for results in (missing, void):
        assert row_of(results, "CPU a request") == ["–", "–", "0", "not measured"]
    assert row_of(missing, "requests/s ÷ Portkey") == ["–", "–", "0", "not measured"]


def test_aims_of_memory_starts_and_processes():
    """They are read from where the results have them."""
    results = results_of(
        run_of("shared4", "ledger", requests_per_s=500),
        run_of("disjoint4", "ledger", requests_per_s=1000),
    )

    assert row_of(results, "memory after")[0] == "81.0 MB"
    assert row_of(results, "memory, idle") == ["64.0 MB", "64.0 – 64.0", "1", "met"]
    assert row_of(results, "start on") == ["0.400 s", "0.300 – 0.500", "3", "met"]
    assert row_of(results, "from a fresh")[3] == "stretch"
    assert row_of(results, "ledger of 4")[0] == "0.500"


def test_every_place_in_the_documents_is_filled(tmp_path):
    """What stood between the marks is replaced, and the rest stays."""
    copy_documents(tmp_path)
    before = {name: (tmp_path / name).read_text() for name in DOCUMENTS}
    runs = [run_of("plain64", side, gateway_cpu_us=123) for side in SIDES]
    runs.append(run_of("single", "ledger", wal_bytes=1357))

    documents.write(results_of(*runs), tmp_path)

    after = {name: (tmp_path / name).read_text() for name in DOCUMENTS}
    found = {"README.md": "takes 123 µs", "docs/scaling.md": "1,357"}
    for name in DOCUMENTS:
        assert found.get(name, "123") in after[name]
        for mark in ("made by scripts/bench.sh --write -->", "<!-- end of"):
            parts, old = after[name].split(mark), before[name].split(mark)
            assert len(parts) == len(old)
            assert len(old) > 1
        assert after[name].splitlines()[0] == before[name].splitlines()[0]
        assert after[name].splitlines()[-1] == before[name].splitlines()[-1]
    # All numbers of the summary are the run's.
    summary = after["docs/benchmarks.md"].partition("<!-- end of summary -->")[0]
    assert summary.count("| a side | 123 µs | 1.00 | 1 | nothing |") == 3
    assert "412" not in summary


def test_what_is_no_gateway_or_is_void_is_not_in_the_summary(tmp_path):
    """The upstream alone is no gateway to compare, and a void side has no figures, though some of
    its rounds were not void."""
    copy_documents(tmp_path)
    sides = ("direct", "rialto", "aiohttp", "litellm")
    void = {"workload": "plain64", "side": "aiohttp", "reason": "an error"}
    results = results_of(*(run_of("plain64", side) for side in sides), void=[void])
    about = results["sides"]["rialto"]
    results["sides"] = {side: {**about, "title": f"the side {side}"} for side in sides}

    documents.write(results, tmp_path)

    page = (tmp_path / "docs/benchmarks.md").read_text()
    summary = page.partition("<!-- end of summary -->")[0]
    assert [side for side in sides if f"the side {side}" in summary] == ["rialto", "litellm"]
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_a_chart_leaves_out_what_is_zero(tmp_path):
    """A logarithmic axis has no place for zero, which a short run can measure."""
    copy_documents(tmp_path)
    runs = [run_of("plain64", "rialto", gateway_cpu_us=0), run_of("plain64", "aiohttp")]

    documents.write(results_of(*runs), tmp_path)

    chart = (tmp_path / "docs/benchmarks/plain64.svg").read_text()
    assert ">aiohttp<" in chart
    assert ">rialto<" not in chart


def test_results_without_a_side_leave_its_documents(tmp_path):
    """A run without LiteLLM or the ledger does not touch the README and the page on scaling."""
    copy_documents(tmp_path)

    documents.write(results_of(run_of("plain64", "rialto")), tmp_path)

    for name in ("README.md", "docs/scaling.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_the_documents_do_not_name_the_place_of_the_checkout(tmp_path):
    """Why a side was left out may be the end of its output, which names files."""
    copy_documents(tmp_path)
    results = results_of(run_of("plain64", "rialto"))
    results["skipped"]["peer"] = f'it ended: File "{ROOT}/service/app.py", line 3'

    documents.write(results, tmp_path)

    written = (tmp_path / "docs" / "benchmarks-results.md").read_text()
    assert 'it ended: File "service/app.py", line 3' in written
    assert str(ROOT) not in written


def test_a_document_without_a_place_is_an_error(tmp_path):
    """Results never go to a document that has no marks for them."""
    copy_documents(tmp_path)
    (tmp_path / "docs/benchmarks.md").write_text("nothing\n")

    with pytest.raises(BenchError, match="no place for aims"):
        documents.write(results_of(), tmp_path)
