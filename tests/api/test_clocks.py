"""Processes with wrong clocks: only the database's clock decides which period an entry belongs
to."""

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from support import OPERATOR_KEY, ORGANIZATIONS, make_settings, running

from service import api, ids, ledger
from service.background import clocks

HOUR_S = 3600


@pytest.fixture
def clock(monkeypatch):
    """Moves the clock that ids are made from; call it with the seconds that it is ahead."""

    def set_ahead(seconds):
        shifted = SimpleNamespace(time_ns=lambda: time.time_ns() + seconds * 10**9)
        monkeypatch.setattr(ids, "time", shifted)

    return set_ahead


async def called(caller, clock, ahead_s):
    """Make a call by a process whose clock is ahead; return the database's time after it."""
    clock(ahead_s)
    async with caller.chat() as response:
        assert response.status == 200
    return await caller.service.app[api.DATABASE].now()


async def count(caller, **period):
    """Return how many calls a report of a period has."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    status, report = await caller.service.operate("GET", path, params=period)
    assert status == 200, report
    return report["total"]["calls"]


async def exported(caller, **period):
    """Return the exported entries of a period."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger/export"
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    query = {"format": "jsonl", **period}
    async with caller.service.http.get(path, params=query, headers=headers) as response:
        assert response.status == 200
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_every_call_is_in_one_of_two_periods(caller, clock):
    """Each call is in exactly one of two adjacent periods, although processes' clocks are an hour
    or a month off."""
    skews = [0, HOUR_S, -HOUR_S, 600, -600, 40 * 24 * HOUR_S, -40 * 24 * HOUR_S, 0]
    ends = [await called(caller, clock, ahead_s) for ahead_s in skews]
    first = (ends[0] - timedelta(days=1)).isoformat()
    last = (ends[-1] + timedelta(days=1)).isoformat()

    for number, end in enumerate(ends, start=1):
        before, after = {"from": first, "to": end.isoformat()}, {"from": end.isoformat()}
        assert await count(caller, **before) == number
        assert await count(caller, **after, to=last) == len(skews) - number
        ids_before = {entry["id"] for entry in await exported(caller, **before)}
        ids_after = {entry["id"] for entry in await exported(caller, **after, to=last)}
        assert (len(ids_before), len(ids_after)) == (number, len(skews) - number)
        assert not ids_before & ids_after
    assert await count(caller) >= len(skews) - (ends[0].day != ends[-1].day)


async def test_entries_are_in_the_order_of_their_settlement(caller, clock):
    """Entries are in the order of their settlement, in the pages of the list and in the export."""
    for ahead_s in (0, HOUR_S, -HOUR_S, 0):
        await called(caller, clock, ahead_s)
    entries = await caller.entries()
    times = [entry["counted_at"] for entry in entries]
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger"
    paged, query = [], {"limit": "1"}
    while True:
        _, page = await caller.service.operate("GET", path, params=query)
        paged += page["entries"]
        if page["next"] is None:
            break
        query["after"] = page["next"]

    assert times == sorted(times, reverse=True)
    assert paged == entries
    period = {"from": times[-1], "to": "2100-01-01"}
    assert [entry["id"] for entry in await exported(caller, **period)] == [
        entry["id"] for entry in reversed(entries)
    ]


async def test_a_refund_works_with_a_wrong_clock(service, caller, clock):
    """A process whose clock is two days ahead records a refund."""
    await called(caller, clock, 0)
    (entry,) = await caller.entries()
    clock(48 * HOUR_S)
    database = service.app[api.DATABASE]

    assert await ledger.refund(database, ledger.credits.UUID(caller.organization_id), entry["id"])
    assert (await caller.entries())[0]["kind"] == "credit"


async def test_a_wrong_clock_is_logged(service, monkeypatch):
    """A wrong clock is logged with its deviation; a right one is not, however slow the response
    is."""
    database = service.app[api.DATABASE]
    assert abs(await clocks.measure_clock(database)) < 1
    for ahead_s in (HOUR_S, -HOUR_S):
        shifted = SimpleNamespace(time=lambda ahead_s=ahead_s: time.time() + ahead_s)
        monkeypatch.setattr(clocks, "time", shifted)
        assert abs(await clocks.measure_clock(database) - ahead_s) < 1


async def test_the_start_compares_the_clocks(database_address, upstream, monkeypatch):
    """A service that starts with a wrong clock logs it at once."""
    shifted = SimpleNamespace(time=lambda: time.time() + 90, monotonic=time.monotonic)
    monkeypatch.setattr(clocks, "time", shifted)
    with capture_logs() as lines:
        async with running(make_settings(database_address, upstream.url)) as service:
            while not (
                found := [line for line in lines if line["event"].startswith("clock differs")]
            ):
                await service.app[api.DATABASE].now()
    assert (found[0]["log_level"], round(found[0]["ahead_s"])) == ("warning", 90)
