"""The pages of a key's holder: its own limits, calls, refusals, quotes and rotation, and nothing of
any other key."""

import re

import pytest
from reading import rows_of, send, text_of
from support import MODEL, OPERATOR_KEY, ORGANIZATIONS, Caller, set_limit
from visits import visiting

from service import api
from service.dashboard import formats
from service.dashboard.routes import ROUTES
from service.errors import Unauthenticated

pytestmark = pytest.mark.shares_service

OWN = "/dashboard/own"
OWN_PAGES = [route for route in ROUTES if route.section == "own" and not route.is_form]
HOMES = {"operator": "/dashboard/audit", "admin": "/dashboard/audit", "inference": OWN}
CLOSED = [
    pytest.param(role, route, id=f"{role} {route.method} {route.path}")
    for role in ("operator", "admin", "inference")
    for route in ROUTES
    if route.roles and role not in route.roles
]
OTHER_MODEL = "venice-uncensored"


async def second_caller(caller, name):
    """Make another key of the caller's organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    status, made = await caller.service.operate("POST", path, json={"name": name})
    assert status == 201, made
    return Caller(caller.service, caller.organization_id, made)


async def chat(caller, **members):
    """Make a call; return its status and request id."""
    async with caller.chat(**members) as response:
        await response.read()
        return response.status, response.headers["x-request-id"]


async def refused(service, caller, count=1):
    """Wait until so many refusals of the caller's are recorded; return them."""
    await service.app[api.RECORDER].write()
    async with service.http.get("/v1/refusals", headers=caller.headers) as response:
        found = (await response.json())["refusals"]
    assert len(found) >= count
    return found


async def own(caller, path, **query):
    """Ask the API about the caller's own key."""
    async with caller.service.http.get(path, headers=caller.headers, params=query) as response:
        assert response.status == 200
        return await response.json()


async def test_a_holder_sees_nothing_of_other_keys(service):
    """No page of a holder has a name, a prefix, an id, a model or a request of another key, of its
    own organization or another one."""
    caller = await service.new_caller("mine")
    sister = await second_caller(caller, "sisterkey")
    stranger = await service.new_caller("strangerkey")
    await chat(caller)
    marks = {sister.key_id, stranger.key_id, "sisterkey", "strangerkey", OTHER_MODEL}
    marks |= {sister.key[:10], stranger.key[:10], stranger.organization_id}
    for other in (sister, stranger):
        other.headers |= {"x-rialto-tags": "secret=tagged"}
        await set_limit(other, unit="usd", period="day", ceiling="7.77", of_key=True)
        for model in (OTHER_MODEL, "nosuchmodel"):
            _, request_id = await chat(other, model=model, user="hidden-user")
            marks.add(request_id)
    await refused(service, sister)
    marks |= {"7.77", "tagged", "nosuchmodel", "hidden-user"}
    async with visiting(service, caller.key) as visitor:
        own_id = (await caller.entries())[-1]["request_id"]
        for route in OWN_PAGES:
            path = route.path.replace("{request_id}", own_id)
            status, text = await visitor.get(path)
            assert status == 200, route.page
            shown = re.sub(r"<datalist.*?</datalist>", "", text, flags=re.DOTALL)
            assert {mark for mark in marks if mark in shown} == set(), route.page


@pytest.mark.parametrize("kind", ["call", "entry", "refusal"])
async def test_a_request_of_another_key_is_not_found(service, kind):
    """A holder finds no request of another key of its organization by any of its ids."""
    caller = await service.new_caller("mine")
    sister = await second_caller(caller, "sister")
    _, request_id = await chat(sister)
    if kind == "entry":
        request_id = (await caller.entries())[0]["id"]
    if kind == "refusal":
        await chat(sister, model="nosuch")
        request_id = (await refused(service, sister))[0]["id"]
    async with visiting(service, sister.key) as visitor:
        assert (await visitor.get(f"{OWN}/requests/{request_id}"))[0] == 200
    async with visiting(service, caller.key) as visitor:
        status, text = await visitor.get(f"{OWN}/requests/{request_id}")
        assert status == 404
        assert "no such request" in text


async def test_two_keys_with_one_request_id_each_see_their_own(service):
    """An id that another key used for its request later does not hide one's own."""
    caller = await service.new_caller("mine")
    sister = await second_caller(caller, "sister")
    for each, model in ((caller, MODEL), (sister, OTHER_MODEL)):
        each.headers |= {"x-request-id": "the-same-id"}
        await chat(each, model=model)
    for each, model, other in ((caller, MODEL, OTHER_MODEL), (sister, OTHER_MODEL, MODEL)):
        async with visiting(service, each.key) as visitor:
            status, text = await visitor.get(f"{OWN}/requests/the-same-id")
            assert status == 200
            assert model in text
            assert other not in text


@pytest.fixture
async def key_of(service, caller):
    """A key of each role, of one organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, made = await service.operate("POST", path, json={"name": "chief", "role": "admin"})
    return {"operator": OPERATOR_KEY, "admin": made["key"], "inference": caller.key}


@pytest.mark.parametrize(("role", "route"), CLOSED)
async def test_pages_of_other_roles_are_closed(service, caller, key_of, role, route):
    """A key opens no page that is not for its role, and sends none of its forms."""
    path = route.path.replace("{id}", caller.organization_id).replace("{request_id}", "x")
    async with visiting(service, key_of[role]) as visitor:
        if route.is_form:
            token = await visitor.token(HOMES[role])
            status, text, _ = await visitor.post(path, {"csrf": token})
        else:
            status, text = await visitor.get(path)
        assert status == 403
        assert f"A key of role {role} cannot open this page." in text_of(text)


async def test_limits_are_those_of_the_api(service):
    """The page has the numbers of each binding limit as the API states them, with a bar."""
    caller = await service.new_caller("bounded")
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    await set_limit(caller, unit="requests", period="day", ceiling=1000, of_key=True)
    await set_limit(caller, unit="tokens", period="hour", ceiling=1_000_000, model=MODEL)
    await chat(caller)
    limits = (await own(caller, "/v1/limits"))["limits"]
    async with visiting(service, caller.key) as visitor:
        _, text = await visitor.get(OWN)
    rows = rows_of(text, "Of the limit")
    assert len(rows) == len(limits) == 3
    for limit, row in zip(limits, rows, strict=True):
        for column in ("used", "held", "left"):
            assert row[column.title()] == formats.amount(limit[column], limit["unit"])
        assert row["Starts again"] == "slides" or row["Starts again"].startswith("in ")
    assert text.count('<svg class="bar') == 3
    assert "used and" in text


async def test_use_is_that_of_the_api(service):
    """Sums, models and days are those of the API's report, and each leads to the calls."""
    caller = await service.new_caller("user")
    await chat(caller)
    await chat(caller, model=OTHER_MODEL)
    report = await own(caller, "/v1/usage", group_by="model")
    async with visiting(service, caller.key) as visitor:
        _, text = await visitor.get(OWN)
        rows = {row["Model"]: row for row in rows_of(text, "First byte p50")}
        assert set(rows) == {MODEL, OTHER_MODEL}
        for group in report["groups"]:
            row = rows[group["key"]]
            assert row["Calls"] == str(group["calls"])
            assert row["Tokens out"] == f"{group['output_tokens']:,}"
            assert f'title="{group["cost_usd"]} USD"' in text
        assert f'title="{report["total"]["cost_usd"]} USD"' in text
        days = rows_of(text, "Cost and calls")
        assert len(days) == 30
        assert days[-1]["Cost and calls"].endswith("2 calls")
        assert {row["Cost and calls"] for row in days[:-1]} == {"$0.00, 0 calls"}
        link = re.search(rf'href="({OWN}/calls\?model={OTHER_MODEL}[^"]*)"', text)[1]
        _, text = await visitor.get(link.replace("&amp;", "&"))
    assert [row["Model"] for row in rows_of(text, "Tokens out")] == [OTHER_MODEL]


async def test_calls_have_pages_and_filters(service, monkeypatch):
    """Calls come newest first, page by page, each once; filters are kept from page to page."""
    monkeypatch.setattr("service.dashboard.pages.own.PAGE", 2)
    caller = await service.new_caller("pager")
    ids = [(await chat(caller))[1] for _ in range(5)]
    await chat(caller, model=OTHER_MODEL)
    seen, path, pages = [], f"{OWN}/calls?model={MODEL}", 0
    async with visiting(service, caller.key) as visitor:
        while path:
            _, text = await visitor.get(path)
            assert f'value="{MODEL}"' in text
            seen += re.findall(r'<code title="([^"]*)">', text)
            found = re.search(r'href="([^"]*)" rel="next"', text)
            path = found and found[1].replace("&amp;", "&")
            pages += 1
        assert [one for one in seen if one in ids] == ids[::-1]
        assert pages == 3
        _, text = await visitor.get(f"{OWN}/calls?outcome=failed")
        assert "Nothing fits these filters." in text
        status, text = await visitor.get(f"{OWN}/calls?from=yesterday")
        assert status == 400
        assert "from" in text


async def test_a_refusal_has_its_proof(service):
    """A refusal by a limit is listed with the four numbers that the caller got, which add up to
    more than the ceiling."""
    caller = await service.new_caller("refused")
    await set_limit(caller, unit="requests", period="day", ceiling=1)
    await chat(caller)
    status, _ = await chat(caller)
    assert status == 429
    (refusal,) = await refused(service, caller)
    limit = refusal["limit"]
    used, held, needed, ceiling = (
        formats.amount(limit[name], "requests") for name in ("used", "held", "needed", "ceiling")
    )
    proof = f"{used} used + {held} held + {needed} needed > {ceiling} a day"
    async with visiting(service, caller.key) as visitor:
        for path in (OWN, f"{OWN}/refusals", f"{OWN}/requests/{refusal['request_id']}"):
            status, text = await visitor.get(path)
            assert status == 200
            assert proof in text_of(text)
            assert "rate_limited" in text
        _, text = await visitor.get(f"{OWN}/refusals?code=limit_exceeded")
        assert "Nothing fits these filters." in text


async def test_an_empty_page_says_what_to_do_first(service, caller):
    """A key without a call leads to the two lines for an SDK, which name this service."""
    async with visiting(service, caller.key) as visitor:
        _, text = await visitor.get(OWN)
        assert "made no call yet" in text
        assert "No limit binds this key." in text
        _, text = await visitor.get(f"{OWN}/key")
    assert f'base_url="{service.url}/v1"' in text_of(text)
    assert f"ANTHROPIC_BASE_URL={service.url}" in text_of(text)
    assert caller.key not in text
    assert caller.key[:10] in text


async def test_a_quote_is_that_of_the_api(service):
    """The form quotes what POST /v1/quote does for the same call, and makes none."""
    caller = await service.new_caller("asker")
    await set_limit(caller, unit="usd", period="month", ceiling="5")
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x" * 4000}],
        "max_completion_tokens": 500,
    }
    async with service.http.post("/v1/quote", json=body, headers=caller.headers) as response:
        quoted = await response.json()
    async with visiting(service, caller.key) as visitor:
        for prompt in ({"prompt": "x" * 4000}, {"prompt_characters": "4000"}):
            status, text, headers = await send(
                visitor, f"{OWN}/quote", f"{OWN}/quote/ask", model=MODEL, max_tokens="500", **prompt
            )
            assert status == 200
            assert headers["Cache-Control"] == "no-store"
            assert f'title="{quoted["max_cost_usd"]} USD"' in text
            assert f"{quoted['max_tokens']:,}" in text_of(text)
            assert "Now it would pass" in text_of(text)
            assert len(rows_of(text, "Of the limit")) == 1
            assert 'value="500"' in text
    assert await caller.entries() == []


async def test_a_quote_of_a_call_that_would_be_refused(service):
    """The quote of a call that no limit has room for states the refusal and its numbers."""
    caller = await service.new_caller("poor", settings={"on_small_budget": "refuse"})
    await set_limit(caller, unit="usd", period="month", ceiling="0.0001")
    async with visiting(service, caller.key) as visitor:
        status, text, _ = await send(
            visitor, f"{OWN}/quote", f"{OWN}/quote/ask", model=MODEL, prompt="Hello"
        )
    assert status == 200
    assert "Now it would be refused" in text_of(text)
    assert "$0.0001" in text
    assert "needed >" in text_of(text)


@pytest.mark.parametrize(
    ("fields", "at_fault", "words"),
    [
        ({"model": "nosuch", "prompt": "Hello"}, "model", "nosuch"),
        ({"model": "", "prompt": "Hello"}, "model", "choose"),
        ({"model": MODEL}, "prompt", "text"),
        ({"model": MODEL, "prompt_characters": "many"}, "prompt_characters", "from 1 to"),
        ({"model": MODEL, "prompt": "a", "max_tokens": "0"}, "max_tokens", "from 1 to"),
    ],
    ids=["model", "no-model", "no-prompt", "length", "maximum"],
)
async def test_a_wrong_quote_keeps_what_was_typed(service, caller, fields, at_fault, words):
    """A form that is refused marks the field, states the rule and keeps what was typed."""
    async with visiting(service, caller.key) as visitor:
        status, text, _ = await send(visitor, f"{OWN}/quote", f"{OWN}/quote/ask", **fields)
    assert 400 <= status < 500
    assert words in text_of(text)
    field = re.search(rf'<(?:input|textarea)[^>]* name="{at_fault}"[^>]*>', text)[0]
    assert 'aria-invalid="true"' in field
    for value in filter(None, fields.values()):
        assert value in text


async def test_a_quote_counts_as_a_request(service):
    """Quotes count against the limits on requests, as they do in the API."""
    caller = await service.new_caller("often")
    await set_limit(caller, unit="requests", period="minute", ceiling=2)
    fields = {"model": MODEL, "prompt": "Hello"}
    async with visiting(service, caller.key) as visitor:
        asked = [
            (await send(visitor, f"{OWN}/quote", f"{OWN}/quote/ask", **fields))[0] for _ in range(3)
        ]
    assert asked == [200, 200, 429]


@pytest.mark.parametrize("overlap_s", [86_400, 0])
async def test_rotation(service, overlap_s):
    """A holder rotates its key: the new secret is shown once and works, the old one works for the
    overlap, and the audit names the key that did it."""
    caller = await service.new_caller("rotor")
    callers = service.app[api.CALLERS]
    async with visiting(service, caller.key) as visitor:
        status, text, headers = await send(
            visitor, f"{OWN}/key", f"{OWN}/key/rotate", overlap_seconds=str(overlap_s)
        )
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        assert "never shown again" in text
        secret = re.search(r"rk_[\w-]{43}", text)[0]
        assert secret != caller.key
        assert (await callers.identify(secret)).actor_name == f"api_key:{caller.key_id}"
        if overlap_s:
            await callers.identify(caller.key)
            _, text = await visitor.get(f"{OWN}/key")
            assert secret not in text
        else:
            with pytest.raises(Unauthenticated):
                await callers.identify(caller.key)
            assert (await visitor.get(OWN))[0] == 303
    path = f"{ORGANIZATIONS}/{caller.organization_id}/audit-events"
    _, body = await service.operate("GET", path)
    (event,) = (event for event in body["events"] if event["action"] == "api_key.rotate")
    assert event["actor"] == f"api_key:{caller.key_id}"
    assert event["request_id"] == headers["x-request-id"]
    assert secret not in str(event)


async def test_only_the_current_secret_rotates(service):
    """A session of the old secret cannot rotate the key again; the page states why."""
    caller = await service.new_caller("rotor")
    async with visiting(service, caller.key) as visitor:
        action = f"{OWN}/key/rotate"
        await send(visitor, f"{OWN}/key", action, overlap_seconds="3600")
        status, text, _ = await send(visitor, f"{OWN}/key", action, overlap_seconds="3600")
        assert status == 403
        assert "current secret" in text
        assert not re.search(r"rk_[\w-]{43}", text)


async def test_a_refused_form_empties_no_cache(service):
    """Whoever repeats a form that is refused does not make every caller's key be read again."""
    caller, callers = await service.new_caller("rotor"), service.app[api.CALLERS]
    async with visiting(service, caller.key) as visitor:
        action = f"{OWN}/key/rotate"
        await send(visitor, f"{OWN}/key", action, overlap_seconds="3600")
        other = await service.new_caller("bystander")
        await callers.identify(other.key)
        status, _, _ = await send(visitor, f"{OWN}/key", action, overlap_seconds="3600")

    assert status == 403
    assert callers.find(other.key) is not None
