"""Limits at the API: the operator sets them, and they refuse callers' calls."""

import asyncio
import json
from decimal import Decimal

import openai
import pytest
from support import MODEL, ORGANIZATIONS, cost_of, limits_of, make_settings, running, set_limit

from service import api
from service.catalog import Catalog

pytestmark = pytest.mark.shares_service


async def test_money_is_spent_and_then_refused(service):
    """A limit counts what calls cost to the nano-dollar; the call that does not fit is refused in
    the SDK's error format with the numbers that justify it, and has no entry."""
    caller = await service.new_caller(settings={"on_small_budget": "refuse"})
    limit = await set_limit(caller, unit="usd", period="month", ceiling="0.06")
    client = openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key=caller.key, max_retries=0, timeout=10
    )
    messages = [{"role": "user", "content": "Hello"}]

    answered = 0
    async with client:
        with pytest.raises(openai.APIStatusError) as refused:
            while True:
                await client.chat.completions.create(
                    model=MODEL, messages=messages, max_completion_tokens=20_000
                )
                answered += 1
                if answered == 3:
                    # The new ceiling has no room for one more call.
                    change = {"ceiling": "0.03"}
                    await service.operate("PATCH", f"/admin/v1/limits/{limit['id']}", json=change)

    error = refused.value.body
    assert (refused.value.status_code, error["code"]) == (402, "limit_exceeded")
    assert error["type"] == "insufficient_quota"
    assert error["limit"]["id"] == limit["id"]
    assert error["limit"]["scope"] == "organization"
    assert error["limit"]["resets_at"].endswith("-01T00:00:00Z")
    entries = await caller.entries()
    assert answered == len(entries) == 3
    (now,) = await limits_of(caller)
    assert Decimal(now["used"]) == sum(cost_of(entry) for entry in entries)
    assert now["held"] == "0.00"
    assert now["ceiling"] == "0.03"


async def test_a_refusal_by_holds_can_be_retried(service, caller):
    """A call refused only because of other calls' holds is a 429 with Retry-After."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.03")
    async with caller.chat("[tokens=50][delay=0.02]", stream=True, max_tokens=8000) as stream:
        await stream.content.readline()
        async with caller.chat(max_tokens=8000) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            error = (await response.json())["error"]
        await stream.read()

    assert error["code"] == "limit_held"
    async with caller.chat(max_tokens=100) as response:
        assert response.status == 200


async def test_rates_are_what_the_sdk_reads(caller):
    """Every response, plain, streamed or refused, has the x-ratelimit headers that the SDK
    reads."""
    await set_limit(caller, of_key=True, unit="requests", period="minute", ceiling=2)
    await set_limit(caller, unit="tokens", period="hour", ceiling=1_000_000)
    async with caller.chat() as plain, caller.chat(stream=True) as stream, caller.chat() as refused:
        await stream.read()
        assert [plain.status, stream.status, refused.status] == [200, 200, 429]
        lefts = [
            response.headers["x-ratelimit-remaining-requests"]
            for response in (plain, stream, refused)
        ]
        assert lefts == ["1", "0", "0"]
        assert plain.headers["x-ratelimit-limit-requests"] == "2"
        assert int(plain.headers["x-ratelimit-limit-tokens"]) == 1_000_000
        assert 50 <= int(refused.headers["Retry-After"]) <= 62
        error = (await refused.json())["error"]

    assert (error["code"], error["limit"]["scope"]) == ("rate_limited", "api_key")
    assert len(await caller.entries()) == 2


async def test_concurrency_counts_open_calls(caller):
    """As many calls may be open as the ceiling allows, and one that ends makes room."""
    await set_limit(caller, of_key=True, unit="concurrency", ceiling=1)
    async with caller.chat("[tokens=50][delay=0.02]", stream=True) as stream:
        await stream.content.readline()
        async with caller.chat() as response:
            assert response.status == 429
        await stream.read()

    async with caller.chat() as response:
        assert response.status == 200


async def test_a_permanent_refusal_is_not_a_429(caller):
    """A call that can never fit is a 400, because clients retry a 429."""
    await set_limit(caller, unit="tokens", period="minute", ceiling=5)
    async with caller.chat() as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "call_too_large"
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers


async def test_a_limit_on_a_model_binds_that_model(caller):
    """A limit on a model also counts its calls with a suffix."""
    await set_limit(caller, unit="requests", period="day", ceiling=0, model=MODEL)
    for model, status in ((MODEL, 400), (f"{MODEL}:strip_thinking_response=true", 400)):
        async with caller.chat(model=model) as response:
            assert response.status == status
    async with caller.chat(model="venice-uncensored") as response:
        assert response.status == 200


async def test_a_limit_names_its_model_without_a_suffix(service, caller):
    """A limit on one suffix would bind no call, since the books know models by name."""
    path = f"/admin/v1/organizations/{caller.organization_id}/limits"
    new = {"unit": "usd", "period": "day", "ceiling": "0", "model": f"{MODEL}:a=b"}

    status, answer = await service.operate("POST", path, json=new)

    assert (status, answer["error"]["param"]) == (400, "model")
    assert "without a suffix" in answer["error"]["message"]


async def test_no_price_no_money(caller):
    """A model without a price is refused under a limit of money, and passes without one."""
    async with caller.chat(model="unpriced-preview") as response:
        assert response.status == 200
    await set_limit(caller, unit="usd", period="lifetime", ceiling="1000000")
    async with caller.chat(model="unpriced-preview") as response:
        assert response.status == 402
        assert (await response.json())["error"]["code"] == "price_unknown"


async def test_a_burst_never_passes_the_ceiling(caller):
    """Of 60 concurrent calls, what is used and held never exceeds the ceiling."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.05")

    async def call():
        async with caller.chat("[tokens=30][delay=0.01]", stream=True, max_tokens=1000) as response:
            await response.read()
            return response.status

    statuses = await asyncio.gather(*(call() for _ in range(60)))

    (now,) = await limits_of(caller)
    assert set(statuses) == {200, 429}
    assert 0 < Decimal(now["used"]) <= Decimal("0.05")
    assert statuses.count(200) == len(await caller.entries())


async def test_an_estimate_stays_within_the_bound(upstream, caller):
    """An estimate is never above the hold, in money and in tokens, and the caller gets the recorded
    cost."""
    await set_limit(caller, unit="tokens", period="hour", ceiling=1_000_000)
    upstream.faults.push("/chat/completions", "missing_usage", times=1)
    async with caller.chat(
        max_tokens=1, n=20, venice_parameters={"include_venice_system_prompt": False}
    ) as response:
        assert len(await response.read()) // 4 > 400
        bound_tokens = 1_000_000 - int(response.headers["x-ratelimit-remaining-tokens"])
        header_usd = Decimal(response.headers["x-rialto-cost-usd"])

    (entry,) = await caller.entries()
    assert (entry["cost_source"], cost_of(entry)) == ("estimated", header_usd)
    assert entry["input_tokens"] + entry["output_tokens"] <= bound_tokens
    (now,) = await limits_of(caller)
    assert now["used"] <= bound_tokens


async def test_the_output_is_capped_and_reported(upstream, caller):
    """A call without a maximum gets one that a header states; a caller's own maximum is not
    changed."""
    async with caller.chat() as plain, caller.chat(stream=True) as stream:
        await stream.read()
        for response in (plain, stream):
            assert response.headers["x-rialto-max-output-tokens"] == "8192"
    async with caller.chat(max_tokens=77) as response:
        assert "x-rialto-max-output-tokens" not in response.headers
    async with caller.chat(max_completion_tokens=None) as response:
        assert response.headers["x-rialto-max-output-tokens"] == "8192"

    bodies = [json.loads(call.body) for call in upstream.calls.to("/chat/completions")]
    assert [body.get("max_completion_tokens") for body in bodies] == [8192, 8192, None, 8192]
    assert bodies[2]["max_tokens"] == 77


async def test_an_alert_is_in_the_audit(service, caller):
    """Using half of a limit of money records one alert event; the audit is paged backwards in
    time."""
    asked = {"content": "[tokens=2000]", "max_tokens": 2000}
    async with caller.chat(**asked) as response:
        cost = Decimal(response.headers["x-rialto-cost-usd"])
    limit = await set_limit(caller, unit="usd", period="month", ceiling=str(cost * 4))
    for _ in range(3):
        async with caller.chat(**asked) as response:
            assert response.status == 200
    path = f"{ORGANIZATIONS}/{caller.organization_id}/audit-events"
    async with asyncio.timeout(10):
        while True:
            _, body = await service.operate("GET", path, params={"limit": 1})
            if body["events"][0]["action"] == "limit.alert":
                break
            await asyncio.sleep(0.05)

    (event,) = body["events"]
    assert (event["actor"], event["target"]) == ("rialto", limit["id"])
    assert (event["detail"]["percent"], event["detail"]["unit"]) == (50, "usd")
    _, older = await service.operate("GET", path, params={"before": body["next"]})
    actions = [event["action"] for event in older["events"]]
    assert actions == ["limit.create", "api_key.create", "organization.create"]
    for query in ({"before": "0"}, {"before": "x"}):
        status, body = await service.operate("GET", path, params=query)
        assert (status, body["error"]["param"]) == (400, "before")


@pytest.mark.parametrize(
    "name", ["gpt-4o-mini", "venice-llama-3.3-70b", "llama.3.3.70b", "llama-4"]
)
@pytest.mark.parametrize(
    ("limit", "refusal"),
    [
        ({"unit": "usd"}, (402, "limit_exceeded")),
        ({"unit": "requests", "model": MODEL}, (400, "call_too_large")),
    ],
)
async def test_no_other_name_evades_a_limit(service, upstream, name, limit, refusal):
    """A limit applies to every name and spelling of its model, also for a key whose calls may be
    capped."""
    caller = await service.new_caller(settings={"least_output_tokens": 1})
    ceiling = "0.00" if limit["unit"] == "usd" else 0
    await set_limit(caller, **limit, period="day", ceiling=ceiling)
    async with caller.chat(model=name) as response:
        error = (await response.json())["error"]

    expected = (404, "model_not_found") if name == "llama-4" else refusal
    assert (response.status, error["code"]) == expected
    assert upstream.calls.to("/chat/completions") == []


WINDOW = 131_072


@pytest.mark.parametrize(
    ("members", "tokens", "has_price"),
    [
        ({}, 100 + 400, True),
        ({"max_tokens": 5, "max_completion_tokens": 200}, 200, True),
        ({"max_tokens": 5, "max_output_tokens": 300}, 300, True),
        ({"web_search": True}, WINDOW, True),
        ({"venice_parameters": {"enable_web_search": "on"}}, WINDOW, True),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, WINDOW, True),
        ({"messages": [{"role": "user", "content": [{"image_url": "é"}]}]}, WINDOW, True),
        ({"fallbacks": [{"model": "claude-opus-4-8"}]}, 100, True),
        ({"no_such_member": 1}, 100, False),
    ],
)
async def test_the_bound_covers_what_venice_may_charge(caller, members, tokens, has_price):
    """The bound includes media, searches, other spellings of the maximum and other models."""
    body = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]}
    body |= members
    for content in (json.dumps(body), json.dumps(body).replace("image_url", "image\\u005furl")):
        headers = {**caller.headers, "Content-Type": "application/json"}
        async with caller.service.http.post("/v1/quote", data=content, headers=headers) as response:
            quote = await response.json()
        assert response.status == 200, quote
        assert quote["max_tokens"] >= tokens
        assert (quote["max_cost_usd"] is not None) == has_price


async def test_limits_are_managed(caller):
    """Changing, temporarily raising and deleting a limit is audited and applies to the next
    call."""
    limit = await set_limit(caller, unit="requests", period="month", ceiling=0)
    path = f"/admin/v1/limits/{limit['id']}"

    async def change(**members):
        status, body = await caller.service.operate("PATCH", path, json=members)
        assert status == 200, body
        return body

    async def status():
        async with caller.chat() as response:
            return response.status

    assert await status() == 400
    assert (await change(ceiling=1))["ceiling"] == 1
    assert await status() == 200
    assert await status() == 429
    raised = await change(raised_to=2, raised_until="2999-01-01T00:00:00Z")
    assert (raised["ceiling"], raised["used"]) == (2, 1)
    assert await status() == 200
    assert (await change(raised_to=None, raised_until=None))["ceiling"] == 1
    assert await status() == 429
    assert (await caller.service.operate("DELETE", path))[0] == 204
    assert await status() == 200
    assert (await caller.service.operate("DELETE", path))[0] == 404
    assert await limits_of(caller) == []


@pytest.mark.parametrize(
    ("limit", "param"),
    [
        ({"unit": "usd", "period": "month", "ceiling": 5}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "five"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "1_000"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "1e3"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": " 5 "}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "+5"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "５"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "NaN"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "Infinity"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "9" * 5000}, "ceiling"),
        ({"unit": "tokens", "period": "month", "ceiling": "1_000"}, "ceiling"),
        ({"unit": "tokens", "period": "month", "ceiling": 1.5}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "-1"}, "ceiling"),
        ({"unit": "usd", "period": "month", "ceiling": "1000000000.01"}, "ceiling"),
        (
            {"unit": "usd", "period": "month", "ceiling": "1", "alert_percents": [0]},
            "alert_percents[0]",
        ),
        (
            {"unit": "tokens", "period": "month", "ceiling": 1, "alert_percents": [50]},
            "alert_percents",
        ),
        (
            {
                "unit": "tokens",
                "period": "day",
                "ceiling": 1,
                "end_user": "a",
                "each_end_user": True,
            },
            "end_user",
        ),
        ({"unit": "tokens", "period": "day", "ceiling": 1, "end_user": "a" * 129}, "end_user"),
        ({"unit": "usd", "period": "month", "ceiling": "1e99"}, "ceiling"),
        ({"unit": "requests", "period": "month", "ceiling": "5"}, "ceiling"),
        ({"unit": "requests", "period": "month", "ceiling": -5}, "ceiling"),
        ({"unit": "requests", "period": "month", "ceiling": True}, "ceiling"),
        ({"unit": "requests", "ceiling": 5}, "period"),
        ({"unit": "concurrency", "period": "day", "ceiling": 5}, "period"),
        ({"unit": "euro", "period": "day", "ceiling": 5}, "unit"),
        ({"unit": "usd", "period": "year", "ceiling": "5"}, "period"),
        ({"unit": "usd", "period": "day", "ceiling": "5", "celing": "5"}, "celing"),
        ({"unit": "usd", "period": "day", "ceiling": "5", "model": ""}, "model"),
    ],
)
async def test_a_bad_limit_names_the_field(caller, limit, param):
    """An invalid limit names the field and sets nothing."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    status, body = await caller.service.operate("POST", path, json=limit)

    assert (status, body["error"]["param"]) == (400, param)
    assert await limits_of(caller) == []


async def test_a_limit_of_somebody_elses_key_is_refused(service, caller):
    """A limit on a key of another organization is refused."""
    other = await service.new_caller("other")
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    limit = {"unit": "concurrency", "ceiling": 1, "api_key_id": other.key_id}
    status, body = await service.operate("POST", path, json=limit)

    assert (status, body["error"]["param"]) == (404, "api_key_id")


async def test_before_prices_are_known_nothing_is_refused_for_good(
    database_address, upstream, monkeypatch
):
    """A call before prices are known is a 503 that may be retried instead of a 402; a call without
    limits passes."""
    monkeypatch.setattr(Catalog, "keep_fresh", lambda _: asyncio.sleep(3600))
    settings = make_settings(database_address, upstream.url)
    async with running(settings, knows_models=False) as service:
        caller = await service.new_caller()
        async with caller.chat() as response:
            assert response.status == 200
        for limit in (
            {"unit": "usd", "period": "month", "ceiling": "100"},
            {"unit": "tokens", "period": "minute", "ceiling": 5_000},
        ):
            made = await set_limit(caller, **limit)
            async with caller.chat() as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
            await service.operate("DELETE", f"/admin/v1/limits/{made['id']}")
        async with service.http.get("/v1/models", headers=caller.headers) as response:
            assert response.status == 200
        await set_limit(caller, unit="usd", period="month", ceiling="100")
        async with caller.chat() as response:
            assert response.status == 200


async def test_prices_that_come_during_an_admission_refuse_nothing_for_good(
    database_address, upstream, monkeypatch
):
    """A call whose bound was taken before prices arrived is not refused with a 402."""
    monkeypatch.setattr(Catalog, "keep_fresh", lambda _: asyncio.sleep(3600))
    settings = make_settings(database_address, upstream.url)
    async with running(settings, knows_models=False) as service:
        caller = await service.new_caller()
        await set_limit(caller, unit="usd", period="month", ceiling="100")
        async with service.app[api.DATABASE].transaction() as connection:
            await connection.execute("SELECT FROM limits FOR UPDATE")
            calling = asyncio.create_task(caller.chat().__aenter__())
            async with asyncio.timeout(5):
                while not await connection.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted"
                ):
                    await asyncio.sleep(0.01)
            await service.app[api.CATALOG].sync()
            assert service.app[api.CATALOG].is_loaded
        async with await calling as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("until", "rule"),
    [
        ("2020-01-01T00:00:00Z", "must be in the future"),
        ("0001-01-01T00:00:00Z", "must be in the future"),
        ("0001-01-01T00:00:00+14:00", "years 1 to 9999"),
        ("9999-12-31T23:59:59-14:00", "years 1 to 9999"),
        ("2999-01-01T00:00:00", "must have a time zone"),
        ("2999-01-01", "Invalid"),
        ("10000-01-01T00:00:00Z", "Invalid"),
        ("infinity", "Invalid"),
        (4102444800, "Expected"),
    ],
)
async def test_invalid_ends_of_a_raise(caller, until, rule):
    """A time that is past, has no zone, is outside UTC's years or is malformed is refused by field
    name and leaves limit and key unchanged."""
    limit = await set_limit(caller, unit="requests", period="month", ceiling=1)
    path = f"/admin/v1/limits/{limit['id']}"
    status, refused = await caller.service.operate(
        "PATCH", path, json={"raised_to": 2, "raised_until": until}
    )
    assert (status, refused["error"]["param"]) == (400, "raised_until")
    assert rule in refused["error"]["message"]
    assert (await limits_of(caller))[0]["raised_until"] is None

    keys = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    status, refused = await caller.service.operate(
        "POST", keys, json={"name": "a", "expires_at": until}
    )
    assert (status, refused["error"]["param"]) == (400, "expires_at")


@pytest.mark.parametrize("until", ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999+14:00"])
async def test_a_raise_may_have_no_end(caller, until):
    """The last day of the calendar is accepted as the end of a raise."""
    limit = await set_limit(caller, unit="requests", period="month", ceiling=0)
    path = f"/admin/v1/limits/{limit['id']}"
    status, raised = await caller.service.operate(
        "PATCH", path, json={"raised_to": 2, "raised_until": until}
    )
    assert (status, raised["ceiling"], raised["raised_until"][:10]) == (200, 2, "9999-12-31")
    async with caller.chat() as response:
        assert response.status == 200
    await caller.service.new_caller("other", expires_at=until)


@pytest.mark.parametrize("text", ["1_0", " 5", "+5", "５", "1e1", "5.0", "0", "-1", "9" * 5000, ""])
@pytest.mark.parametrize(("path", "param"), [("keys", "limit"), ("audit-events", "before")])
async def test_numbers_of_a_query_are_digits(caller, path, param, text):
    """Numbers in a query that only Python would accept are refused with the parameter's name."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/{path}"
    status, refused = await caller.service.operate("GET", path, params={param: text})
    assert (status, refused["error"]["param"]) == (400, param)
