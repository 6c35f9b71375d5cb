"""Calls whose output a limit cannot afford: they are cut to what it can, or refused with what would
fit."""

import asyncio
import json
import re
from decimal import Decimal

import agents
import pytest
from support import MODEL, ORGANIZATIONS, limits_of, set_alias, set_limit

pytestmark = pytest.mark.shares_service

OPUS = "claude-opus-4-8"
CHAT, RESPONSES = "/chat/completions", "/responses"
CAP = "x-rialto-max-output-tokens"
FIRST_REQUESTS = [
    ("/messages", CHAT, "max_tokens", agents.messages_body),
    (CHAT, CHAT, "max_tokens", agents.chat_body),
    (RESPONSES, RESPONSES, "max_output_tokens", agents.responses_body),
]


async def post(caller, path, body):
    """Post a body and return the status, the headers and the text of the response."""
    async with caller.service.http.post(
        f"/v1{path}", json=body, headers=caller.headers
    ) as response:
        return response.status, response.headers, await response.text()


async def quoted(caller, path, body):
    """Return the quote for a body."""
    status, _, text = await post(caller, f"/quote{path}", body)
    assert status == 200, text
    return json.loads(text)


@pytest.mark.parametrize(("path", "sent_to", "field", "body_of"), FIRST_REQUESTS)
async def test_a_dollar_runs_an_agents_first_request(
    service, caller, upstream, path, sent_to, field, body_of
):
    """A limit of one dollar admits a coding agent's first request in each API's format, with less
    output where the model is expensive; the header states how much, and the limit holds."""
    await set_limit(caller, unit="usd", period="month", ceiling="1")
    quote = await quoted(caller, path, body_of(OPUS))
    status, headers, text = await post(caller, path, body_of(OPUS))

    assert status == 200, text
    capped = int(headers[CAP])
    assert 1_024 <= capped < agents.MAX_TOKENS
    assert (quote["would_pass"], quote["max_output_tokens"]) == (True, capped)
    sent = json.loads(upstream.calls.to(sent_to)[-1].body)
    maxima = {sent[name] for name in sent if name.startswith("max_")}
    assert maxima == {capped}
    (limit,) = await limits_of(caller)
    assert 0 < Decimal(limit["used"]) < Decimal("0.5")

    status, headers, text = await post(caller, path, body_of(MODEL))
    assert (status, CAP in headers) == (200, False), text


@pytest.mark.parametrize(
    ("path", "stated", "expected"),
    [
        (CHAT, {"max_completion_tokens": 5, "max_tokens": 100_000}, {"max_completion_tokens": 5}),
        (CHAT, {"max_completion_tokens": 100_000, "max_tokens": 5}, {"max_tokens": 5}),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 100_000}, {}),
        (RESPONSES, {"max_output_tokens": 100_000, "max_tokens": 5}, {"max_tokens": 5}),
        (RESPONSES, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
    ],
    ids=str,
)
async def test_a_cap_raises_no_maximum(caller, upstream, path, stated, expected):
    """Of several maxima that a body states, a cap lowers those above it and leaves the others."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.02")
    body = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"input": "x"}
    status, headers, text = await post(caller, path, {"model": MODEL, **body, **stated})

    assert status == 200, text
    sent = json.loads(upstream.calls.to(path)[-1].body)
    maxima = {name: value for name, value in sent.items() if name.startswith("max_")}
    capped = int(headers[CAP])
    assert maxima == {**dict.fromkeys(maxima, capped), **expected}


@pytest.mark.parametrize(("path", "sent_to", "field", "body_of"), FIRST_REQUESTS)
async def test_a_key_may_refuse_instead(service, upstream, path, sent_to, field, body_of):
    """With ``on_small_budget: refuse`` the same request is a 402 that names the unit, the largest
    part of the need and the maximum that fits; that maximum is what a cut call would get."""
    cutting = await service.new_caller("cutting")
    refusing = await service.new_caller("refusing", settings={"on_small_budget": "refuse"})
    for caller in (cutting, refusing):
        await set_limit(caller, unit="usd", period="month", ceiling="1")
    status, headers, text = await post(refusing, path, body_of(OPUS))

    assert (status, headers["x-should-retry"]) == (402, "false")
    assert upstream.calls.to(sent_to) == []
    message = json.loads(text)["error"]["message"]
    assert re.match(
        r"This call needs up to [23]\.\d+ USD, but the organization's limit of 1\.00 USD a month"
        r" has 0\.00 used and 0\.00 held\."
        rf" The largest part is output: up to 32000 tokens, 1\.44 USD\."
        rf" With {field} ≤ \d+ it fits\.$",
        message,
    ), message
    most = int(re.search(r"≤ (\d+)", message)[1])
    status, headers, _ = await post(cutting, path, body_of(OPUS))
    assert (status, int(headers[CAP])) == (200, most)
    assert (await post(refusing, path, body_of(OPUS, **{field: most})))[0] == 200


PICTURES = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}] * 3
FILES = [{"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}]


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ({"max_tokens": 32_000}, r"output: up to 32000 tokens, 0\.96 USD"),
        ({"content": "x" * 30_000}, r"input text: up to 30\d{3} tokens, 0\.22\d+ USD"),
        ({"content": PICTURES}, r"pictures: up to 49152 tokens, 0\.7\d+ USD"),
        ({"content": FILES}, r"sound, video, files or unknown parts: up to 1000000 tokens, 15.00"),
        ({"web_search": True}, r"search results or pages: up to 1000000 tokens, 15.00 USD"),
        (
            {"model": MODEL, "venice_parameters": {"enable_web_scraping": True}},
            r"fees for searches: up to 0\.10 USD",
        ),
        (
            {"venice_parameters": {"character_slug": "a"}},
            r"a character: up to 1000000 tokens, 15.00 USD",
        ),
    ],
    ids=["output", "text", "pictures", "files", "search", "fees", "character"],
)
async def test_a_refusal_names_the_largest_part(caller, members, part):
    """A refusal by money names what the largest part of the need is for, and its cost."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.01")
    content = members.pop("content", "x")
    async with caller.chat(content, **{"model": OPUS, "max_tokens": 10, **members}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (402, "limit_exceeded")
    assert re.search(rf" The largest part is {part}", error["message"]), error["message"]


async def test_a_refusal_by_tokens_names_them_too(caller):
    """A refusal by a limit of tokens names its unit and the largest part in tokens."""
    await set_limit(caller, unit="tokens", period="day", ceiling=6_000)
    async with caller.chat("x" * 9_000, max_tokens=10) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, "call_too_large")
    assert re.search(
        r"needs up to \d+ tokens, but .* The largest part is input text: up to \d+ tokens\.",
        error["message"],
    )


async def test_a_refusal_of_the_least_output_states_its_need(caller):
    """Where one limit could afford the least output but another could not, the refusal by the other
    one states what that output needs, and its largest part is within that need."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.2")
    await set_limit(caller, unit="tokens", period="day", ceiling=900)
    body = {"model": OPUS, "max_tokens": 32_000, "messages": [{"role": "user", "content": "x"}]}
    status, _, text = await post(caller, CHAT, body)
    error = json.loads(text)["error"]

    assert (status, error["code"]) == (400, "call_too_large")
    assert 1_024 < error["limit"]["needed"] < 2_000
    assert "The largest part is output: up to 1024 tokens. With max_tokens ≤ " in error["message"]
    quote = await quoted(caller, CHAT, body)
    assert quote["refusal"]["message"] == error["message"]
    most = int(re.search(r"≤ (\d+)", error["message"])[1])
    assert (await post(caller, CHAT, {**body, "max_tokens": most}))[0] == 200


async def test_a_call_is_not_cut_because_others_hold(caller):
    """A call that its limit can afford waits for other calls to end instead of being cut."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.03")
    async with caller.chat("[tokens=50][delay=0.02]", stream=True, max_tokens=6_000) as stream:
        await stream.content.readline()
        async with caller.chat(max_tokens=6_000) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (429, "limit_held")
            assert response.headers["x-should-retry"] == "true"
        await stream.read()
    async with caller.chat(max_tokens=6_000) as response:
        assert (response.status, CAP in response.headers) == (200, False)


async def test_a_rate_cuts_only_what_it_could_never_admit(caller):
    """A limit of tokens a minute cuts a call above its ceiling; a call within it waits for room."""
    await set_limit(caller, unit="usd", period="day", ceiling="100")
    await set_limit(caller, unit="tokens", period="minute", ceiling=5_000)
    async with caller.chat(max_tokens=32_000) as response:
        assert response.status == 200
        assert 1_024 <= int(response.headers[CAP]) < 5_000
    slow = "[tokens=50][delay=0.02]"
    async with caller.chat(slow, max_tokens=4_000, stream=True) as first:
        await first.content.readline()
        for max_tokens in (4_000, 32_000):
            async with caller.chat(max_tokens=max_tokens) as response:
                assert (response.status, response.headers["x-should-retry"]) == (429, "true")
        await first.read()


async def test_an_alias_goes_to_its_next_target_before_a_call_is_cut(service, caller):
    """A call of an alias is cut only at the last of its targets."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.5")
    for targets in ([OPUS, MODEL], [MODEL, OPUS]):
        await set_alias(service, "best", targets, caller.organization_id)
        async with caller.chat(model="best", max_tokens=32_000) as response:
            assert response.status == 200
            assert response.headers["x-rialto-model"] == MODEL
            assert CAP not in response.headers
    await set_alias(service, "best", ["zai-org-glm-5-1", OPUS], caller.organization_id)
    await set_limit(caller, unit="usd", period="day", ceiling="0.08")
    async with caller.chat(model="best", max_tokens=32_000) as response:
        assert (response.status, response.headers["x-rialto-model"]) == (200, OPUS)
        assert int(response.headers[CAP]) >= 1_024


@pytest.mark.parametrize(
    ("settings", "limits", "status"),
    [
        ({}, [], 400),
        ({"on_small_budget": "cut"}, [], 200),
        ({"least_output_tokens": 100}, [], 200),
        ({"least_output_tokens": 100, "on_small_budget": "refuse"}, [], 400),
        ({}, [{"unit": "usd", "period": "day", "ceiling": "100"}], 200),
        ({"on_small_budget": "refuse"}, [{"unit": "usd", "period": "day", "ceiling": "100"}], 400),
        ({"least_output_tokens": 7_000, "on_small_budget": "cut"}, [], 400),
    ],
    ids=str,
)
async def test_who_is_cut(service, settings, limits, status):
    """By default keys under a limit of money are cut, and those that state the least output; a key
    may state either."""
    caller = await service.new_caller(settings=settings)
    for limit in (*limits, {"unit": "tokens", "period": "day", "ceiling": 7_000}):
        await set_limit(caller, **limit)
    async with caller.chat(max_tokens=8_000) as response:
        assert response.status == status
        assert (CAP in response.headers) is (status == 200)


@pytest.mark.parametrize(("of_key", "status"), [(None, 402), ("cut", 200)])
async def test_an_organization_has_a_default(service, of_key, status):
    """An organization's setting is that of its keys that state none."""
    caller = await service.new_caller(settings={"on_small_budget": of_key})
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    settings = {"on_small_budget": "refuse"}
    changed, organization = await service.operate("PATCH", path, json={"settings": settings})
    assert (changed, organization["settings"]["on_small_budget"]) == (200, "refuse")
    await set_limit(caller, unit="usd", period="day", ceiling="0.01")
    async with caller.chat(max_tokens=100_000) as response:
        assert response.status == status


async def test_a_limit_that_is_added_cuts_the_next_call(service, caller):
    """The default follows the limits: it is another one as soon as money is limited, and again when
    it is not."""
    await set_limit(caller, unit="tokens", period="day", ceiling=7_000)
    statuses = []
    for change in (None, "add", "remove"):
        if change == "add":
            made = await set_limit(caller, unit="usd", period="day", ceiling="100")
        elif change == "remove":
            await service.operate("DELETE", f"/admin/v1/limits/{made['id']}")
        async with caller.chat(max_tokens=8_000) as response:
            statuses.append(response.status)
    assert statuses == [400, 200, 400]


async def test_the_setting_has_two_values(service, caller):
    """Another value of the setting is refused by name."""
    path = f"/admin/v1/keys/{caller.key_id}"
    settings = {"on_small_budget": "shorten"}
    status, body = await service.operate("PATCH", path, json={"settings": settings})
    assert (status, body["error"]["param"]) == (400, "settings.on_small_budget")


@pytest.mark.parametrize("members", [{}, {"stream": True}, {"n": 2}])
async def test_a_cut_answer_ends_with_its_length(caller, members):
    """An answer that reaches the cut ends with ``finish_reason`` "length", each choice of it."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.01")
    asked = {"max_tokens": 100_000, **members}
    async with caller.chat("[tokens=100000]", **asked) as response:
        text = await response.text()
        assert response.status == 200, text
    choices = members.get("n", 1)
    assert len(re.findall(r'"finish_reason": ?"length"', text)) == choices
    (entry,) = await caller.entries()
    assert entry["output_tokens"] == int(response.headers[CAP]) * choices


async def test_a_cut_call_that_may_be_repeated_has_room_for_both(service):
    """A call that is sent again when it failed is cut to what its limit affords twice."""
    capped = []
    for repeat_failed in (False, True):
        caller = await service.new_caller(settings={"repeat_failed": repeat_failed})
        await set_limit(caller, unit="usd", period="month", ceiling="0.02")
        async with caller.chat(max_tokens=100_000) as response:
            assert response.status == 200
            capped.append(int(response.headers[CAP]))
    once, twice = capped
    assert 1_024 <= twice <= once // 2


async def test_encrypted_calls_are_not_cut(caller):
    """A call with end-to-end encryption is refused, since its body cannot be changed."""
    await set_limit(caller, unit="usd", period="day", ceiling="0.01")
    body = {"model": "e2ee-qwen3-30b", "max_tokens": 20_000, "stream": True}
    async with caller.chat(**body) as response:
        assert response.status == 402


async def test_cut_calls_never_pass_the_limit(caller):
    """Of many calls at once that are all too large, none is admitted beyond the ceiling."""
    await set_limit(caller, unit="usd", period="month", ceiling="0.02")

    async def call():
        async with caller.chat(
            "[tokens=100000][delay=0.0001]", stream=True, max_tokens=100_000
        ) as response:
            await response.read()
            (now,) = await limits_of(caller)
            assert Decimal(now["used"]) + Decimal(now["held"]) <= Decimal("0.02")
            return response.status

    statuses = await asyncio.gather(*(call() for _ in range(12)))

    (now,) = await limits_of(caller)
    assert set(statuses) <= {200, 402, 429}
    assert statuses.count(200) == len(await caller.entries()) >= 1
    assert Decimal(now["used"]) <= Decimal("0.02")
