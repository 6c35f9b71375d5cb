"""Markers of the sandbox that bend its answers, and the requests that its models refuse."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sandbox_client import CHAT, Client, asking, last_call, refused, stream

from service.sandbox.text.markers import ODDITIES, Markers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sandbox.md"
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string"}},
            "required": ["where"],
        },
    },
}
LISTEN = {"type": "function", "function": {"name": "listen"}}
CALLS = '[call=look {"where": "at the sea"} + listen {"to": "the waves"}]'
RESPONSES = "/api/v1/responses"


async def pieces(venice: Client, odd: str) -> list[dict[str, Any]]:
    """Return the pieces of two parallel calls of a bent stream."""
    events = await stream(venice, f"[odd={odd}]{CALLS}", tools=[LOOK, LISTEN])
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    return [piece for delta in deltas for piece in delta.get("tool_calls") or []]


async def message(venice: Client, text: str, **fields: Any) -> dict[str, Any]:
    """Return the message of a whole answer."""
    async with venice.post(CHAT, json=asking(text, **fields)) as response:
        assert response.status == 200, await response.text()
        choice: dict[str, Any] = (await response.json())["choices"][0]
    return {**choice["message"], "finish_reason": choice["finish_reason"]}


def arguments_of(found: list[dict[str, Any]]) -> str:
    return "".join(piece["function"]["arguments"] for piece in found)


async def test_shared_index(venice: Client) -> None:
    """Parallel calls share an index, and only a new id begins the next."""
    found = await pieces(venice, "shared-index")

    assert {piece["index"] for piece in found} == {0}
    assert [piece["function"]["name"] for piece in found if "id" in piece] == ["look", "listen"]


async def test_no_index(venice: Client) -> None:
    """Pieces of calls have no index."""
    assert all("index" not in piece for piece in await pieces(venice, "no-index"))


async def test_late_name(venice: Client) -> None:
    """The name of a call comes after its first arguments."""
    found = [piece["function"] for piece in await pieces(venice, "late-name")]
    named = [index for index, function in enumerate(found) if "name" in function]

    assert [found[index]["name"] for index in named] == ["look", "listen"]
    assert any(function["arguments"] for function in found[: named[0]])


@pytest.mark.parametrize(("odd", "value"), [("empty-texts", ""), ("nulls", None)])
async def test_repeated_members(venice: Client, odd: str, value: Any) -> None:
    """Later pieces of a call repeat its id, type and name without a value."""
    found = [piece for piece in await pieces(venice, odd) if not piece["id"]]

    assert len(found) > 2
    for piece in found:
        assert piece["id"] == piece["type"] == piece["function"]["name"] == value


async def test_nulls(venice: Client) -> None:
    """Members of messages and deltas without a value are null."""
    whole = await message(venice, "[odd=nulls]")
    first, *_ = await stream(venice, "[odd=nulls]")

    assert whole["tool_calls"] is whole["reasoning_content"] is None
    assert first["choices"][0]["delta"]["tool_calls"] is None


async def test_interleaved(venice: Client) -> None:
    """The pieces of parallel calls alternate."""
    found = await pieces(venice, "interleaved")

    assert [piece["index"] for piece in found[:4]] == [0, 1, 0, 1]
    looked = [piece for piece in found if piece["index"] == 0]
    assert json.loads(arguments_of(looked)) == {"where": "at the sea"}


async def test_whole_calls(venice: Client) -> None:
    """Each call comes in one piece."""
    found = await pieces(venice, "whole-calls")

    assert [piece["function"]["name"] for piece in found] == ["look", "listen"]
    assert json.loads(found[0]["function"]["arguments"]) == {"where": "at the sea"}


async def test_object_arguments(venice: Client) -> None:
    """Arguments are an object, whole and streamed."""
    streamed = await pieces(venice, "object-arguments")
    whole = await message(venice, f"[odd=object-arguments]{CALLS}", tools=[LOOK, LISTEN])

    for calls in (streamed, whole["tool_calls"]):
        assert calls[0]["function"]["arguments"] == {"where": "at the sea"}


async def test_partial_arguments(venice: Client) -> None:
    """Arguments lack their end, whole and streamed."""
    streamed = [piece for piece in await pieces(venice, "partial-arguments") if piece["index"] == 0]
    whole = await message(venice, f"[odd=partial-arguments]{CALLS}", tools=[LOOK, LISTEN])

    for text in (arguments_of(streamed), arguments_of(whole["tool_calls"][:1])):
        assert text.startswith("{")
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            json.loads(text)


@pytest.mark.parametrize(("odd", "kind"), [("float-usage", float), ("text-usage", str)])
async def test_usage_of_other_types(venice: Client, odd: str, kind: type) -> None:
    """The counts in usage are floats or texts, in both APIs."""
    async with venice.post(CHAT, json=asking(f"[odd={odd}]")) as response:
        usage = json.loads(await response.text())["usage"]
    body = {"model": "llama-3.3-70b", "input": f"[odd={odd}]"}
    async with venice.post(RESPONSES, json=body) as response:
        other = json.loads(await response.text())["usage"]

    for counts in (usage, usage["prompt_tokens_details"], other):
        assert {type(value) for value in counts.values() if not isinstance(value, dict)} == {kind}


async def test_encrypted(venice: Client) -> None:
    """Encrypted reasoning comes before the answer, and in a whole message."""
    events = await stream(venice, "[odd=encrypted]")
    whole = await message(venice, "[odd=encrypted]")

    assert events[0]["choices"][0]["delta"] == {"reasoning_encrypted": whole["reasoning_encrypted"]}


@pytest.mark.parametrize(
    ("odd", "end"),
    [
        ("crlf", b"}\r\n\r\ndata: [DONE]\r\n\r\n"),
        ("no-done", b"}\n\n"),
        ("no-last-line-break", b"}\n\ndata: [DONE]"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_ends_of_streams(venice: Client, path: str, odd: str, end: bytes) -> None:
    """A stream ends in another way, in both APIs."""
    text = f"[odd={odd}]"
    asked = asking(text) if path == CHAT else {"model": "default", "input": text}
    async with venice.post(path, json={**asked, "stream": True}) as response:
        body = await response.read()

    assert body.endswith(end)
    assert (b"\r\n" in body) == (odd == "crlf")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_cut(venice: Client, path: str) -> None:
    """``[cut=N]`` closes the connection after N events of a stream."""
    asked = asking("[cut=3]") if path == CHAT else {"model": "default", "input": "[cut=3]"}
    async with venice.post(path, json={**asked, "stream": True}) as response:
        read = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in response.content.iter_any():
                read += chunk

    assert read.count(b"data: ") == 3
    assert last_call(venice).is_dropped


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_unknown_oddity(venice: Client, path: str) -> None:
    """An oddity that does not exist is a 400, because it would test nothing."""
    asked = asking("[odd=late]") if path == CHAT else {"model": "default", "input": "[odd=late]"}
    status, body = await refused(venice, asked, path)

    assert status == 400
    assert "late-name" in body["issues"][0]["message"]


@pytest.mark.parametrize("reason", ["tool_use", "end_turn", "MAX_TOKENS", "length"])
async def test_finish_reason(venice: Client, reason: str) -> None:
    """``[finish=NAME]`` is the finish reason, with and without calls."""
    plain = await message(venice, f"[finish={reason}]")
    called = await message(venice, f"[finish={reason}]{CALLS}", tools=[LOOK, LISTEN])
    events = await stream(venice, f"[finish={reason}]")

    assert plain["finish_reason"] == called["finish_reason"] == reason
    assert len(called["tool_calls"]) == 2
    assert events[-3]["choices"][0]["finish_reason"] == reason


async def test_refusal(venice: Client) -> None:
    """``[refusal=TEXT]`` is a refusal instead of a content, whole and streamed."""
    whole = await message(venice, "[refusal=I would rather not.]")
    events = await stream(venice, "[refusal=I would rather not.]")

    assert (whole["content"], whole["refusal"]) == (None, "I would rather not.")
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta["refusal"] for delta in deltas) == "I would rather not."
    assert not any("content" in delta for delta in deltas)


async def test_failure(venice: Client) -> None:
    """``[fail=CODE]`` ends a stream with an error and is a 500 without a stream."""
    events = await stream(venice, "[fail=content_blocked_by_provider][tokens=2]")
    status, body = await refused(venice, asking("[fail=server_error]"))

    assert events[-2]["error"]["code"] == "content_blocked_by_provider"
    assert events[-1] == "[DONE]"
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None, None]
    assert (status, body["code"]) == (500, "server_error")


def test_markers_are_documented() -> None:
    """docs/sandbox.md has a row for each marker and each odd form."""
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = " ".join(rows)

    assert [name for name in Markers.__struct_fields__ if f"`[{name}" not in named] == []
    assert [name for name in ODDITIES if f"`{name}`" not in named] == []


# Searches


@pytest.mark.parametrize(
    ("text", "parameters", "fees"),
    [
        ("Hello", {"enable_web_search": "off"}, 0),
        ("Hello", {"enable_web_search": "on"}, 1),
        ("Hello", {"enable_web_search": "auto"}, 0),
        ("[search]", {"enable_web_search": "auto"}, 1),
        ("https://a.test and https://b.test", {"enable_web_scraping": True}, 2),
        (
            "https://a.test",
            {"enable_web_scraping": True, "enable_web_search": "on"},
            1,
        ),
        ("Hello", {"enable_web_scraping": True}, 0),
        ("Hello", {"enable_x_search": True}, 1),
        ("Hello", {"enable_x_search": True, "enable_web_search": "on"}, 2),
    ],
)
async def test_fees(venice: Client, text: str, parameters: dict[str, Any], fees: int) -> None:
    """Each search and scraped page costs a cent, in the stated cost and in the charge."""
    costs = []
    for given in ({}, parameters):
        asked = asking(text, model="grok-4-5", venice_parameters=given)
        async with venice.post(CHAT, json=asked) as response:
            stated = round((await response.json())["cost"]["usd"] * 10**9)
        costs.append(stated)
        assert last_call(venice).charged_nanos == stated

    assert costs[1] - costs[0] == fees * 10_000_000


async def test_citations(venice: Client) -> None:
    """A search has citations in a whole answer, and in a stream on request."""
    parameters = {"enable_web_search": "on", "enable_web_citations": True}
    asked = asking("Hello", venice_parameters=parameters)
    async with venice.post(CHAT, json=asked) as response:
        body = await response.json()
    quiet = await stream(venice, "Hello", venice_parameters=parameters)
    parameters["include_search_results_in_stream"] = True
    loud = await stream(venice, "Hello", venice_parameters=parameters)

    citations = body["venice_parameters"]["web_search_citations"]
    assert citations[0].keys() == {"title", "url", "content", "date"}
    assert body["choices"][0]["message"]["content"].endswith("^1^")
    assert loud[-2]["venice_parameters"]["web_search_citations"] == citations
    assert loud[-3]["usage"] == quiet[-2]["usage"]
    assert not any("venice_parameters" in event for event in quiet[:-1])


async def test_search_results_as_documents(venice: Client) -> None:
    """The results of a search are also a call that nobody runs, before the answer."""
    parameters = {"enable_web_search": "on", "return_search_results_as_documents": True}
    whole = await message(venice, "Hello", venice_parameters=parameters)
    first, *_, last, _, _ = await stream(venice, "Hello", venice_parameters=parameters)

    (call,) = whole["tool_calls"]
    (streamed,) = first["choices"][0]["delta"]["tool_calls"]
    assert (call["id"], whole["finish_reason"]) == ("web_search_call", "tool_calls")
    assert streamed == {"index": 0, **call}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    documents = json.loads(call["function"]["arguments"])["documents"]
    assert documents[0].keys() == {"id", "title", "url", "snippet", "published_at"}
    assert "You wrote: Hello" in whole["content"]


async def test_no_search_for_pictures(venice: Client) -> None:
    """Nothing is searched for a message with a picture."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    asked = {
        "model": "kimi-k2-6",
        "messages": [{"role": "user", "content": [picture]}],
        "venice_parameters": {"enable_web_search": "on"},
    }
    async with venice.post(CHAT, json=asked) as response:
        body = await response.json()

    assert body["venice_parameters"]["web_search_citations"] == []


# Requests that only some models refuse


def conversation(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": "Hello"} for role in roles]


@pytest.mark.parametrize("model", ["qwen3-coder-480b", "qwen3-vl-235b-a22b", "llama-3.3-70b"])
@pytest.mark.parametrize(
    ("roles", "is_late"),
    [
        (("system", "user"), False),
        (("system", "developer", "user"), False),
        (("system", "user", "system"), True),
        (("user", "developer", "user"), True),
    ],
)
async def test_late_system_message(
    venice: Client, model: str, roles: tuple[str, ...], is_late: bool
) -> None:
    """Qwen's models refuse a system message after others."""
    body = {"model": model, "messages": conversation(*roles)}
    async with venice.post(CHAT, json=body) as response:
        answer = await response.json()

    assert response.status == (400 if is_late and model.startswith("qwen") else 200)
    if response.status == 400:
        assert "System message must be at the beginning" in answer["error"]


@pytest.mark.parametrize(
    ("model", "marker", "member"),
    [
        ("kimi-k2-6", "", "reasoning_content"),
        ("deepseek-v4-pro", "", "reasoning_content"),
        ("claude-opus-4-8", "[think=2]", "reasoning_details"),
        ("gemini-3-flash-preview", "[think=2]", "thought_signature"),
    ],
)
async def test_reasoning_must_come_back(
    venice: Client, model: str, marker: str, member: str
) -> None:
    """A model that needs its reasoning back refuses a call without it, if it sent any."""
    first = asking(f"{marker}[call=look]", model=model, tools=[LOOK])
    async with venice.post(CHAT, json=first) as response:
        answer = (await response.json())["choices"][0]["message"]
    (call,) = answer["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "found"}
    statuses, bodies = [], []
    for returned in (answer, {**answer, member: None}):
        messages = [*first["messages"], returned, result]
        async with venice.post(CHAT, json={**first, "messages": messages}) as response:
            statuses.append(response.status)
            bodies.append(await response.json())

    assert answer[member]
    assert statuses == [200, 400]
    assert member in bodies[1]["error"]


@pytest.mark.parametrize("asked", [{"reasoning_effort": "low"}, {"reasoning": {"enabled": True}}])
async def test_reasoning_on_request(venice: Client, asked: dict[str, Any]) -> None:
    """A model that is asked to think does so before a scripted call."""
    found = [
        await message(venice, "[call=look]", model="claude-opus-4-8", tools=[LOOK], **fields)
        for fields in ({}, asked)
    ]

    assert ["reasoning_details" in one for one in found] == [False, True]


async def test_reasoning_that_was_not_sent(venice: Client) -> None:
    """Reasoning that was turned off need not come back."""
    parameters = {"disable_thinking": True}
    asked = asking("[call=look]", model="kimi-k2-6", tools=[LOOK], venice_parameters=parameters)
    async with venice.post(CHAT, json=asked) as response:
        answer = (await response.json())["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "found"}
    asked["messages"] += [answer, result]
    async with venice.post(CHAT, json=asked) as response:
        assert response.status == 200

    assert "reasoning_content" not in answer


@pytest.mark.parametrize("fields", [{"seed": 1}, {"stop": "a"}, {"n": 2}, {"presence_penalty": 1}])
async def test_sampling_of_openai(venice: Client, fields: dict[str, Any]) -> None:
    """OpenAI's reasoning models refuse parameters of sampling that others take."""
    status, body = await refused(venice, asking(model="openai-gpt-52", **fields))
    async with venice.post(CHAT, json=asking(model="llama-3.3-70b", **fields)) as response:
        assert response.status == 200

    assert (status, body["issues"][0]["path"]) == (400, list(fields))


async def test_parts_of_other_roles(venice: Client) -> None:
    """Only users send anything but text."""
    part = {"type": "refusal", "refusal": "no"}
    messages = [{"role": "assistant", "content": [part]}, *conversation("user")]
    status, body = await refused(venice, {"model": "default", "messages": messages})

    assert (status, body["issues"][0]["path"]) == (400, ["messages", 0, "content", 0, "type"])


async def test_limit_that_venice_ignores(venice: Client) -> None:
    """A ``max_tokens`` of zero or less is ignored."""
    assert (await message(venice, "[tokens=5]", max_tokens=0))["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "name": "look", "parameters": LOOK["function"]},
        {"name": "look", "input_schema": {"type": "object"}},
    ],
)
async def test_other_forms_of_tools(venice: Client, tool: dict[str, Any]) -> None:
    """Venice takes the tools of other APIs, too."""
    answer = await message(venice, "[call=look]", tools=[tool])

    assert [call["function"]["name"] for call in answer["tool_calls"]] == ["look"]
