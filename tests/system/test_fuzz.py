"""The short form of scripts/fuzz.sh: odd calls of every operation, and their answers."""

import asyncio

import fuzz
import pytest

pytestmark = pytest.mark.slow

MAX_NEVER_SUCCEEDED = 13
"""What needs a job's id, or what the sandbox does not play."""


async def test_no_answer_contradicts_the_description(service, caller):
    """Whatever is sent, there is no 500, and no answer that /openapi.json does not describe; and
    it is not said of refusals alone."""
    report = await asyncio.to_thread(fuzz.run, service.url, caller.key, number=1, examples=2)

    assert report.problems == {}
    assert len(report.never_succeeded) <= MAX_NEVER_SUCCEEDED, " ".join(report.never_succeeded)
    assert report.calls > 800
