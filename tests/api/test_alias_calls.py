"""Calls by an alias: one model after another, each under its own bound and limits."""

import json

import aiohttp
import pytest
from paid_bodies import BODIES, payload
from support import MODEL, cost_of, limits_of, make_settings, running, set_alias, set_limit

from service.api import CATALOG

pytestmark = pytest.mark.shares_service

FIRST, SECOND = MODEL, "venice-uncensored"


@pytest.fixture
async def caller(service):
    """A caller with limits of money and of each model; the alias ``fast`` stands for two models."""
    await set_alias(service, "fast", [FIRST, SECOND])
    caller = await service.new_caller()
    await set_limit(caller, unit="usd", period="day", ceiling="100")
    await set_limit(caller, unit="concurrency", ceiling=5)
    for model in (FIRST, SECOND):
        await set_limit(caller, unit="requests", period="minute", ceiling=50, model=model)
    return caller


def asked(upstream, path="/chat/completions"):
    """Return the models that Venice received calls for, in order."""
    return [json.loads(call.body)["model"] for call in upstream.calls.to(path)]


async def used_by_model(caller):
    """Return how many requests count on each model's limit."""
    limits = await limits_of(caller)
    return {limit["model"]: limit["used"] for limit in limits if limit["model"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_model_answers(caller, upstream, stream):
    """The first target answers; Venice gets its own name, and the ledger has both names."""
    async with caller.chat(model="fast", stream=stream) as response:
        assert response.status == 200
        assert response.headers["x-rialto-model"] == FIRST
        await response.read()

    entry = await caller.only_entry()
    assert asked(upstream) == [FIRST]
    assert (entry["model"], entry["requested_model"]) == (FIRST, "fast")
    assert entry["price_version"] == 1


@pytest.mark.parametrize("kind", ["at_capacity", "model_overloaded", "rate_limited", "retired"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_next_one_takes_over(caller, upstream, kind, stream):
    """The next target takes over at once, whatever pause Venice names for the first; the call
    counts on the second only."""
    upstream.faults.push("/chat/completions", kind, times=1)
    async with caller.chat(model="fast", stream=stream) as response:
        assert response.status == 200
        assert response.headers["x-rialto-model"] == SECOND
        assert response.headers["x-rialto-attempts"].endswith(", ok")
        await response.read()

    entry = await caller.only_entry()
    assert asked(upstream) == [FIRST, SECOND]
    assert (entry["model"], entry["requested_model"]) == (SECOND, "fast")
    (charged,) = [call.charged_nanos for call in upstream.calls if call.charged_nanos]
    assert int(cost_of(entry) * 10**9) == charged
    assert await used_by_model(caller) == {FIRST: 0, SECOND: 1}


@pytest.mark.parametrize("kind", ["inference_failed", "timeout", "disconnect", "detailed"])
async def test_no_next_model_after_a_possible_charge(caller, upstream, kind):
    """A failure that may have been charged, or that is the caller's mistake, does not go to the
    next target."""
    upstream.faults.push("/chat/completions", kind)
    async with caller.chat(model="fast") as response:
        assert response.status >= 400
    assert asked(upstream) == [FIRST]


async def test_a_model_without_room_is_skipped(caller, upstream):
    """A target without room is skipped, both as the first and as the next one, and uses no room of
    other calls."""
    third = "qwen3-coder-480b"
    await set_alias(caller.service, "long", [FIRST, SECOND, third])
    for limit in await limits_of(caller):
        if limit["model"] == SECOND:
            path = f"/admin/v1/limits/{limit['id']}"
            await caller.service.operate("PATCH", path, json={"ceiling": 0})
    upstream.faults.push("/chat/completions", "at_capacity", times=1)

    async with caller.chat(model="long") as response:
        assert (response.status, response.headers["x-rialto-model"]) == (200, third)
    assert asked(upstream) == [FIRST, third]
    assert await used_by_model(caller) == {FIRST: 0, SECOND: 0}

    await set_alias(caller.service, "other", [SECOND, FIRST])
    async with caller.chat(model="other") as response:
        assert (response.status, response.headers["x-rialto-model"]) == (200, FIRST)


async def test_if_all_are_refused_the_first_refusal_is_returned(caller, upstream):
    """If limits refuse all targets, the caller gets the first refusal with its numbers, and Venice
    gets no call."""
    for limit in await limits_of(caller):
        if limit["model"]:
            path = f"/admin/v1/limits/{limit['id']}"
            await caller.service.operate("PATCH", path, json={"ceiling": 0})
    async with caller.chat(model="fast") as response:
        error = (await response.json())["error"]
        assert (response.status, error["limit"]["model"]) == (400, FIRST)
    assert asked(upstream) == []


async def test_if_no_other_has_room_the_first_is_retried(caller, upstream):
    """If no other target has room, the first is retried as without an alias."""
    for limit in await limits_of(caller):
        if limit["model"] == SECOND:
            path = f"/admin/v1/limits/{limit['id']}"
            await caller.service.operate("PATCH", path, json={"ceiling": 0})
    upstream.faults.push("/chat/completions", "at_capacity", times=1)
    async with caller.chat(model="fast") as response:
        assert (response.status, response.headers["x-rialto-model"]) == (200, FIRST)
    assert asked(upstream) == [FIRST, FIRST]
    assert await used_by_model(caller) == {FIRST: 1, SECOND: 0}


async def test_if_all_fail_the_last_failure_is_returned(caller, upstream):
    """If all targets fail, the caller gets the last failure, and nothing is charged or held."""
    upstream.faults.push("/chat/completions", "model_overloaded")
    async with caller.chat(model="fast") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "30")
        assert response.headers["x-rialto-attempts"] == "upstream_busy, upstream_busy"
    entry = await caller.only_entry()
    assert (entry["outcome"], entry["cost_source"]) == ("upstream_busy", "not_charged")


async def test_a_dearer_model_needs_room_of_its_own(service, upstream):
    """A dearer target reuses the money held for the first target and needs room for the rest."""
    dear = "claude-opus-4-8"
    await set_alias(service, "best", [FIRST, dear])
    caller = await service.new_caller(settings={"on_small_budget": "refuse"})
    # A limit of money removes Venice's own system prompt, so the quote is requested after the limit
    # is set.
    limit = await set_limit(caller, unit="usd", period="day", ceiling="1000")
    _, quote = await _quoted(caller, dear)
    change = {"ceiling": quote["max_cost_usd"]}
    await service.operate("PATCH", f"/admin/v1/limits/{limit['id']}", json=change)
    upstream.faults.push("/chat/completions", "model_overloaded", times=2)
    async with caller.chat(model="best") as response:
        assert response.status == 503
    async with caller.chat(model=dear) as response:
        assert response.status == 200
    assert asked(upstream)[:2] == [FIRST, dear]

    # The room for the dear model has been used by now.
    upstream.faults.push("/chat/completions", "at_capacity", times=1)
    async with caller.chat(model="best") as response:
        assert (response.status, response.headers["x-rialto-model"]) == (200, FIRST)


async def _quoted(caller, model):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    http = caller.service.http
    async with http.post("/v1/quote", json=body, headers=caller.headers) as response:
        return response.status, await response.json()


async def test_a_quote_is_for_the_model_that_would_answer(caller):
    """A quote for an alias names and prices the model that would answer."""
    status, quote = await _quoted(caller, "fast")
    assert (status, quote["model"], quote["would_pass"]) == (200, FIRST, True)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/image/generate", "venice-sd35"),
        ("/images/generations", "venice-sd35"),
        ("/image/edit", "firered-image-edit"),
        ("/audio/speech", "tts-kokoro"),
        ("/embeddings", "text-embedding-bge-m3"),
        ("/video/queue", "wan-2.5-preview-text-to-video"),
        ("/audio/queue", "elevenlabs-music"),
        ("/responses", FIRST),
        ("/messages", FIRST),
    ],
)
async def test_every_endpoint_takes_an_alias(service, caller, upstream, path, model):
    """On every endpoint Venice gets the model's own name, in the call and in quote requests."""
    await set_alias(service, "mine", [model])
    body = BODIES[path] | {"model": "mine"}
    async with service.http.post(f"/v1{path}", headers=caller.headers, **payload(body)) as response:
        assert (response.status, bool(await response.read())) == (200, True)
    at_venice = "/chat/completions" if path == "/messages" else path
    assert asked(upstream, at_venice) == [model]
    entry = await caller.only_entry()
    assert (entry["model"], entry["requested_model"]) == (model, "mine")


async def test_a_form_takes_an_alias(service, caller, upstream):
    """The model field of a form is replaced in place, and the file is unchanged."""
    await set_alias(service, "ear", ["nvidia/parakeet-tdt-0.6b-v3"])
    form = aiohttp.FormData()
    form.add_field("model", "ear")
    form.add_field("file", b"\x00--x\r\n" * 200, filename="a.wav", content_type="audio/wav")
    url = "/v1/audio/transcriptions"
    async with service.http.post(url, data=form, headers=caller.headers) as response:
        assert response.status == 200, await response.text()
    (call,) = upstream.calls.to("/audio/transcriptions")
    assert b"\r\n\r\nnvidia/parakeet-tdt-0.6b-v3\r\n" in call.body
    assert b"\x00--x\r\n" * 200 in call.body


async def test_a_key_may_use_the_models_on_its_list(service, upstream):
    """An alias on a key's list opens its models only under the alias; a suffix or another spelling
    opens nothing."""
    await set_alias(service, "fast", [FIRST, SECOND])
    caller = await service.new_caller(models=["fast", "text-embedding-bge-m3"])
    answers = {}
    for name in ("fast", "fast:enable_web_search=on", FIRST, "gpt-4o-mini", "no-such-model"):
        async with caller.chat(model=name) as response:
            body = await response.json()
            answers[name] = body["error"]["code"] if "error" in body else response.status
    assert answers == {
        "fast": 200,
        "fast:enable_web_search=on": 200,
        FIRST: "model_not_allowed",
        "gpt-4o-mini": "model_not_allowed",
        "no-such-model": "model_not_found",
    }
    url = "/v1/images/generations"
    async with service.http.post(url, json={"prompt": "x"}, headers=caller.headers) as response:
        assert response.status == 403, await response.text()
    async with service.http.post(
        "/v1/augment/search", json={"query": "x"}, headers=caller.headers
    ) as response:
        assert response.status == 200
    assert len(upstream.calls.to("/chat/completions")) == 2


async def test_venice_gets_the_models_own_name_for_a_trait(service, caller, upstream):
    """A trait is replaced by the model's own name, so Venice runs what was priced."""
    async with caller.chat(model="default") as response:
        assert response.status == 200
    expected = service.app[CATALOG].targets(caller.organization_id, "default", None, "text")
    assert asked(upstream) == list(expected) != ["default"]


async def test_an_encrypted_model_has_its_own_name_only(service, caller, upstream):
    """An end-to-end encrypted model answers only to its own name, because an alias would hide that
    its calls must not be read."""
    await set_alias(service, "private", ["e2ee-qwen3-30b"])
    for name in ("private", "E2EE Qwen3 30B"):
        for stream in (True, False):
            async with caller.chat(model=name, stream=stream, user="bob") as response:
                error = (await response.json())["error"]
            assert (response.status, error["param"]) == (400, "model")
    assert upstream.calls.to("/chat/completions") == []


@pytest.mark.parametrize("is_listed", [True, False])
async def test_unknown_paths_are_no_way_around(database_address, upstream, is_listed):
    """A key with a list of models, or with a limit of one model, may not use opened paths, because
    their model is not known."""
    opened = ("/completions", "/odd")
    settings = make_settings(database_address, upstream.url, venice_other_paths=opened)
    async with running(settings) as service:
        await service.app[CATALOG].sync()
        caller = await service.new_caller(**({"models": [SECOND]} if is_listed else {}))
        if not is_listed:
            await set_limit(caller, unit="requests", period="day", ceiling=1, model=FIRST)
        for path in opened:
            body = {"model": FIRST, "messages": []}
            async with service.http.post(
                f"/api/v1{path}", json=body, headers=caller.headers
            ) as response:
                error = (await response.json())["error"]
            assert (response.status, error["code"]) == (403, "model_not_allowed")
    assert {call.method for call in upstream.calls} == {"GET"}
