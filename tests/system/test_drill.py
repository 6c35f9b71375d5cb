"""The short form of scripts/drill.sh."""

import drill
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("failing", [True, False])
async def test_the_drill(database_address, tmp_path, failing):
    """No call is lost, none is charged twice, the audit finds no faults, and all charges are on the
    one good key."""
    report = await drill.run(database_address, tmp_path, 300, failing=failing)

    assert report.problems == []
    assert (report.calls, report.lost, report.charged_twice) == (300, 0, 0)
    assert report.charged_by == {drill.OVERLOADED if failing else drill.GOOD}
    assert (report.attempts > 400) is failing
