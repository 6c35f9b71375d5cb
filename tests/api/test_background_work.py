"""Background work ends when the service does, whatever it is doing at that moment."""

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from service import api
from service.background import rehearsal, repeated, upkeep, upstream_keys
from service.background.repeated import every
from service.errors import Unavailable

pytestmark = pytest.mark.shares_service


def rehearsing(app):
    books = app[api.BOOKS]
    return rehearsal.keep_rehearsed(books, app[api.DATABASE]), books.condition.has_changed


def announcing(app):
    books = app[api.BOOKS]
    return upkeep.keep_alerts(books, app[api.DATABASE]), books.alerts_are_due


def reading_keys(app):
    venice = app[api.VENICE]
    task = upstream_keys.keep_upstream_keys(
        app[api.DATABASE], app[api.KEYRING], venice, app[api.VENICE_KEY]
    )
    return task, venice.keys.has_changed


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("start", [rehearsing, announcing, reading_keys])
async def test_work_that_is_woken_when_it_is_cancelled_ends(service, monkeypatch, start, steps):
    """The cancellation comes so many steps of the event loop after what the work waits for."""
    monkeypatch.setattr(upstream_keys, "CHECK_DELAY_S", 0)
    monkeypatch.setattr(upkeep, "ALERTS_PAUSE_S", 0)
    task, event = start(service.app)
    await asyncio.sleep(0.3)
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()

    done, _ = await asyncio.wait([task], timeout=2)

    task.cancel()
    assert done
    assert task.cancelled()


async def test_work_that_does_not_end_is_left(monkeypatch):
    """The others are waited for, and the log names it."""
    monkeypatch.setattr(repeated, "END_TIMEOUT_S", 0.1)
    monkeypatch.setattr(repeated, "log", structlog.get_logger())
    may_end = asyncio.Event()

    async def stubborn():
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    tasks = [
        asyncio.create_task(stubborn(), name="stubborn"),
        asyncio.create_task(asyncio.sleep(9)),
    ]
    await asyncio.sleep(0)
    with capture_logs() as lines:
        await repeated.end(tasks)

    assert [line["work"] for line in lines] == ["stubborn"]
    assert tasks[1].cancelled()
    may_end.set()
    await tasks[0]


class Failing:
    """Work that fails for the first times, each time with the next of these."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.started = asyncio.Event()

    async def __call__(self):
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not False:
                raise failure
            return False
        self.started.set()
        return True


async def test_work_that_fails_is_repeated_ever_later(monkeypatch):
    """A failure of a known kind is a warning, any other has its traceback; what could not finish
    is logged by itself."""
    monkeypatch.setattr(repeated, "MIN_RETRY_S", 0)
    monkeypatch.setattr(repeated, "MAX_RETRY_S", 0.03)
    monkeypatch.setattr(repeated, "log", structlog.get_logger())
    work = Failing(Unavailable("away"), ValueError("odd"), False, Unavailable("away"))
    with capture_logs() as lines:
        task = every(3600, work, "trying", retry_s=0.01)
        async with asyncio.timeout(5):
            await work.started.wait()
        task.cancel()

    assert [(line["work"], line["log_level"], line["retry_s"]) for line in lines] == [
        ("trying", "warning", 0.01),
        ("trying", "error", 0.02),
        ("trying", "warning", 0.03),
    ]


async def test_work_that_has_just_failed_is_not_woken(monkeypatch):
    """However often it is asked for: it would fail in a tight loop."""
    monkeypatch.setattr(repeated, "MIN_RETRY_S", 0.1)
    runs, wake = [], asyncio.Event()

    async def work():
        runs.append(1)
        wake.set()
        return False

    task = every(3600, work, "failing", wake=wake)
    await asyncio.sleep(0.25)
    task.cancel()

    assert 2 <= len(runs) <= 3
