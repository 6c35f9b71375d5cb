"""The short form of scripts/chaos.sh: each fault a few times under load."""

import shutil

import chaos
import pytest
from postgres import durable_server

pytestmark = pytest.mark.slow


def needs(program):
    """Return a mark that skips a test without the program."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kill-service", 3),
        ("kill-postgres", 2),
        ("lose-connections", 2),
        ("reset-connections", 4),
        ("run-late", 2),
        ("freeze-service", 1),
        pytest.param("full-disk", 1, marks=needs("prlimit")),
        ("read-only", 1),
        pytest.param("clock-skew", 1, marks=needs("gcc")),
    ],
)
async def test_the_books_survive(tmp_path, name, count):
    """After each fault no entry is missing or doubled, nothing stays held, and no limit was
    exceeded."""
    with durable_server("chaos") as (server, address):
        report = await chaos.run(server, address, tmp_path, name, count, seed=count)

    assert report.problems == []
    assert report.faults == count
    assert report.answered > 20
    assert report.refused > 0
