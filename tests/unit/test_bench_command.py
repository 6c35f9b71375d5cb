"""The command line of the bench, without a measurement."""

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
