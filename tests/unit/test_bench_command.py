"""The command line of the bench, without a measurement."""

import inspect

import pytest
from click.testing import CliRunner

from scripts.bench import __main__ as command


@pytest.mark.parametrize("extent", ["last", "aims"])
def test_without_results_there_is_nothing_to_show(extent, tmp_path, monkeypatch):
    """Who asks for the last results before the first run learns which command makes them."""
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.json")

    ran = CliRunner().invoke(command.main, [extent])

    assert ran.exit_code == 1
    assert "Run scripts/bench.sh quick" in ran.output


def test_every_side_is_complete():
    """Each side that the command line names has all that a bench asks of a side."""
    assert [name for name, side in command.ALL.items() if inspect.isabstract(side)] == []
