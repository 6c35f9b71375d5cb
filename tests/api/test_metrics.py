"""Metrics count what happened, have few labels, and need no database."""

import asyncio
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support import MODEL, OPERATOR_KEY, make_settings, running, set_limit

from service import app as application
from service.telemetry.metrics import REGISTRY

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
HEADERS = {"Authorization": f"Bearer {OPERATOR_KEY}"}


async def samples(service):
    """Return every sample by name and labels."""
    async with service.http.get("/metrics", headers=HEADERS) as response:
        assert response.status == 200
        text = await response.text()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def counted(service, do):
    """Return what ``do`` added, by name and labels."""
    before = await samples(service)
    await do()
    after = await samples(service)
    return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)}


async def test_calls_are_counted(service, upstream, caller):
    """Metrics count a success, a stream, a limit's refusal, a refusal by Venice, and the money
    spent."""
    await set_limit(caller, unit="requests", period="day", ceiling=3)
    cost, bounds = [], []
    chat = "/chat/completions"
    first = len(upstream.calls)

    def own_answers(first, last=None):
        """The service may have asked for models, prices or the state of its key meanwhile."""
        calls = [*upstream.calls][first:last]
        return sum(call.path != chat and call.status == 200 for call in calls)

    async def work():
        bounds.append(len(upstream.calls))
        upstream.faults.push(chat, "model_overloaded", times=1)
        for members in ({}, {"stream": True}, {}, {}):
            async with caller.chat(**members) as response:
                await response.read()
                cost.append(response.headers.get("x-rialto-cost-usd"))
        bounds.append(len(upstream.calls))

    added = await counted(service, work)

    assert added["rialto_calls_total", chat, "ok"] == 2
    assert added["rialto_calls_total", chat, "upstream_busy"] == 1
    assert added["rialto_refusals_total", "organization", "rate_limited", "requests"] == 1
    least, most = own_answers(*bounds), own_answers(first)
    assert 2 + least <= added["rialto_upstream_answers_total", "200"] <= 2 + most
    assert added["rialto_upstream_answers_total", "429"] == 1
    assert added["rialto_admission_seconds_count",] == 4
    assert added["rialto_batch_size_sum", "admission"] == 4
    assert added["rialto_batch_size_sum", "settlement"] == 3
    route = "/v1/chat/completions"
    assert added["rialto_request_duration_seconds_count", *sorted([route, "200", "POST"])] == 2
    spent = sum(float(entry["cost_usd"]) for entry in await caller.entries())
    assert abs(added["rialto_settled_usd_total",] - spent) < 1e-9


async def test_a_call_that_is_admitted_after_all_is_no_refusal(service, caller):
    """A call that is cut, or goes to another target of its alias, counts no refusal."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.1")
    await set_limit(caller, unit="requests", period="day", ceiling=0, model=MODEL)
    alias = {"targets": [MODEL, "claude-opus-4-8"], "organization_id": caller.organization_id}
    await service.operate("PUT", "/admin/v1/models/either", json=alias)

    async def work():
        async with caller.chat(model="either", max_tokens=100_000) as response:
            assert response.status == 200, await response.text()
            assert int(response.headers["x-rialto-max-output-tokens"]) < 100_000

    added = await counted(service, work)

    assert not any(name == "rialto_refusals_total" for name, *_ in added)


async def test_labels_are_few(service, caller):
    """No path, method or model of a caller's creates a new label."""

    async def work():
        for n in range(5):
            async with service.http.request("MKCOL", f"/none/{n}", headers=HEADERS) as response:
                assert response.status in (404, 405)
            async with caller.chat(model=f"model-{n}", user=f"user-{n}") as response:
                assert response.status == 404

    added = await counted(service, work)

    assert not [key for key in added if any(re.search("MKCOL|none/|model-|user-", x) for x in key)]
    assert added["rialto_request_duration_seconds_count", "404", "none", "other"] == 5


async def test_metrics_are_the_operators(service, caller):
    """Metrics need the operator's key."""
    for headers, status in ((caller.headers, 403), ({}, 401)):
        async with service.http.get("/metrics", headers=headers) as response:
            assert response.status == status


async def test_metrics_need_no_database(proxy, proxied_address, upstream):
    """Metrics are served while the database is down."""
    async with running(make_settings(proxied_address, upstream.url)) as service:
        proxy.refuse()
        proxy.reset()
        async with asyncio.timeout(2):
            assert (await samples(service))["rialto_open_calls",] == 0
        await proxy.restore()


async def test_the_audit_runs_by_itself(database_address, upstream):
    """The audit runs at its interval and reports faults in a metric."""
    settings = make_settings(database_address, upstream.url, audit_interval_s=0.1)
    async with running(settings) as service:
        caller = await service.new_caller()
        limit = await set_limit(caller, unit="usd", period="month", ceiling="1")
        database = service.app[application.api.DATABASE]
        harm = "UPDATE public.limits SET used = used + $1, window_start = public.limit_window("
        harm += "period, now()) WHERE id = $2"

        async def found(count):
            async with asyncio.timeout(20):
                while (await samples(service))["rialto_audit_faults",] != count:
                    await asyncio.sleep(0.05)

        await database.fetch(harm, 5, limit["id"])
        await found(1)
        await database.fetch(harm, -5, limit["id"])
        await found(0)
        assert (await samples(service))["rialto_audit_finished_timestamp_seconds",] > 1.7e9


def test_every_metric_is_in_the_docs():
    """The documented metrics are exactly those that exist."""
    named = set(re.findall(r"^\| `(rialto_\w+)`", DOCS, re.MULTILINE))
    labels = dict(re.findall(r"^\| `(rialto_\w+)` \| (.*?) \|", DOCS, re.MULTILINE))
    known = {}
    for collector in REGISTRY._collector_to_names:
        if (name := getattr(collector, "_name", "")).startswith("rialto_"):
            suffix = {"counter": "_total", "info": "_info"}.get(collector._type, "")
            known[name + suffix] = collector._labelnames

    assert named == set(known)
    for name, names in known.items():
        if names:
            assert re.findall(r"`(\w+)`", labels[name]) == list(names)
