"""Processes whose clocks are wrong: the database's clock alone says what belongs to a period."""

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
    """The clock that ids are made by; call it with how many seconds it is ahead."""

    def set_ahead(seconds):
        shifted = SimpleNamespace(time_ns=lambda: time.time_ns() + seconds * 10**9)
        monkeypatch.setattr(ids, "time", shifted)

    return set_ahead


async def called(caller, clock, ahead_s):
    """A call by a process whose clock is ahead; the database's time after it."""
    clock(ahead_s)
    async with caller.chat() as response:
        assert response.status == 200
    return await caller.service.app[api.DATABASE].now()


async def count(caller, **period):
    """How many calls a report of a period has."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/usage"
    status, report = await caller.service.operate("GET", path, params=period)
    assert status == 200, report
    return report["total"]["calls"]


async def exported(caller, **period):
    """The entries of a period, as the export has them."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/ledger/export"
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    query = {"format": "jsonl", **period}
    async with caller.service.http.get(path, params=query, headers=headers) as response:
        assert response.status == 200
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def test_every_call_is_in_one_of_two_periods(caller, clock):
    """Of two periods that meet, whatever the clocks of the processes were: an hour, a month off."""
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
    """In the list, page by page, and in the export."""
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


async def test_a_refund_needs_no_right_clock(service, caller, clock):
    """What is given back is given back, by a process two days ahead, too."""
    await called(caller, clock, 0)
    (entry,) = await caller.entries()
    clock(48 * HOUR_S)
    database = service.app[api.DATABASE]

    assert await ledger.refund(database, ledger.credits.UUID(caller.organization_id), entry["id"])
    assert (await caller.entries())[0]["kind"] == "credit"


async def test_a_clock_that_differs_is_warned_of(service, monkeypatch):
    """By which way and how much it is off; a right one is not, however slow the answer."""
    database = service.app[api.DATABASE]
    assert abs(await clocks.measure_clock(database)) < 1
    for ahead_s in (HOUR_S, -HOUR_S):
        shifted = SimpleNamespace(time=lambda ahead_s=ahead_s: time.time() + ahead_s)
        monkeypatch.setattr(clocks, "time", shifted)
        assert abs(await clocks.measure_clock(database) - ahead_s) < 1


async def test_the_start_compares_the_clocks(database_address, upstream, monkeypatch):
    """A service that starts with a wrong clock says so at once."""
    shifted = SimpleNamespace(time=lambda: time.time() + 90, monotonic=time.monotonic)
    monkeypatch.setattr(clocks, "time", shifted)
    with capture_logs() as lines:
        async with running(make_settings(database_address, upstream.url)) as service:
            while not (
                found := [line for line in lines if line["event"].startswith("clock differs")]
            ):
                await service.app[api.DATABASE].now()
    assert (found[0]["log_level"], round(found[0]["ahead_s"])) == ("warning", 90)
