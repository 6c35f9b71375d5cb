"""Chat completions: what the caller, Venice and the ledger get, on every way that a call can
end."""

import asyncio
import json
from decimal import Decimal

import aiohttp
import pytest
from support import MODEL, cost_of, make_settings, running

pytestmark = pytest.mark.shares_service

PATHS = ["/v1/chat/completions", "/api/v1/chat/completions"]


async def events(response):
    """Return the data of each server-sent event of a complete response, and the comments."""
    text = (await response.read()).decode()
    blocks = [block for block in text.split("\n\n") if block]
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    return data, [block for block in blocks if block.startswith(":")]


async def settled(caller, count=1):
    """Wait until there are so many entries; a call that lost its client settles in the
    background."""
    async with asyncio.timeout(5):
        while len(entries := await caller.entries()) < count:
            await asyncio.sleep(0.02)
    return entries


async def wait_for_cancellation(upstream):
    """Wait until Venice has noticed that its response was cancelled."""
    async with asyncio.timeout(2):
        while upstream.calls.to("/chat/completions")[0].cut_at is None:
            await asyncio.sleep(0.01)


@pytest.fixture
async def caller(bounded_caller):
    """A caller with limits of every kind, which must be right however a call ends."""
    return bounded_caller


@pytest.mark.parametrize("path", PATHS)
async def test_a_plain_call(upstream, caller, path):
    """A plain call returns Venice's response and is recorded at Venice's cost."""
    async with caller.chat("Hello there", path=path) as response:
        answer = await response.json()

        assert response.status == 200
        assert answer["object"] == "chat.completion"
        entry = await caller.only_entry()
        assert response.headers["x-request-id"] == entry["request_id"]
        assert Decimal(response.headers["x-rialto-cost-usd"]) == cost_of(entry)
    usage = answer["usage"]
    assert (entry["input_tokens"], entry["output_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert (entry["outcome"], entry["status"], entry["cost_source"]) == ("ok", 200, "reported")
    assert (entry["endpoint"], entry["model"]) == ("/chat/completions", MODEL)
    assert cost_of(entry) * 10**9 == upstream.calls.charged_nanos > 0


@pytest.mark.parametrize("path", PATHS)
async def test_a_streamed_call(upstream, caller, path):
    """A stream arrives event by event, ends with [DONE], and is recorded before its end is sent."""
    async with caller.chat("[tokens=30]", path=path, stream=True) as response:
        data, _ = await events(response)
        entry = await caller.only_entry()

        assert response.status == 200
        assert response.content_type == "text/event-stream"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["x-request-id"] == entry["request_id"]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["usage"]["completion_tokens"] == entry["output_tokens"] == 30
    assert (entry["outcome"], entry["cost_source"], entry["is_stream"]) == ("ok", "reported", True)
    assert cost_of(entry) * 10**9 == upstream.calls.charged_nanos > 0


async def test_the_response_is_venices_to_the_byte(upstream, caller):
    """The caller gets the same body that Venice returns to a direct call."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "[tokens=5]"}], "stream": True}
    direct = {"Authorization": "Bearer sandbox"}
    async with aiohttp.ClientSession() as http:
        url = f"{upstream.url}/api/v1/chat/completions"
        async with http.post(url, json=body, headers=direct) as response:
            theirs, _ = await events(response)
    async with caller.chat("[tokens=5]", stream=True) as response:
        ours, _ = await events(response)

    assert len(ours) == len(theirs)
    assert json.loads(ours[-2])["cost"] == json.loads(theirs[-2])["cost"]


async def test_the_body_is_spliced_not_re_encoded(upstream, service):
    """Venice gets the caller's bytes with odd spacing kept, except that user is replaced and a
    missing output cap is added."""
    caller = await service.new_caller()
    body = (
        b'{ "model":"%s",\n  "messages" : [{"role":"user","content":"caf\\u00e9 \xc3\xa9"}],'
        b' "user": "alice@example.com", "temperature":1.0e0 }' % MODEL.encode()
    )
    headers = {**caller.headers, "Content-Type": "application/json"}
    async with caller.service.http.post(PATHS[0], data=body, headers=headers) as response:
        assert response.status == 200

    (call,) = upstream.calls.to("/chat/completions")
    pseudonym = json.loads(call.body)["user"]
    expected = body.replace(b"alice@example.com", pseudonym.encode())
    assert call.body == expected.replace(b"{", b'{"max_completion_tokens":8192,', 1)
    assert "alice" not in pseudonym


async def test_callers_never_share_a_user(upstream, service):
    """The pseudonym sent as user differs by organization, key and end user, and is stable for
    each."""
    callers = [await service.new_caller("one"), await service.new_caller("two")]
    for caller in callers:
        for user in ({"user": "alice"}, {"user": "bob"}, {}, {"user": None}, {"user": "alice"}):
            async with caller.chat(**user) as response:
                assert response.status == 200

    users = [json.loads(call.body)["user"] for call in upstream.calls.to("/chat/completions")]
    assert users[0] == users[4]
    assert users[2] == users[3]
    assert len(set(users)) == 6


async def test_encrypted_calls_pass_unchanged(upstream, caller):
    """The body and headers of a call to an end-to-end encrypted model pass unchanged."""
    body = b'{"model":"e2ee-qwen3-30b","stream":true,"messages":[{"role":"user","content":"00"}]}'
    headers = {
        **caller.headers,
        "Content-Type": "application/json",
        "X-Venice-TEE-Client-Pub-Key": "04ab",
    }
    async with caller.service.http.post(PATHS[0], data=body, headers=headers) as response:
        await response.read()

    (call,) = upstream.calls.to("/chat/completions")
    assert call.body == body
    assert call.headers["X-Venice-TEE-Client-Pub-Key"] == "04ab"


async def test_nothing_of_the_operators_account_leaks(service):
    """Venice's rate limits and balances do not reach callers; its version does."""
    caller = await service.new_caller()
    async with caller.chat() as response:
        names = {name.lower() for name in response.headers}

    assert not any(name.startswith(("x-ratelimit", "x-venice-balance")) for name in names)
    assert "x-venice-version" in names


async def test_what_venice_is_sent(upstream, caller):
    """Venice gets the operator's key, no accept-encoding, and none of the caller's headers."""
    async with caller.chat() as response:
        await response.read()

    (call,) = upstream.calls.to("/chat/completions")
    assert call.headers["Authorization"] == "Bearer sandbox"
    assert call.headers["Accept-Encoding"] == "identity"
    assert caller.key not in str(call.headers)
    assert "Cookie" not in call.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("rate_limited", 503, "upstream_busy"),
        ("model_overloaded", 503, "upstream_busy"),
        ("error_budget", 503, "upstream_busy"),
        ("insufficient_balance", 503, "upstream_exhausted"),
        ("key_spend_limit", 503, "upstream_exhausted"),
        ("invalid_key", 503, "upstream_exhausted"),
    ],
)
async def test_refusals_that_cost_nothing(upstream, caller, kind, status, code, stream):
    """The operator's own problems with Venice are a 503 for the caller and are recorded as not
    charged."""
    upstream.faults.push("/chat/completions", kind, times=1)

    async with caller.chat(stream=stream) as response:
        error = (await response.json())["error"]

        assert (response.status, error["code"]) == (status, code)
        assert int(response.headers["Retry-After"]) > 0
        assert response.headers["x-request-id"] == error["request_id"]
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["status"]) == (code, status)
    assert (entry["cost_source"], cost_of(entry)) == ("not_charged", 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("inference_failed", 502, "upstream_error"),
        ("bad_gateway", 502, "upstream_error"),
        ("timeout", 504, "upstream_timeout"),
        ("disconnect", 502, "upstream_cut"),
    ],
)
async def test_failures_whose_cost_is_not_known(upstream, caller, kind, status, code, stream):
    """A failure that Venice may have charged is recorded at an estimate, never at zero."""
    upstream.faults.push("/chat/completions", kind, times=1)

    async with caller.chat("a prompt of some length", stream=stream) as response:
        error = (await response.json())["error"]

        assert (response.status, error["code"]) == (status, code)
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["status"]) == (code, status)
    assert entry["cost_source"] == "estimated"
    assert cost_of(entry) > 0
    assert entry["input_tokens"] > 0


async def test_venices_rejection_keeps_its_text(service):
    """A 4xx of Venice keeps its status and text in OpenAI's format and costs nothing. The caller
    has no limit of money, which would refuse a member of unknown price."""
    caller = await service.new_caller()
    async with caller.chat(frequency_penalti=1) as response:
        error = (await response.json())["error"]

        assert response.status == 400
    assert error["code"] == "upstream_rejected"
    assert error["type"] == "invalid_request_error" or error["type"] == "api_error"
    assert "frequency_penalti" in error["message"]
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", "not_charged")


@pytest.mark.parametrize("has_limits", [False, True])
async def test_an_unknown_model_is_a_404(service, caller, has_limits):
    """An unknown model is a 404 without asking Venice, which would count it against the key, with
    and without limits."""
    if not has_limits:
        caller = await service.new_caller()
    body = {"model": "llama-3.3-70", "messages": [{"role": "user", "content": "x"}]}
    async with caller.service.http.post(PATHS[0], json=body, headers=caller.headers) as response:
        error = (await response.json())["error"]

        assert response.status == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_venice_is_unreachable(database_address, unused_tcp_port):
    """A refused connection is a 502 and is recorded as not charged."""
    settings = make_settings(database_address, f"http://127.0.0.1:{unused_tcp_port}")
    async with running(settings, knows_models=False) as service:
        caller = await service.new_caller()
        async with caller.chat() as response:
            error = (await response.json())["error"]

            assert (response.status, error["code"]) == (502, "upstream_unreachable")
        entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_unreachable", "not_charged")


async def test_venice_returns_garbage(upstream, caller):
    """A 200 that is not a completion is a 502 for the caller."""
    upstream.faults.push("/chat/completions", "garbage", times=1)

    async with caller.chat() as response:
        error = (await response.json())["error"]

        assert (response.status, error["code"]) == (502, "upstream_error")
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_error", "estimated")


@pytest.mark.parametrize("stream", [False, True])
async def test_venice_is_silent_for_too_long(database_address, upstream, stream):
    """A call ends when Venice is silent for longer than the setting allows."""
    upstream.faults.push("/chat/completions", "hang", times=1)
    settings = make_settings(database_address, upstream.url, venice_silence_timeout_s=0.3)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with caller.chat(stream=stream) as response:
            error = (await response.json())["error"]

            assert (response.status, error["code"]) == (504, "upstream_timeout")
        entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_timeout", "estimated")


async def test_a_stalled_stream_ends_with_an_error_event(database_address, upstream):
    """A stream in which Venice falls silent ends with an error event."""
    upstream.faults.push("/chat/completions", "stall", after=3, times=1)
    settings = make_settings(database_address, upstream.url, venice_silence_timeout_s=0.3)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=9]", stream=True) as response:
            data, _ = await events(response)

            assert response.status == 200
        entry = await caller.only_entry()
    assert json.loads(data[-2])["error"]["code"] == "upstream_timeout"
    assert data[-1] == "[DONE]"
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_timeout", "estimated")
    assert entry["output_tokens"] == 3


async def test_a_cut_stream_ends_with_an_error_event(upstream, caller):
    """A stream that Venice cuts ends with an error that the SDK can read, and is recorded at an
    estimate."""
    upstream.faults.push("/chat/completions", "cut", after=5, times=1)

    async with caller.chat("[tokens=9]", stream=True) as response:
        data, _ = await events(response)

    assert json.loads(data[-2])["error"]["code"] == "upstream_cut"
    assert data[-1] == "[DONE]"
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_cut", "estimated")
    assert entry["output_tokens"] == 5
    assert cost_of(entry) > 0


async def test_an_in_band_error_is_recorded_as_an_error(upstream, caller):
    """Venice's error event passes through, and the outcome is an error whatever the status."""
    upstream.faults.push("/chat/completions", "in_band_error", after=2, times=1)

    async with caller.chat("[tokens=9]", stream=True) as response:
        data, _ = await events(response)

    assert "error" in json.loads(data[-2])
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_error", "estimated")


@pytest.mark.parametrize("stream", [False, True])
async def test_missing_cost_is_computed(upstream, caller, stream):
    """Without a cost from Venice the entry has the catalog's price times the usage, which is the
    same amount."""
    upstream.faults.push("/chat/completions", "missing_cost", times=1)

    async with caller.chat("[tokens=9]", stream=stream) as response:
        await response.read()

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("ok", "computed")
    assert entry["output_tokens"] == 9
    assert cost_of(entry) * 10**9 == upstream.calls.charged_nanos


@pytest.mark.parametrize("stream", [False, True])
async def test_missing_usage_is_estimated(upstream, caller, stream):
    """Without usage from Venice the output that went by is counted, and the entry is marked as an
    estimate."""
    upstream.faults.push("/chat/completions", "missing_usage", times=1)

    async with caller.chat("[tokens=40]", stream=stream) as response:
        await response.read()

    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("ok", "estimated")
    assert cost_of(entry) > 0
    if stream:
        assert entry["output_tokens"] == 40


async def test_slow_bytes_arrive_as_whole_events(upstream, caller):
    """A stream that arrives in pieces of a few bytes is passed on as whole events."""
    upstream.faults.push("/chat/completions", "slow_bytes", times=1)

    async with caller.chat("[tokens=9]", stream=True) as response:
        data, _ = await events(response)

    assert data[-1] == "[DONE]"
    assert all(json.loads(event) for event in data[:-1])
    assert (await caller.only_entry())["output_tokens"] == 9


async def test_heartbeats_fill_the_silence(database_address, upstream):
    """A silent stream gets comments between whole events, before and after its first event."""
    upstream.faults.push("/chat/completions", "slow_headers", seconds=0.5, times=1)
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.1)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with caller.chat("[tokens=3][delay=0.35]", stream=True) as response:
            data, comments = await events(response)
        entry = await caller.only_entry()

    assert len(comments) >= 6
    assert set(comments) == {": heartbeat"}
    assert data[-1] == "[DONE]"
    assert (entry["outcome"], entry["output_tokens"]) == ("ok", 3)


async def test_a_late_refusal_is_an_error_event(database_address, upstream):
    """A refusal after the first heartbeat becomes an error event of the stream."""
    upstream.faults.push("/chat/completions", "slow_headers", seconds=0.3, times=1)
    settings = make_settings(database_address, upstream.url, heartbeat_s=0.1)
    async with running(settings) as service:
        caller = await service.new_caller()
        # Only Venice refuses this: the prompt is longer than the model's window.
        async with caller.chat("[tokens=3]" + "word " * 200_000, stream=True) as response:
            data, comments = await events(response)
        entry = await caller.only_entry()

    assert comments
    assert json.loads(data[-2])["error"]["code"] == "context_length_exceeded"
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_rejected", "not_charged")


@pytest.mark.parametrize("stream", [False, True])
async def test_hang_up_before_the_first_byte(upstream, caller, stream):
    """When the caller leaves before the first byte, Venice is cancelled at once, and the call is
    recorded at its bound because its cost is unknown."""
    upstream.faults.push("/chat/completions", "hang", times=1)
    waiting = asyncio.create_task(caller.chat(stream=stream).__aenter__())
    await upstream.faults.wait_held(1)
    waiting.cancel()

    (entry,) = await settled(caller)

    assert (entry["outcome"], entry["status"]) == ("client_closed", None)
    assert entry["cost_source"] == ("estimated" if stream else "bound")
    assert cost_of(entry) == Decimal(entry["bound_usd"]) > 0
    await wait_for_cancellation(upstream)


async def test_hang_up_in_the_middle(upstream, caller):
    """When the caller leaves a stream, the call is recorded at its bound and Venice is
    cancelled."""
    content = "[tokens=1000][delay=0.02]"
    async with caller.chat(content, stream=True, max_tokens=1000) as response:
        for _ in range(5):
            await response.content.readline()
        response.close()

        (entry,) = await settled(caller)

    assert (entry["outcome"], entry["status"]) == ("client_closed", 200)
    assert entry["cost_source"] == "estimated"
    assert entry["output_tokens"] == 1000
    assert cost_of(entry) == Decimal(entry["bound_usd"])
    await wait_for_cancellation(upstream)


async def test_a_slow_reader_holds_venice_back(upstream, caller):
    """A slow reader slows Venice's sending, so unread bytes do not pile up in the service."""
    async with caller.chat("[tokens=100000]", stream=True, max_tokens=100_000) as response:
        await response.content.readline()
        await asyncio.sleep(1)
        (call,) = upstream.calls.to("/chat/completions")

        assert call.finished_at is None
        response.close()
    await settled(caller)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"{}", "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"","messages":[{"role":"user"}]}', "model"),
        (b'{"model":"m\\u0000","messages":[{"role":"user"}]}', "model"),
        (b'{"model":"' + b"m" * 257 + b'","messages":[{"role":"user"}]}', "model"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{}]}', "messages[0].role"),
        (b'{"model":"m","messages":[{"role":"user"},7]}', "messages[1]"),
        (b'{"model":"m","messages":[{"role":"user"}],"tools":[7]}', "tools[0]"),
        (b'{"model":"m","messages":"hi"}', "messages"),
        (b'{"model":"m","messages":[{"role":"user"}],"stream":"yes"}', "stream"),
        (b'{"model":"m","messages":[{"role":"user"}],"user":7}', "user"),
        (b'{"model":"m","messages":[{"role":"user"}],"n":129}', "n"),
        (b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
        (b'{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
        (b'{"model":"m","messages":[{"role":"user"}],"max_tokens":2147483649}', "max_tokens"),
        (b'{"model":"m","messages":[{"role":"user"}],"venice_parameters":[]}', "venice_parameters"),
    ],
)
async def test_bad_bodies_never_reach_venice(upstream, caller, body, param):
    """A body that Venice would certainly refuse is refused with the field's name and makes no
    call."""
    headers = {**caller.headers, "Content-Type": "application/json"}
    async with caller.service.http.post(PATHS[0], data=body, headers=headers) as response:
        error = (await response.json())["error"]

        assert response.status == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert upstream.calls.to("/chat/completions") == []
    assert await caller.entries() == []


async def test_a_large_body_is_refused(database_address, upstream):
    """A body above the configured size is a 413 in the service's error format."""
    settings = make_settings(database_address, upstream.url, body_max_bytes=10_000)
    async with running(settings) as service:
        caller = await service.new_caller()
        async with caller.chat("x" * 20_000) as response:
            error = (await response.json())["error"]

            assert (response.status, error["code"]) == (413, "payload_too_large")


async def test_a_stalled_body_is_given_up(database_address, upstream):
    """A body that does not arrive in time is a 408."""
    settings = make_settings(database_address, upstream.url, body_timeout_s=0.2)
    async with running(settings) as service:
        caller = await service.new_caller()

        async def half_a_body():
            yield b'{"model":'
            await asyncio.sleep(2)

        async with service.http.post(
            PATHS[0], data=half_a_body(), headers=caller.headers
        ) as response:
            error = (await response.json())["error"]

            assert (response.status, error["code"]) == (408, "request_timeout")


async def test_many_calls_one_entry_each(upstream, caller):
    """A hundred concurrent calls, streamed and plain, have one entry each, and the sum is what
    Venice charged."""

    async def one(number):
        async with caller.chat(f"[tokens={number % 7 + 1}]", stream=number % 2 == 0) as response:
            await response.read()
            return response.headers["x-request-id"]

    ids = await asyncio.gather(*(one(number) for number in range(100)))

    entries = await caller.entries()
    assert sorted(entry["request_id"] for entry in entries) == sorted(ids)
    total = sum(cost_of(entry) for entry in entries)
    assert total * 10**9 == upstream.calls.charged_nanos
