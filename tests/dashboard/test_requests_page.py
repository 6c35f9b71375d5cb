"""Requests: the search of the ledger, calls in flight, and the story of each request."""

import asyncio
import html
import re
from urllib.parse import quote

import pytest
from markupsafe import escape
from reading import rows_of, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, set_alias, set_limit
from visits import visiting

from service import api
from service.dashboard import formats
from service.dashboard.pages import requests as pages

pytestmark = pytest.mark.shares_service

PAGE = "/dashboard/requests"
OTHER_MODEL = "venice-uncensored"


async def chat(caller, **members):
    """Make a call; return its status and request id."""
    async with caller.chat(**members) as response:
        await response.read()
        return response.status, response.headers["x-request-id"]


async def listed(visitor, **query):
    """Return the rows of the list that a query shows."""
    path = "&".join(f"{name.removesuffix('_')}={value}" for name, value in query.items())
    status, text = await visitor.get(f"{PAGE}?{path}")
    assert status == 200, text
    return rows_of(text, "Took")


async def test_the_list_has_the_ledger(service, caller):
    """Each entry has who, what, how it ended, its tokens and its cost, as the ledger has them."""
    await chat(caller, user="ada")
    entry = await caller.only_entry()
    async with visiting(service, OPERATOR_KEY) as visitor:
        (row,) = await listed(visitor, key=caller.key_id)
    assert row["Organization"] == "acme"
    assert row["Key"] == "acme"
    assert row["Model"].startswith(MODEL)
    assert row["Outcome"] == "ok"
    assert row["In"] == str(entry["input_tokens"])
    assert row["Out"] == str(entry["output_tokens"])
    assert row["Cost"] == formats.usd(entry["cost_usd"])


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"model": MODEL}, 2),
        ({"model": OTHER_MODEL}, 1),
        ({"model": "nosuch"}, 0),
        ({"outcome": "ok"}, 3),
        ({"outcome": "client_closed"}, 0),
        ({"endpoint": "/chat/completions"}, 3),
        ({"endpoint": "/embeddings"}, 0),
        ({"end_user": "ada"}, 1),
        ({"end_user": "bob"}, 0),
        ({"tag": "team%3Da"}, 3),
        ({"tag": "team%3Db"}, 0),
        ({"cost_over": "0"}, 3),
        ({"cost_over": "100"}, 0),
        ({"kind": "call"}, 3),
        ({"kind": "credit"}, 0),
        ({"from_": "2020-01-01"}, 3),
        ({"from_": "2020-01-01", "to": "2020-01-02T08:00"}, 0),
        ({"to": "2100-01-01T00:00:00.500"}, 3),
    ],
)
async def test_filters(service, query, count):
    """Each filter finds its entries, of one organization by its name."""
    name = f"filtered {sorted(query.items())}".replace("%", "").replace("&", "")
    caller = await service.new_caller(name)
    caller.headers |= {"x-rialto-tags": "team=a"}
    await chat(caller, user="ada")
    await chat(caller)
    await chat(caller, model=OTHER_MODEL)
    async with visiting(service, OPERATOR_KEY) as visitor:
        rows = await listed(visitor, organization=name, **query)
        assert len(rows) == count
        _, text = await visitor.get(f"{PAGE}?organization={name}&model=nosuch")
        assert "Nothing fits these filters." in text


async def test_an_exact_request_id_ignores_the_period(service, caller):
    """A request is found by its id whatever the period is."""
    _, request_id = await chat(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        rows = await listed(visitor, request_id=request_id, from_="2020-01-01", to="2020-01-02")
    assert len(rows) == 1


async def test_a_key_is_found_by_prefix_and_name(service, caller):
    """The filter of keys takes an id, the visible beginning, or a name within an organization."""
    await chat(caller)
    async with visiting(service, OPERATOR_KEY) as visitor:
        for text in (caller.key_id, caller.key[:10]):
            assert len(await listed(visitor, key=text)) == 1
        rows = await listed(visitor, key="acme", organization=caller.organization_id)
        assert len(rows) == 1


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("organization=nosuch", "organization", "There is no organization"),
        ("key=nosuch", "key", "There is no API key"),
        ("outcome=nosuch", "outcome", "must be one of"),
        ("tag=nosuch", "tag", "must be name=value"),
        ("cost_over=nosuch", "cost_over", "cost_over"),
        ("from=nosuch", "from", "must be a day"),
        ("from=2026-02-01&to=2026-01-01", "from", "must be before"),
        ("end_user=ada", "end_user", "needs an organization"),
    ],
)
async def test_a_wrong_filter_is_named(service, query, field, reason):
    """What is wrong with a filter stands beside it, and what was typed stays."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(f"{PAGE}?{query}&model=stays")
    assert status in (400, 404)
    faulty = re.search(rf'name="{field}"[^>]*aria-invalid="true"', text)
    assert faulty, text
    assert reason in html.unescape(text)
    assert 'value="stays"' in text
    assert f'value="{query.partition("=")[2].partition("&")[0]}"' in text or field == "outcome"


async def test_a_wrong_cursor_is_refused(service):
    """A cursor that is none is named on the page."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        status, text = await visitor.get(f"{PAGE}?before=nosuch")
    assert status == 400
    assert "must be the next of the page before" in text


async def test_pages_hold_each_entry_once(service, monkeypatch):
    """From page to page every entry comes once, newest first, with the filters kept."""
    monkeypatch.setattr(pages, "PAGE", 2)
    caller = await service.new_caller("paged")
    ids = [(await chat(caller))[1] for _ in range(5)]
    found, path = [], f"{PAGE}?organization=paged&from=2020-01-01"
    async with visiting(service, OPERATOR_KEY) as visitor:
        while path:
            _, text = await visitor.get(path)
            found += re.findall(
                r'<a href="/dashboard/requests/[^"]*">\s*<code title="([^"]*)"', text
            )
            link = re.search(r'href="([^"]*)" rel="next"', text)
            path = html.unescape(link[1]) if link else ""
            assert not path or "organization=paged&from=2020-01-01" in path
    assert found == ids[::-1]


async def test_times_stay_in_their_fields(service):
    """A day or a time with a zone, as links have them, is shown in the field for times."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        for stated, shown in (
            ("2026-11-01", "2026-11-01T00:00:00"),
            ("2026-11-01T08:30", "2026-11-01T08:30:00"),
            ("2026-11-01T08:30:00.250%2B02:00", "2026-11-01T06:30:00.250"),
        ):
            _, text = await visitor.get(f"{PAGE}?from={stated}")
            field = re.search(r'<input[^>]*name="from"[^>]*value="([^"]*)"', text)
            assert field[1] == shown


async def test_the_live_part_is_small(service, caller):
    """The script gets the live part alone, with what is new; the page has it too."""
    async with visiting(service, OPERATOR_KEY) as visitor:
        path = f"{PAGE}?key={caller.key_id}&live=1"
        await chat(caller)
        _, whole = await visitor.get(path)
        _, part = await visitor.get(path, **{pages.PART_HEADER: pages.NEWEST})
        assert "<html" in whole
        assert "<html" not in part
        for text in (whole, part):
            assert 'id="newest" data-live="3"' in text
            assert len(rows_of(text, "Took")) == 1
        await chat(caller)
        _, part = await visitor.get(path, **{pages.PART_HEADER: pages.NEWEST})
        assert len(rows_of(part, "Took")) == 2
        _, later = await visitor.get(f"{PAGE}?key={caller.key_id}")
        assert "data-live" not in later


async def test_an_administrator_sees_its_own_organization(service, caller):
    """No entry, call or story of another organization is shown to an administrator."""
    await chat(caller)
    stranger = await service.new_caller("stranger")
    _, others_id = await chat(stranger)
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, admin = await service.operate("POST", path, json={"name": "admin", "role": "admin"})
    others_entry = (await stranger.entries())[0]["id"]
    async with visiting(service, admin["key"]) as visitor:
        _, text = await visitor.get(PAGE)
        assert "stranger" not in text
        assert len(rows_of(text, "Took")) == 1
        assert await listed(visitor, request_id=others_id) == []
        for query in (
            f"organization={stranger.organization_id}",
            "organization=stranger",
            f"key={stranger.key_id}",
            f"key={stranger.key[:10]}",
        ):
            for page in (PAGE, "/dashboard/refusals", "/dashboard/calls"):
                status, text = await visitor.get(f"{page}?{query}")
                if "key" in query and page == "/dashboard/calls":
                    continue
                assert status == 404, (page, query)
                assert stranger.key_id not in text.replace(query.partition("=")[2], "")
        for request_id in (others_id, others_entry):
            status, _ = await visitor.get(f"{PAGE}/{request_id}")
            assert status == 404


async def test_the_story_of_a_call(service, caller):
    """The page of a call has who asked for what, its limits, tokens, bound and cost."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="5")
    caller.headers |= {"x-rialto-tags": "team=a"}
    _, request_id = await chat(caller, user="ada")
    entry = await caller.only_entry()
    async with visiting(service, OPERATOR_KEY) as visitor:
        for text_id in (request_id, entry["id"]):
            status, page = await visitor.get(f"{PAGE}/{text_id}")
            assert status == 200
    text = text_of(page)
    for expected in (request_id, entry["id"], MODEL, "/chat/completions", "team=a", "ok"):
        assert expected in text
    assert f'title="{entry["cost_usd"]} USD"' in page
    assert f'title="{entry["bound_usd"]} USD"' in page
    assert f'href="/dashboard/limits/{limit["id"]}"' in page
    assert f"request_id={request_id}" in page
    assert "reported" in text or "computed" in text


async def test_the_story_of_a_failed_call(service, caller, upstream):
    """The attempts at Venice are listed with their times, statuses and reasons."""
    upstream.faults.push("/chat/completions", "inference_failed")
    status, request_id = await chat(caller)
    assert status >= 500
    await service.app[api.RECORDER].write()
    _, story = await service.operate("GET", f"/admin/v1/requests/{request_id}")
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, page = await visitor.get(f"{PAGE}/{request_id}")
    rows = rows_of(page, "Began after")
    assert len(rows) == len(story["attempts"]) > 0
    for row, attempt in zip(rows, story["attempts"], strict=True):
        assert row["Result"] == attempt["code"].replace("_", " ")
        assert row["Status"] == str(attempt["status"] or "")
        assert row["Took"] == formats.milliseconds(attempt["duration_ms"])


async def test_the_story_of_a_refusal(service, caller):
    """The page of a refusal has the numbers that prove it."""
    limit = await set_limit(caller, unit="usd", period="month", ceiling="0.0000001", of_key=True)
    status, request_id = await chat(caller, max_tokens=50)
    assert status == 402
    await service.app[api.RECORDER].write()
    _, story = await service.operate("GET", f"/admin/v1/requests/{request_id}")
    (proof,) = story["limits"]
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, page = await visitor.get(f"{PAGE}/{request_id}")
    text = text_of(page)
    for name in ("used", "held", "needed", "ceiling"):
        assert formats.usd(proof[name]) in text
    assert "limit_exceeded" in text
    assert "costs nothing" in text
    assert f'href="/dashboard/limits/{limit["id"]}"' in page


async def test_a_credited_call_has_its_corrections(service, caller):
    """A credit is listed with its note, and the total is the sum."""
    await chat(caller)
    entry = await caller.only_entry()
    credit = {"usd": entry["cost_usd"], "note": "was <b>wrong</b>"}
    status, made = await service.operate(
        "POST", f"/admin/v1/ledger/{entry['id']}/credit", json=credit
    )
    assert status == 201, made
    async with visiting(service, OPERATOR_KEY) as visitor:
        _, page = await visitor.get(f"{PAGE}/{entry['id']}")
        assert len(await listed(visitor, request_id=entry["request_id"])) >= 1
    rows = rows_of(page, "Note")
    assert [row["Kind"] for row in rows] == ["credit", "total"]
    assert rows[0]["Note"] == "was <b>wrong</b>"
    assert rows[1]["Cost"] == "$0.00"


async def test_a_call_in_flight(service, caller, upstream):
    """A call that runs is in the list of calls in flight and has a story; both know when it has
    ended."""
    upstream.faults.push("/chat/completions", "slow_headers", seconds=2)
    async with visiting(service, OPERATOR_KEY) as visitor:
        call = asyncio.create_task(chat(caller))
        async with asyncio.timeout(5):
            while True:
                _, text = await visitor.get(
                    f"/dashboard/calls?organization={caller.organization_id}"
                )
                if rows := rows_of(text, "Held"):
                    break
        (row,) = rows
        assert row["Key"] == "acme"
        assert row["Model"].startswith(MODEL)
        assert row["Held"].startswith("$0.")
        link = html.unescape(re.search(r'href="(/dashboard/requests/[^"]+)"', text)[1])
        _, story = await visitor.get(link)
        assert "in flight" in story
        assert 'id="story" data-live' in story
        await call
        _, story = await visitor.get(link)
        assert "data-live" not in story
        assert ">ok<" in story
        _, text = await visitor.get(f"/dashboard/calls?organization={caller.organization_id}")
        assert "No call is in flight." in text


async def test_hostile_names_are_texts(service):
    """An alias, an end user and names with markup are shown as they are."""
    name = "<script>alert(1)</script>"
    caller = await service.new_caller(name)
    alias = "<img/src=x/onerror=alert(2)>"
    await set_alias(service, quote(alias, safe=""), [MODEL])
    status, request_id = await chat(caller, model=alias, user=name)
    assert status == 200
    async with visiting(service, OPERATOR_KEY) as visitor:
        for path in (f"{PAGE}?organization={caller.organization_id}", f"{PAGE}/{request_id}"):
            _, text = await visitor.get(path)
            assert str(escape(alias)) in text
            for mark in (name, alias):
                assert mark not in text
        _, text = await visitor.get(f"{PAGE}?model={alias}&tag=a%3D{name}&key={name}")
        for mark in (name, alias):
            assert mark not in text
