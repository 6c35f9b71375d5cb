"""Free requests count against limits on requests, so a caller over its rate cannot reach Venice."""

import asyncio

import pytest
from paid_bodies import BODIES
from support import set_limit

from service.gateway import free_requests

PATHS = [
    ("POST", "/v1/video/quote", {"model": "wan", "prompt": "x"}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/llama-3.3-70b", None),
    ("GET", "/v1/models/traits", None),
    ("GET", "/v1/image/styles", None),
    ("GET", "/v1/characters", None),
    ("POST", "/v1/quote", {"model": "llama-3.3-70b", "messages": []}),
    ("GET", "/v1/limits", None),
    ("GET", "/v1/usage", None),
    ("GET", "/v1/api_keys/rate_limits", None),
    ("GET", "/v1/billing/balance", None),
    ("POST", "/v1/video/retrieve", {"model": "wan", "queue_id": "a"}),
    ("POST", "/v1/audio/complete", {"model": "wan", "queue_id": "a"}),
]


async def asked(caller, method, path, body=None):
    """Send a request; return the status and the error."""
    async with caller.service.http.request(
        method, path, json=body, headers=caller.headers
    ) as response:
        answer = await response.json() if response.status == 429 else None
        return response.status, answer, response.headers


def of_callers(upstream):
    """Return the calls that reached Venice, without the service's own requests."""
    own = ("/models", "/api_keys")
    return [call for call in upstream.calls if not call.path.startswith(own)]


@pytest.mark.parametrize("of_key", [True, False])
@pytest.mark.parametrize("period", ["minute", "hour"])
async def test_free_requests_count(caller, upstream, of_key, period):
    """Free requests count together with paid calls, and leave the ledger unchanged."""
    await set_limit(caller, unit="requests", period=period, ceiling=len(PATHS), of_key=of_key)
    for path in PATHS:
        assert (await asked(caller, *path))[0] != 429
    before = of_callers(upstream)

    for path in PATHS:
        status, answer, headers = await asked(caller, *path)
        assert (status, answer["error"]["code"]) == (429, "rate_limited")
        assert answer["error"]["limit"]["used"] == len(PATHS)
        assert 1 <= int(headers["Retry-After"]) <= 60
    async with caller.chat() as response:
        assert response.status == 429
    assert of_callers(upstream) == before
    assert await caller.entries() == []


async def test_paid_calls_count_for_free_requests(caller, upstream):
    """A caller whose rate is used up by paid calls is refused free requests too."""
    await set_limit(caller, unit="requests", period="minute", ceiling=1)
    async with caller.chat() as response:
        assert response.status == 200
    before = of_callers(upstream)

    for path in PATHS:
        assert (await asked(caller, *path))[0] == 429
    body = BODIES["/video/queue"]
    assert (await asked(caller, "POST", "/v1/video/queue", body))[0] == 429
    assert of_callers(upstream) == before


async def test_other_callers_and_limits_do_not_count(service, caller):
    """Limits of a day, of money, of end users, or of another organization do not refuse a free
    request."""
    other = await service.new_caller("other")
    await set_limit(other, unit="requests", period="minute", ceiling=0)
    await set_limit(caller, unit="requests", period="day", ceiling=1)
    await set_limit(caller, unit="usd", period="minute", ceiling="0")
    await set_limit(caller, unit="requests", period="minute", ceiling=0, each_end_user=True)
    for _ in range(3):
        assert (await asked(caller, "GET", "/v1/models"))[0] == 200
    # Under a limit of no requests the refusal is final.
    assert (await asked(other, "GET", "/v1/models"))[0] == 400


async def test_a_callers_own_counters_are_not_evicted(caller, monkeypatch):
    """A caller's own new counters are not evicted when there is room for none."""
    monkeypatch.setattr(free_requests, "MAX_LIMITS", 1)
    for of_key in (True, False):
        await set_limit(caller, unit="requests", period="minute", ceiling=1, of_key=of_key)

    assert (await asked(caller, "GET", "/v1/models"))[0] == 200
    assert (await asked(caller, "GET", "/v1/models"))[0] == 429


async def test_a_price_request_counts(caller, upstream):
    """A queued job that its limits refuse counts as a request, because Venice was asked for its
    price; other refused calls do not."""
    await set_limit(caller, unit="requests", period="minute", ceiling=3)
    money = await set_limit(caller, unit="usd", period="day", ceiling="0")
    job = ("POST", "/v1/video/queue", BODIES["/video/queue"])
    answers = await asyncio.gather(*(asked(caller, *job) for _ in range(10)))
    assert sorted(status for status, *_ in answers) == [402] * 3 + [429] * 7
    assert len(upstream.calls.to("/video/quote")) == 3

    raised = {"ceiling": "100"}
    await caller.service.operate("PATCH", f"/admin/v1/limits/{money['id']}", json=raised)
    assert (await asked(caller, *job))[0] == 429


async def test_a_job_counts_once(caller, upstream):
    """A job whose price was requested first counts once."""
    await set_limit(caller, unit="requests", period="minute", ceiling=3)
    job = ("POST", "/v1/video/queue", BODIES["/video/queue"])
    assert [(await asked(caller, *job))[0] for _ in range(4)] == [200, 200, 200, 429]
    assert len(upstream.calls.to("/video/quote")) == 3


async def test_a_limit_of_one_model_counts_calls_of_that_model_alone(caller, upstream):
    """A limit of one model counts neither free requests nor calls of other models."""
    video = BODIES["/video/queue"]
    await set_limit(caller, unit="requests", period="minute", ceiling=1, model=video["model"])
    await set_limit(caller, unit="requests", period="minute", ceiling=100)
    await set_limit(caller, unit="usd", period="day", ceiling="0", model=video["model"])
    for _ in range(3):
        assert (await asked(caller, "GET", "/v1/models"))[0] == 200
    statuses = [(await asked(caller, "POST", "/v1/video/queue", video))[0] for _ in range(2)]
    assert statuses == [402, 429]
    _, answer, _ = await asked(caller, "POST", "/v1/video/queue", video)
    assert answer["error"]["limit"]["model"] == video["model"]
    async with caller.chat() as response:
        assert response.status == 200
