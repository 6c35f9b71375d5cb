"""Retries, cooldowns and failing upstream keys, and what callers notice of them."""

import asyncio
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest
from paid_bodies import BODIES, payload
from support import MODEL, ORGANIZATIONS, Caller, cost_of, limits_of, set_limit
from upstream import KEYS

from service import upstream as upstream_keys
from service.api import DATABASE, KEYRING, VENICE
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.background import upstream_keys as background_keys
from service.upstream import Source


async def with_keys(service):
    """Add the other upstream keys to the one in the settings."""
    database, keyring = service.app[DATABASE], service.app[KEYRING]
    for name in KEYS[1:]:
        async with database.transaction() as conn:
            await upstream_keys.add(conn, keyring, Actor(name="test"), name, name, None)
    keys = await upstream_keys.load(database, keyring, KEYS[0])
    service.app[VENICE].keys.replace(keys)
    assert [key.secret for key in keys] == list(KEYS)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_short_outage_is_retried(caller, upstream, stream):
    """A call that succeeds on a retry has one entry, and a header lists the attempts. Each attempt
    counts as in flight with its key until it ends."""
    upstream.faults.push("/chat/completions", "at_capacity", times=1)
    async with caller.chat(stream=stream) as response:
        await response.read()

    assert response.status == 200
    assert response.headers["x-rialto-attempts"] == "upstream_busy, ok"
    assert (await caller.only_entry())["outcome"] == "ok"
    assert not any(caller.service.app[VENICE].keys.in_flight.values())
    await caller.service.audit()


async def test_a_call_answered_at_once_has_no_attempts_header(caller):
    """The header for attempts is absent when the first attempt succeeds."""
    async with caller.chat() as response:
        assert "x-rialto-attempts" not in response.headers


async def test_a_long_wait_is_left_to_the_caller(caller, upstream):
    """When Venice names a pause of 30 seconds, the caller gets the error and the pause at once."""
    upstream.faults.push("/chat/completions", "model_overloaded")
    async with caller.chat() as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "30")

    assert len(upstream.calls.to("/chat/completions")) == 1


@pytest.mark.parametrize("name", ["x-stainless-timeout", "x-stainless-read-timeout"])
@pytest.mark.parametrize(
    ("stated", "attempts"),
    [("0.000001", 1), ("600", 3), ("600.0", 3), ("NOT_GIVEN", 3), ("-1", 3), ("0", 3)],
)
async def test_no_retry_after_the_callers_timeout(
    service, caller, upstream, name, stated, attempts
):
    """The service does not retry beyond the timeout that SDKs send in a header."""
    await with_keys(service)
    upstream.faults.push("/chat/completions", "at_capacity", times=2)
    caller.headers[name] = stated
    async with caller.chat() as response:
        assert response.status == (200 if attempts == 3 else 503)

    assert len(upstream.calls.to("/chat/completions")) == attempts


@pytest.mark.parametrize("kind", ["invalid_key", "insufficient_balance", "rate_limited"])
async def test_another_key_takes_over(service, caller, upstream, kind):
    """Another upstream key takes over, and the failing key gets a cooldown."""
    await with_keys(service)
    upstream.faults.push("*", kind, key="sandbox")
    for _ in range(12):
        async with caller.chat() as response:
            assert response.status == 200
        # The browser policy header has a rule of that name.
        headers = str(response.headers).replace("; sandbox", "")
        assert "sandbox" not in headers

    asked = [call.headers["Authorization"] for call in upstream.calls.to("/chat/completions")]
    assert asked.count("Bearer sandbox") == 1
    assert len(await caller.entries()) == 12


async def test_a_key_cools_down_when_its_rate_is_used_up(service, upstream):
    """A key whose rate an answer reports as used up is not used until the time that Venice
    names."""
    venice = service.app[VENICE]
    (key,) = venice.keys.all
    upstream.faults.push("/chat/completions", "rate_spent", times=1, seconds=30)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    answer = await venice.post("/chat/completions", msgspec.json.encode(body), {}, key)
    answer.close()
    venice.keys.succeeded(key, MODEL, Source(UUID(int=7), UUID(int=8)), answer.raw_headers)

    (rest,) = venice.keys.cooldowns()[key.id]
    assert (rest.model, rest.reason) == (MODEL, "rate used up")
    assert 20 < rest.seconds_left <= 30


@pytest.mark.parametrize("path", ["/image/generate", "/video/queue", "/audio/speech"])
async def test_media_is_not_retried(service, caller, upstream, path):
    """A media call is not retried after a busy answer, which may have started it, but is retried
    with another key after a refusal of the key."""
    await with_keys(service)
    upstream.faults.push(path, "at_capacity")
    url = f"/v1{path}"
    async with service.http.post(url, headers=caller.headers, **payload(BODIES[path])) as response:
        assert response.status == 503
    assert len(upstream.calls.to(path)) == 1

    upstream.faults.clear()
    for key in KEYS[:2]:
        upstream.faults.push(path, "insufficient_balance", key=key)
    async with service.http.post(url, headers=caller.headers, **payload(BODIES[path])) as response:
        assert response.status == 200
    await service.audit()


@pytest.mark.parametrize("kind", ["inference_failed", "bad_gateway", "timeout", "disconnect"])
async def test_a_possible_charge_is_not_retried(service, caller, upstream, kind):
    """A call that may have been charged is not retried, however many keys there are."""
    await with_keys(service)
    upstream.faults.push("/chat/completions", kind)
    async with caller.chat() as response:
        assert response.status in (502, 504)
        assert "x-rialto-attempts" not in response.headers

    assert len(upstream.calls.to("/chat/completions")) == 1


async def test_a_spent_key_is_not_used_again(service, caller, upstream):
    """A key without balance is not used until a free probe succeeds, because failing calls would
    lock it out."""
    upstream.faults.push("*", "insufficient_balance")
    for _ in range(5):
        async with caller.chat() as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "60")
    assert len(upstream.calls.to("/chat/completions")) == 1

    upstream.faults.clear()
    async with asyncio.timeout(20):
        while service.app[VENICE].keys.out_of_service():
            await asyncio.sleep(0.05)
    async with caller.chat() as response:
        assert response.status == 200


async def test_a_model_that_keeps_failing_gets_a_cooldown(caller, upstream):
    """The circuit breaker refuses one caller's calls of a failing model at once and does not affect
    other callers."""
    upstream.faults.push("/chat/completions", "inference_failed", times=5)
    codes = []
    for _ in range(7):
        async with caller.chat() as response:
            codes.append((await response.json())["error"]["code"])

    assert codes == ["upstream_error"] * 5 + ["upstream_busy"] * 2
    async with caller.chat(model="venice-uncensored") as response:
        assert response.status == 200


async def test_a_balance_that_does_not_last_a_day_is_an_event(
    service, caller, upstream, monkeypatch
):
    """A balance that will not last a day is recorded once in the operator's audit log, and the
    balance is kept."""
    monkeypatch.setattr(background_keys, "BALANCES_EVERY_S", 0)
    monkeypatch.setattr(background_keys, "FIRST_BALANCES_S", 0)
    database, venice = service.app[DATABASE], service.app[VENICE]
    venice.keys.replace(await upstream_keys.load(database, service.app[KEYRING], KEYS[0]))
    balances = background_keys.Balances()
    for _ in range(3):
        await balances.check(database, venice)
        long = BODIES["/video/queue"] | {"duration": "20000s"}
        async with service.http.post(
            "/v1/video/queue", headers=caller.headers, json=long
        ) as response:
            assert response.status == 200

    path = f"{ORGANIZATIONS}/{OPERATOR_ORGANIZATION_ID}/audit-events"
    _, body = await service.operate("GET", path)
    lows = [event for event in body["events"] if event["action"] == "upstream_key.low"]
    assert [event["detail"]["name"] for event in lows] == ["environment"]
    (key,) = await upstream_keys.list_stored(database)
    assert (key.balance_usd, key.tier) == ("998000.00", "paid")


@pytest.mark.parametrize("idle", range(3))
async def test_a_job_is_fetched_with_the_key_it_was_queued_with(service, caller, upstream, idle):
    """A queued job is fetched with the key that queued it, because no other account knows it, and
    no other key is tried."""
    await with_keys(service)
    keys = service.app[VENICE].keys
    for index, key in enumerate(keys.all):
        keys.in_flight[key.id] = 0 if index == idle else 10
    asked = BODIES["/video/queue"]
    async with service.http.post("/v1/video/queue", headers=caller.headers, json=asked) as response:
        queue_id = (await response.json())["queue_id"]

    chosen = keys.all[idle].secret
    ticket = {"model": asked["model"], "queue_id": queue_id}
    for step, content_type in (
        ("retrieve", "application/json"),
        ("retrieve", "application/json"),
        ("retrieve", "video/mp4"),
        ("complete", "application/json"),
    ):
        url = f"/v1/video/{step}"
        async with service.http.post(url, headers=caller.headers, json=ticket) as response:
            assert (response.status, response.content_type) == (200, content_type)
    asked_with = {
        call.headers["Authorization"]
        for step in ("retrieve", "complete")
        for call in upstream.calls.to(f"/video/{step}")
    }
    assert asked_with == {f"Bearer {chosen}"}
    async with service.http.post(url, headers=caller.headers, json=ticket) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            400,
            "upstream_rejected",
        )


async def test_a_key_that_is_gone_leaves_its_jobs_to_the_others(service, caller, upstream):
    """The jobs of a disabled key are fetched with the other keys, which may be of the same
    account."""
    await with_keys(service)
    keys = service.app[VENICE].keys
    for index, key in enumerate(keys.all):
        keys.in_flight[key.id] = 0 if index == 1 else 10
    asked = BODIES["/video/queue"]
    async with service.http.post("/v1/video/queue", headers=caller.headers, json=asked) as response:
        queue_id = (await response.json())["queue_id"]
    keys.replace([key for key in keys.all if key.secret != "second"])

    ticket = {"model": asked["model"], "queue_id": queue_id}
    async with service.http.post(
        "/v1/video/retrieve", headers=caller.headers, json=ticket
    ) as response:
        assert response.status == 400
    assert len(upstream.calls.to("/video/retrieve")) == 2


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b'{"queue_id": 7}'])
async def test_a_request_without_a_job_id_is_answered_here(service, caller, upstream, body):
    """A request for a job that names none is not sent to Venice, which would count it against the
    key."""
    url = "/v1/video/retrieve"
    async with service.http.post(url, headers=caller.headers, data=body) as response:
        assert (response.status, upstream.calls.to("/video/retrieve")) == (400, [])


POISON = [
    {"kind": "edge_page"},
    {"kind": "edge_page", "status": 401},
    {"kind": "edge_page", "status": 402},
    {"kind": "edge_page", "status": 429},
    {"kind": "edge_page", "status": 503},
    {"kind": "edge_page", "status": 502},
    {"kind": "invalid_key"},
    {"kind": "insufficient_balance"},
    {"kind": "privacy_restricted"},
    {"kind": "error_budget"},
    {"kind": "inference_failed"},
    {"kind": "timeout"},
    {"kind": "disconnect"},
    {"kind": "garbage"},
]


@pytest.mark.parametrize("is_same_organization", [False, True])
@pytest.mark.parametrize("fault", POISON, ids=lambda fault: "-".join(map(str, fault.values())))
async def test_one_callers_poison_reaches_no_other(
    service, caller, upstream, fault, is_same_organization
):
    """One caller's rejected prompts affect no other caller, however often it sends them and even
    with one key: Venice, asked about the key, reports it valid."""
    victim = await service.new_caller("victim")
    if is_same_organization:
        _, made = await service.operate(
            "POST", f"{ORGANIZATIONS}/{caller.organization_id}/keys", json={"name": "victim"}
        )
        victim = Caller(service, caller.organization_id, made)
    for _ in range(3):
        upstream.faults.push("/chat/completions", **fault)
        for _ in range(6):
            async with caller.chat() as response:
                assert response.status >= 400
        upstream.faults.clear()
        async with victim.chat() as response:
            assert response.status == 200, await response.text()
            assert "x-rialto-attempts" not in response.headers
    assert service.app[VENICE].keys.out_of_service() == {}


async def test_the_edges_refusal_concerns_one_request(service, caller, upstream):
    """A refusal by the edge is not charged, is not retried, and does not affect the caller's next
    call."""
    upstream.faults.push("/chat/completions", "edge_page", times=6)
    for _ in range(6):
        async with caller.chat("/etc/passwd") as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (403, "upstream_rejected")
            assert "<html" not in error["message"]
    async with caller.chat() as response:
        assert response.status == 200
    assert len(upstream.calls.to("/chat/completions")) == 7
    *refused, _ = reversed(await caller.entries())
    assert {cost_of(entry) for entry in refused} == {0}


async def test_venice_is_asked_about_a_key_once_for_all(service, upstream):
    """Venice is asked about a key once, however many concurrent calls it refused."""
    callers = [await service.new_caller() for _ in range(8)]
    upstream.faults.push("*", "insufficient_balance")

    async def ask(one):
        async with one.chat() as response:
            return response.status

    assert set(await asyncio.gather(*map(ask, callers))) == {503}
    assert len(upstream.calls.to("/api_keys/rate_limits")) <= 2
    assert list(service.app[VENICE].keys.out_of_service()) == ["environment"]


@pytest.mark.parametrize("kind", ["invalid_key", "insufficient_balance"])
async def test_a_refusal_at_an_unknown_path_affects_no_key(service, caller, upstream, kind):
    """A refusal at an unknown path may be about the path: the key gets no cooldown, and no other
    key is tried."""
    await with_keys(service)
    url = "/api/v1/video/transcriptions"
    upstream.faults.push("/video/transcriptions", kind)
    async with service.http.post(url, json={}, headers=caller.headers) as response:
        assert response.status == 503
    assert len(upstream.calls.to("/video/transcriptions")) == 1
    assert service.app[VENICE].keys.out_of_service() == {}


class TestRepeatedFailures:
    """Keys with ``repeat_failed``, whose failed text calls are retried although Venice may have
    charged."""

    @pytest.fixture
    async def caller(self, service):
        caller = await service.new_caller(settings={"repeat_failed": True})
        await set_limit(caller, unit="usd", period="day", ceiling="100")
        await set_limit(caller, unit="tokens", period="hour", ceiling=10**9)
        return caller

    @pytest.mark.parametrize("kind", ["inference_failed", "bad_gateway"])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_both_attempts_are_booked(self, service, caller, upstream, kind, stream):
        """The call's one entry has the answer's cost and an estimate for the failed attempt."""
        upstream.faults.push("/chat/completions", kind, times=1)
        async with caller.chat("[tokens=3]", stream=stream) as response:
            await response.read()
            assert response.status == 200
            assert response.headers["x-rialto-attempts"] == "upstream_error, ok"

        entry = await caller.only_entry()
        (charged,) = [call.charged_nanos for call in upstream.calls if call.charged_nanos]
        assert (entry["outcome"], entry["cost_source"]) == ("ok", "estimated")
        plain = await service.new_caller()
        await set_limit(plain, unit="usd", period="day", ceiling="100")
        upstream.faults.push("/chat/completions", kind, times=1)
        async with plain.chat("[tokens=3]", stream=stream) as response:
            assert response.status == 502
        failed = cost_of(await plain.only_entry())
        assert cost_of(entry) == Decimal(charged) / 10**9 + failed
        assert failed > 0

    async def test_a_second_failure_is_the_last(self, caller, upstream):
        """After a second failure the call fails, and both attempts are estimated."""
        upstream.faults.push("/chat/completions", "inference_failed")
        async with caller.chat("[tokens=3]") as response:
            assert response.status == 502
        entry = await caller.only_entry()

        plain = await caller.service.new_caller()
        await set_limit(plain, unit="usd", period="day", ceiling="100")
        async with plain.chat("[tokens=3]") as response:
            assert response.status == 502
        assert len(upstream.calls.to("/chat/completions")) == 3
        assert cost_of(entry) == 2 * cost_of(await plain.only_entry()) > 0

    async def test_the_hold_is_for_both(self, service, upstream):
        """The hold covers two attempts, so a limit with room for one refuses the call."""
        bounds = []
        for repeats in (False, True):
            settings = {"repeat_failed": repeats, "on_small_budget": "refuse"}
            caller = await service.new_caller(settings=settings)
            limit = await set_limit(caller, unit="usd", period="day", ceiling="100")
            upstream.faults.push("/chat/completions", "barrier")
            waiting = asyncio.create_task(caller.chat().__aenter__())
            await upstream.faults.wait_held(1)
            (held,) = await limits_of(caller)
            bounds.append(Decimal(held["held"]))
            upstream.faults.clear()
            (await waiting).close()
        assert bounds[1] == 2 * bounds[0] > 0

        path = f"/admin/v1/limits/{limit['id']}"
        await service.operate("PATCH", path, json={"ceiling": str(bounds[0])})
        async with caller.chat() as response:
            assert (response.status, (await response.json())["error"]["code"]) == (
                402,
                "limit_exceeded",
            )

    async def test_a_failure_that_is_not_repeated_is_booked_once(self, service, caller, upstream):
        """When an outage has used up the retry budget, the call fails without a retry and is
        recorded once."""
        plain = await service.new_caller()
        await set_limit(plain, unit="usd", period="day", ceiling="100")
        costs = []
        for one in (caller, plain):
            budgets, key_id = service.app[VENICE].budgets, UUID(one.key_id)
            while budgets.spend(key_id):
                pass
            upstream.faults.push("/chat/completions", "inference_failed", times=1)
            async with one.chat("[tokens=3]") as response:
                assert response.status == 502
            costs.append(cost_of(await one.only_entry()))
        assert len(upstream.calls.to("/chat/completions")) == 2
        assert costs[0] == costs[1] > 0

    async def test_a_quote_is_for_both(self, service):
        """A quote states what two attempts may cost, which is what the call holds."""
        bounds = []
        for repeats in (False, True):
            caller = await service.new_caller(settings={"repeat_failed": repeats})
            body = BODIES["/chat/completions"]
            async with service.http.post(
                "/v1/quote", json=body, headers=caller.headers
            ) as response:
                quote = await response.json()
            bounds.append((Decimal(quote["max_cost_usd"]), quote["max_tokens"]))
        assert bounds[1] == tuple(2 * bound for bound in bounds[0])

    @pytest.mark.parametrize("kind", ["timeout", "disconnect"])
    async def test_a_call_that_may_still_run_is_not_retried(self, caller, upstream, kind):
        """A call that may still be running at Venice is not retried."""
        upstream.faults.push("/chat/completions", kind)
        async with caller.chat() as response:
            assert response.status in (502, 504)
        assert len(upstream.calls.to("/chat/completions")) == 1

    async def test_media_is_never_retried(self, service, caller, upstream):
        """A media call is not retried, whatever the key's settings are."""
        upstream.faults.push("/image/generate", "inference_failed")
        body = BODIES["/image/generate"]
        url = "/v1/image/generate"
        async with service.http.post(url, headers=caller.headers, **payload(body)) as response:
            assert response.status == 502
        assert len(upstream.calls.to("/image/generate")) == 1
