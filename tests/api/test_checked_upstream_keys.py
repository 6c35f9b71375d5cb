"""Upstream keys are checked at no cost before a caller meets a problem, and events report the
results."""

import asyncio
import contextlib
import json
import time
import uuid
from types import SimpleNamespace

import odd_venice
import pytest
from process import database_url, started
from support import ORGANIZATIONS, make_settings, running

from service import app as application
from service import audit
from service.audit import OPERATOR_ORGANIZATION_ID
from service.background import upstream_keys
from service.upstream import ENVIRONMENT_KEY_ID, Finding, UpstreamKey, record, stored
from service.upstream.keys import KeyFinding

KEYS = "/admin/v1/upstream-keys"
RATE_LIMITS = "/api_keys/rate_limits"
ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "model": odd_venice.MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
CONDITIONS = {
    "invalid_key": ("invalid", "Venice rejects the key"),
    "insufficient_balance": ("spent", "no balance left"),
    "disconnect": ("unreachable", "so the key could not be checked"),
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Checks are recorded without a pause."""
    monkeypatch.setattr(upstream_keys, "CHECK_DELAY_S", 0.01)


async def events(service):
    """Return the events about upstream keys, oldest first."""
    path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/audit-events"
    _, body = await service.operate("GET", path)
    return [
        (event["action"], event["detail"]["name"], event["detail"].get("finding"))
        for event in reversed(body["events"])
        if event["actor"] == "rialto"
    ]


async def reported(service, expected):
    """Wait for exactly these events."""
    async with asyncio.timeout(20):
        while (found := await events(service)) != expected and len(found) <= len(expected):
            await asyncio.sleep(0.02)
    assert found == expected


async def listed(service):
    """Return the upstream keys by name."""
    _, body = await service.operate("GET", KEYS)
    return {key["name"]: key for key in body["upstream_keys"]}


async def becomes(service, name, last_check):
    """Wait until a key has this result of its last check; return the key."""
    async with asyncio.timeout(20):
        while (found := (await listed(service))[name])["last_check"] != last_check:
            await asyncio.sleep(0.02)
    return found


async def recorded(service):
    """Wait until all results are written."""
    database = service.app[application.api.DATABASE]
    keys = service.app[application.api.VENICE].keys
    async with asyncio.timeout(20):
        while True:
            rows = await database.fetch("SELECT id, last_check FROM public.upstream_keys")
            written = {row["id"]: row["last_check"] for row in rows}
            if all(written[key.id] == keys.findings[key.id].finding for key in keys.all):
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", CONDITIONS)
async def test_a_key_is_checked_at_the_start(tmp_path, database_address, upstream, kind):
    """At the start the log, the list and the welcome report what Venice answers about each key, by
    its name, without a call."""
    finding, _ = CONDITIONS[kind]
    upstream.faults.push(RATE_LIMITS, kind)
    async with started(
        tmp_path,
        DATABASE_URL=database_url(database_address),
        VENICE_API_KEY="sandbox",
        VENICE_BASE_URL=f"{upstream.url}/api/v1",
    ) as process:
        line = await process.wait_for_line("upstream key checked")
        async with asyncio.timeout(10):
            while not any("Ctrl-C" in raw for raw in process.raw):
                await asyncio.sleep(0.05)
    assert (line["level"], line["key"], line["finding"], line["variable"]) == (
        "warning",
        "environment",
        finding,
        "VENICE_API_KEY",
    )
    shown = "".join(process.raw)
    known = [words for _, words in CONDITIONS.values()] + ["is being checked"]
    assert sum(words in shown for words in known) == 1
    assert "Calls cost real money" not in shown
    assert upstream.calls.charged_nanos == 0


@pytest.mark.parametrize("kind", CONDITIONS)
async def test_a_key_is_checked_when_it_is_added(service, upstream, kind):
    """A key is checked as soon as it is added, and the list has the result with its time."""
    finding, _ = CONDITIONS[kind]
    upstream.faults.push(RATE_LIMITS, kind, key="second")
    status, made = await service.operate("POST", KEYS, json={"name": "spare", "key": "second"})
    assert (status, made["last_check"], made["last_checked_at"]) == (201, None, None)

    found = await becomes(service, "spare", finding)

    assert found["last_checked_at"] is not None
    assert (await listed(service))["environment"]["last_check"] == "well"
    expected = [("upstream_key.unusable", "spare", finding)] if finding != "unreachable" else []
    await reported(service, expected)


async def test_a_change_is_an_event_once(service, upstream):
    """Each new state of a key is one event, and a failure to reach Venice is none."""
    venice = service.app[application.api.VENICE]
    key = venice.keys.find(ENVIRONMENT_KEY_ID)
    for kind in ("insufficient_balance", "disconnect", "insufficient_balance", "invalid_key"):
        upstream.faults.push(RATE_LIMITS, kind)
        for _ in range(2):
            await venice.examine(key, 5)
            await recorded(service)
        upstream.faults.clear()
    for _ in range(2):
        await venice.examine(key, 5)
        await recorded(service)

    expected = [
        ("upstream_key.unusable", "environment", "spent"),
        ("upstream_key.unusable", "environment", "invalid"),
        ("upstream_key.recovered", "environment", None),
    ]
    await reported(service, expected)


async def test_disabling_a_bad_key_reports_nothing(service, upstream):
    """Disabling a bad key does not report that it recovered."""
    upstream.faults.push(RATE_LIMITS, "invalid_key", key="second")
    _, made = await service.operate("POST", KEYS, json={"name": "spare", "key": "second"})
    await becomes(service, "spare", "invalid")
    await reported(service, [("upstream_key.unusable", "spare", "invalid")])
    assert (await service.operate("DELETE", f"{KEYS}/{made['id']}"))[0] == 204
    upstream.faults.push(RATE_LIMITS, "invalid_key", key="third")
    await service.operate("POST", KEYS, json={"name": "other", "key": "third"})
    await becomes(service, "other", "invalid")

    expected = [("upstream_key.unusable", name, "invalid") for name in ("spare", "other")]
    await reported(service, expected)


async def test_several_processes_report_a_change_once(database_address, upstream):
    """Several processes report a change once, and a process with an older result does not overwrite
    a newer one."""
    settings = make_settings(database_address, upstream.url)
    async with running(settings) as one, running(settings) as two:
        services = (one, two)
        venices = [service.app[application.api.VENICE] for service in services]
        key = venices[0].keys.find(ENVIRONMENT_KEY_ID)
        upstream.faults.push(RATE_LIMITS, "invalid_key")
        await asyncio.gather(*(venice.examine(key, 5) for venice in venices))
        await asyncio.gather(*(recorded(service) for service in services))
        stale = venices[1].keys.findings[key.id]
        upstream.faults.clear()
        await asyncio.gather(*(venice.examine(key, 5) for venice in venices))
        await asyncio.gather(*(recorded(service) for service in services))
        await record(two.app[application.api.DATABASE], key, stale)

        expected = [
            ("upstream_key.unusable", "environment", "invalid"),
            ("upstream_key.recovered", "environment", None),
        ]
        await reported(one, expected)


@pytest.fixture
async def unchecked(service):
    """A key that the service does not check itself, and that was well an hour ago."""
    key = UpstreamKey(id=uuid.uuid4(), name="spare", secret="", organization_id=None)
    await service.app[application.api.DATABASE].fetch(
        "INSERT INTO public.upstream_keys"
        " (id, name, source, role, last_check, last_checked_at, condition, condition_at)"
        " VALUES ($1, $2, 'environment', 'admin', 'well', now() - interval '1 hour', 'well',"
        " now() - interval '1 hour')",
        key.id,
        key.name,
    )
    return key


@pytest.fixture
def clock(monkeypatch):
    """The process's clock, which the test can set forward."""
    clock = SimpleNamespace(ahead_s=0.0, monotonic=lambda: time.monotonic() + clock.ahead_s)
    monkeypatch.setattr(stored, "time", clock)
    return clock


def result(finding, age_s):
    """Return a result that was found so long ago."""
    return KeyFinding(finding, "status 401", time.monotonic() - age_s)


async def test_an_older_result_replaces_no_newer_one(service, unchecked):
    """Neither in the list nor in the events, even if the newer result changed nothing."""
    database = service.app[application.api.DATABASE]
    await record(database, unchecked, result(Finding.WELL, 10))
    await record(database, unchecked, result(Finding.INVALID, 30))

    assert (await listed(service))["spare"]["last_check"] == "well"
    assert await events(service) == []
    await record(database, unchecked, result(Finding.INVALID, 5))
    assert (await listed(service))["spare"]["last_check"] == "invalid"
    await reported(service, [("upstream_key.unusable", "spare", "invalid")])


async def test_a_result_gets_older_while_it_waits_for_the_lock(service, unchecked, clock):
    """A result that waited for a minute does not replace one that was found meanwhile."""
    database = service.app[application.api.DATABASE]
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with database.transaction() as conn:
        await audit.lock(conn, OPERATOR_ORGANIZATION_ID)
        recording = asyncio.create_task(record(database, unchecked, result(Finding.INVALID, 0)))
        async with asyncio.timeout(10):
            while not await database.fetchval(waiting):
                await asyncio.sleep(0.01)
        await record(database, unchecked, result(Finding.WELL, 30))
        clock.ahead_s = 60
    await recording

    assert await events(service) == []


async def test_a_result_gets_older_while_it_waits_for_a_connection(service, unchecked, clock):
    """The time of the check is that of Venice's answer, however long its recording takes."""
    database = service.app[application.api.DATABASE]
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(database.size):
            await stack.enter_async_context(database.transaction())
        recording = asyncio.create_task(record(database, unchecked, result(Finding.WELL, 0)))
        await asyncio.sleep(0.05)
        clock.ahead_s = 60
    await recording

    age_s = await database.fetchval(
        "SELECT extract(epoch FROM now() - last_checked_at)"
        " FROM public.upstream_keys WHERE name = 'spare'"
    )
    assert 60 <= age_s < 90


@pytest.mark.parametrize("state", [{}, {"balances": {"USD": 100.0}}, {"accessPermitted": None}])
async def test_an_incomplete_answer_is_no_evidence(database_address, monkeypatch, state):
    """A Venice that does not state whether the key may make calls changes nothing: no event, and
    the key takes calls."""
    monkeypatch.setattr(odd_venice, "KEY", state)
    async with odd_venice.odd_venice() as venice:
        venice.answer = odd_venice.whole(ANSWER)
        async with odd_venice.serving(database_address, venice) as service:
            assert (await becomes(service, "environment", "failed"))["cooldowns"] == []
            caller = await service.new_caller()
            async with caller.chat(model=odd_venice.MODEL) as response:
                assert response.status == 200, await response.text()
            assert await events(service) == []
