"""Background work ends when the service does, whatever it is doing at that moment."""

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from service import api
from service import app as application
from service.background import jobs

pytestmark = pytest.mark.shares_service


def rehearsing(app):
    books = app[api.BOOKS]
    return jobs.keep_rehearsed(books, app[api.DATABASE]), books.condition.has_changed


def announcing(app):
    books = app[api.BOOKS]
    return jobs.keep_alerts(books, app[api.DATABASE]), books.alerts_are_due


def reading_keys(app):
    venice = app[api.VENICE]
    work = jobs.keep_upstream_keys(app[api.DATABASE], app[api.KEYRING], venice, app[api.VENICE_KEY])
    return work, venice.keys.has_changed


@pytest.mark.parametrize("steps", range(6))
@pytest.mark.parametrize("start", [rehearsing, announcing, reading_keys])
async def test_work_that_is_woken_when_it_is_cancelled_ends(service, monkeypatch, start, steps):
    """The cancellation comes so many steps of the event loop after what the work waits for."""
    monkeypatch.setattr(jobs, "UPSTREAM_KEYS_PAUSE_S", 0)
    monkeypatch.setattr(jobs, "ALERTS_PAUSE_S", 0)
    work, event = start(service.app)
    task = asyncio.create_task(work)
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
    monkeypatch.setattr(application, "WORK_ENDS_S", 0.1)
    monkeypatch.setattr(application, "log", structlog.get_logger())
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
        await application.end_work(tasks)

    assert [line["work"] for line in lines] == ["stubborn"]
    assert tasks[1].cancelled()
    may_end.set()
    await tasks[0]
