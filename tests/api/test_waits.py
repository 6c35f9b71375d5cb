"""A refusal states how long to wait, whether to retry, and what would fit."""

import asyncio
import inspect
import re

import aiohttp
import pytest
from aiohttp import web
from support import MODEL, OPERATOR_KEY, set_limit

from service import api, errors

pytestmark = pytest.mark.shares_service

ROLL = """
    UPDATE public.limits
    SET bucket_at = bucket_at - interval '60 s',
        buckets = (SELECT array_agg(buckets[(i + 59) % 61 + 1] ORDER BY i)
                   FROM generate_series(1, 61) i)
    WHERE buckets IS NOT NULL
"""
AGE = """
    UPDATE public.ledger_entries
    SET limit_windows = ARRAY(SELECT w - interval '60 s' FROM unnest(limit_windows) w)
"""


async def refused(response):
    """Return the error of a refused call."""
    return (await response.json())["error"]


async def let_a_minute_pass(database):
    """Move the rates of a minute and what they count a minute into the past."""
    async with database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(ROLL)
        await conn.execute(AGE)


async def new_second(database):
    """Wait for the beginning of a second of the database's clock, because buckets are seconds."""
    while (await database.now()).microsecond > 100_000:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_a_minute_limits_retry_after_is_right(service, caller, unit):
    """A limit of a minute never sends a Retry-After above 60, although its last call counts for up
    to 61 s, and a retry after that time is admitted."""
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    async with service.http.post("/v1/quote", json=body, headers=caller.headers) as response:
        ceiling = 1 if unit == "requests" else (await response.json())["max_tokens"]
    await set_limit(caller, unit=unit, period="minute", ceiling=ceiling)
    database = service.app[api.DATABASE]
    await new_second(database)
    async with caller.chat(max_tokens=1) as response:
        assert response.status == 200
    async with caller.chat(max_tokens=1) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "60")
        assert response.headers["x-should-retry"] == "true"
    await let_a_minute_pass(database)
    async with caller.chat(max_tokens=1) as response:
        assert response.status == 200, await response.text()


async def test_few_callers_wait_for_a_rate(service, caller, monkeypatch):
    """Callers beyond the number that may wait for a rate are refused at once with a Retry-After of
    a second."""
    monkeypatch.setattr(service.app[api.GATEWAY]._ledger, "_waiting", asyncio.Semaphore(2))
    await set_limit(caller, unit="requests", period="minute", ceiling=1)
    database = service.app[api.DATABASE]
    await new_second(database)
    async with caller.chat() as response:
        assert response.status == 200
    await let_a_minute_pass(database)

    async def call():
        async with caller.chat() as response:
            return response.status, response.headers.get("Retry-After")

    answers = await asyncio.gather(*(call() for _ in range(6)))

    assert sorted(status for status, _ in answers) == [200, 429, 429, 429, 429, 429]
    assert sum(answer == (429, "1") for answer in answers) == 4


@pytest.mark.parametrize(
    ("status", "method", "path", "key", "body"),
    [
        (400, "POST", "/v1/chat/completions", "own", {"model": MODEL}),
        (400, "POST", "/v1/messages", "own", {"model": MODEL}),
        (401, "POST", "/v1/chat/completions", "rk_wrong", {}),
        (401, "POST", "/v1/messages", "rk_" + "A" * 43, {}),
        (403, "GET", "/admin/v1/organizations", "own", None),
        (404, "POST", "/v1/chat/completions", "own", {"model": "none", "messages": [{}]}),
        (404, "GET", "/nowhere", "own", None),
        (405, "PATCH", "/v1/chat/completions", "own", {}),
        (409, "PUT", f"/admin/v1/models/{MODEL}", OPERATOR_KEY, {"targets": [MODEL]}),
    ],
)
async def test_final_refusals_forbid_a_retry(service, caller, status, method, path, key, body):
    """A refusal that would be repeated carries ``x-should-retry: false``."""
    headers = {"Authorization": f"Bearer {caller.key if key == 'own' else key}"}
    async with service.http.request(method, path, json=body, headers=headers) as response:
        assert response.status in (status, 400)
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers


CODES = {
    code: kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.ServiceError)
    for code in kind.codes()
}
FINAL = {
    *("invalid_request", "invalid_json", "malformed_request", "unauthenticated"),
    *("missing_api_key", "malformed_api_key", "invalid_api_key", "expired_api_key"),
    *("revoked_api_key", "limit_exceeded", "price_unknown", "forbidden", "organization_inactive"),
    *("address_not_allowed", "endpoint_not_allowed"),
    *("model_not_allowed", "not_found", "model_not_found", "model_retired", "method_not_allowed"),
    *("conflict", "books_disagree", "payload_too_large", "unsupported_encoding", "head_too_large"),
    *("call_too_large", "upstream_rejected", "context_length_exceeded"),
}
MAY_BE_CHARGED_AGAIN = {"upstream_error", "upstream_cut", "upstream_timeout", "internal_error"}


@pytest.mark.parametrize("wait_s", [None, 1, 60, 61])
@pytest.mark.parametrize("code", sorted(CODES))
async def test_every_code_states_whether_to_retry(service, code, wait_s):
    """Each code is final, asks for a retry within a minute, or leaves it to the client; a longer
    wait is final, since clients do not wait for it."""

    async def refuse(_):
        raise CODES[code]("No.", code=code, retry_after_s=wait_s)

    app = web.Application()
    for key in (api.SETTINGS, api.STATUS):
        app[key] = service.app[key]
    app.router.add_get("/", refuse)
    runner = api.make_runner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}/") as response:
            should_retry = response.headers.get("x-should-retry")
            retry_after = response.headers.get("Retry-After")
    finally:
        await runner.cleanup()

    if code in FINAL or wait_s == 61:
        assert should_retry == "false"
    elif wait_s is not None:
        assert (should_retry, retry_after) == ("true", str(wait_s))
    elif code == "rate_limited":
        # Without a wait a lifetime limit is used up.
        assert (should_retry, retry_after) == ("false", None)
    elif code in MAY_BE_CHARGED_AGAIN:
        assert (should_retry, retry_after) == (None, None)
    else:
        assert should_retry == "true"
        assert 1 <= int(retry_after) <= 60


@pytest.mark.parametrize(
    ("limit", "status", "code"),
    [
        ({"unit": "requests", "period": "minute", "ceiling": 0}, 400, "call_too_large"),
        ({"unit": "requests", "period": "day", "ceiling": 0}, 400, "call_too_large"),
        ({"unit": "tokens", "period": "hour", "ceiling": 9}, 400, "call_too_large"),
        ({"unit": "tokens", "period": "lifetime", "ceiling": 9}, 400, "call_too_large"),
        ({"unit": "concurrency", "ceiling": 0}, 400, "call_too_large"),
        ({"unit": "usd", "period": "minute", "ceiling": "0.00"}, 402, "limit_exceeded"),
        ({"unit": "usd", "period": "lifetime", "ceiling": "0.00"}, 402, "limit_exceeded"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_never_fits_is_final(caller, limit, status, code, path):
    """A call that can never fit gets the final refusal of the exceeded limit, in both API
    formats."""
    made = await set_limit(caller, **limit)
    async with caller.chat(path=path, max_tokens=50) as response:
        error = await refused(response)
        assert (response.status, error["code"]) == (status, code)
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers
    assert error["limit"]["id"] == made["id"]
    assert "fits" not in error["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/limits"])
async def test_a_free_request_that_never_fits_is_final(service, caller, path):
    """A free request under a limit of no requests gets the final refusal of a paid call."""
    await set_limit(caller, unit="requests", period="minute", ceiling=0)
    async with service.http.get(path, headers=caller.headers) as response:
        error = await refused(response)
        assert (response.status, error["code"]) == (400, "call_too_large")
        assert response.headers["x-should-retry"] == "false"
        assert "Retry-After" not in response.headers


async def test_a_lifetime_that_is_used_up_is_final(caller):
    """A lifetime limit that is used up refuses for good."""
    await set_limit(caller, unit="requests", period="lifetime", ceiling=1)
    async with caller.chat() as response:
        assert response.status == 200
    async with caller.chat() as response:
        assert (response.status, response.headers["x-should-retry"]) == (429, "false")


@pytest.mark.parametrize("period", ["hour", "day", "month"])
async def test_a_long_wait_is_not_repeated_at_once(caller, period):
    """SDKs ignore a `Retry-After` of more than a minute and repeat the call within seconds."""
    await set_limit(caller, unit="requests", period=period, ceiling=1)
    async with caller.chat() as response:
        assert response.status == 200
    async with caller.chat() as response:
        wait_s = int(response.headers["Retry-After"])
        should_retry = response.headers["x-should-retry"]
        assert (response.status, should_retry) == (429, "true" if wait_s <= 60 else "false")


async def test_temporary_refusals_allow_a_retry(caller, upstream):
    """Refusals by rates, by other calls' holds and by Venice ask for a retry."""
    await set_limit(caller, unit="concurrency", ceiling=1)
    async with caller.chat("[tokens=50][delay=0.02]", stream=True) as stream:
        await stream.content.readline()
        async with caller.chat() as response:
            assert response.status == 429
            assert response.headers["x-should-retry"] == "true"
        await stream.read()
    upstream.faults.push("/chat/completions", "model_overloaded")
    async with caller.chat() as response:
        assert response.status == 503
        assert response.headers["x-should-retry"] == "true"


CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", CHAT, "max_completion_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 60_000}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 60_000, "n": 2}, None),
        ("/v1/chat/completions", {**CHAT, "max_output_tokens": 60_000}, "max_output_tokens"),
        ("/v1/messages", {**CHAT, "max_tokens": 60_000}, "max_tokens"),
        ("/v1/responses", {"input": "Hello"}, "max_output_tokens"),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 60_000}, "max_output_tokens"),
    ],
)
@pytest.mark.parametrize(
    ("limits", "status"),
    [
        ([{"unit": "usd", "period": "day", "ceiling": "0.005"}], 402),
        (
            [
                {"unit": "usd", "period": "day", "ceiling": "0.005"},
                {"unit": "usd", "period": "lifetime", "ceiling": "0.004", "of_key": True},
                {"unit": "tokens", "period": "month", "ceiling": 10**9},
            ],
            402,
        ),
        ([{"unit": "tokens", "period": "day", "ceiling": 6000}], 400),
    ],
)
async def test_the_refusal_states_with_how_much_output_it_fits(
    service, upstream, path, body, field, limits, status
):
    """A refusal states the maximum output that would fit, by the caller's name for it; that much is
    admitted, a little more is not, and a quote states the same."""
    caller = await service.new_caller(settings={"on_small_budget": "refuse"})
    for limit in limits:
        await set_limit(caller, **limit)
    field = field or "max_completion_tokens"
    body = {"model": MODEL, **body}
    http, headers = caller.service.http, caller.headers

    async def post(url, **changes):
        async with http.post(url, json={**body, **changes}, headers=headers) as response:
            return response.status, await response.json()

    answered, refusal = await post(path)
    message = refusal["error"]["message"]
    most = int(re.search(rf" With {field} ≤ (\d+) it fits\.$", message)[1])
    _, quote = await post(path.replace("/v1/", "/v1/quote/"))
    _, more = await post(path.replace("/v1/", "/v1/quote/"), **{field: most + 64})

    assert answered == status
    assert quote["refusal"]["message"] == message
    assert more["would_pass"] is False
    assert upstream.calls.to("/chat/completions") == upstream.calls.to("/responses") == []
    assert (await post(path, **{field: most}))[0] == 200
