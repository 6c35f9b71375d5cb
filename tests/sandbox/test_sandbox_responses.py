"""The native and the translated mode of the sandbox's Responses API."""

import json
from typing import Any

import pytest
from sandbox_client import Client, last_call, refused

PATH = "/api/v1/responses"
NATIVE, COMPAT = "openai-gpt-52", "llama-3.3-70b"
MODE = "x-venice-responses-mode"
LANE, REASON = "x-venice-responses-lane", "x-venice-responses-compat-reason"
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
LOOK = {"type": "function", "name": "look", "parameters": SCHEMA}
NESTED = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
STRICT = {**SCHEMA, "additionalProperties": False}
LOCAL_SHELL = {"type": "shell", "environment": {"type": "local"}}


def asking(model: str = COMPAT, text: str = "Hello", **members: Any) -> dict[str, Any]:
    return {"model": model, "input": text, **members}


async def post(venice: Client, asked: dict[str, Any], **headers: str) -> tuple[Any, Any]:
    """Return the headers and the body of a response that succeeds."""
    async with venice.post(PATH, json=asked, headers=headers) as response:
        assert response.status == 200, await response.text()
        return response.headers, await response.json()


async def stream(venice: Client, asked: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the events of a response, and check that it ends with ``[DONE]``."""
    async with venice.post(PATH, json={**asked, "stream": True}) as response:
        *events, done, rest = (await response.text()).split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    pairs = [event.split("\n") for event in events]
    return [
        (kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for kind, data in pairs
    ]


def kinds_of(events: list[tuple[str, Any]]) -> list[str]:
    """Return the kinds of the events, without repeats."""
    kinds = [kind.removeprefix("response.") for kind, _ in events]
    return [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]


def message(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": list(parts)}


FILE = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,YQ=="}
REMOTE = {"type": "input_file", "file_url": "https://sandbox.invalid/a.pdf"}
OBSTACLES = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"nonsense": 1}, "nonsense"),
    ({"web_search": True}, "web_search"),
    ({"venice_parameters": {"enable_web_search": "auto"}}, "venice_parameters.enable_web_search"),
    ({"venice_parameters": {"character_slug": "x"}}, "venice_parameters.character_slug"),
    ({"tools": [LOOK, {"type": "web_search"}]}, "tools[1]"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0]"),
    ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0]"),
    ({"tools": [{"type": "shell"}]}, "tools[0]"),
    ({"input": [{"type": "item_reference", "id": "rs_1"}, message()]}, "input[0]"),
    ({"input": [message({"type": "input_image", "file_id": "file-1"})]}, "input[0].content[0]"),
]


@pytest.mark.parametrize(
    ("model", "mode", "lane"),
    [
        (NATIVE, None, "native"),
        (NATIVE, "auto", "native"),
        (NATIVE, "native", "native"),
        (NATIVE, "compat", "compat"),
        ("openai-gpt-oss-120b", None, "compat"),
        (COMPAT, None, "compat"),
        ("claude-opus-4-8", "auto", "compat"),
    ],
)
async def test_lane(venice: Client, model: str, mode: str | None, lane: str) -> None:
    """OpenAI's models are served natively unless the header wants otherwise."""
    headers, _ = await post(venice, asking(model), **({MODE: mode} if mode else {}))

    assert headers[LANE] == lane
    assert REASON not in headers


@pytest.mark.parametrize(("members", "reason"), OBSTACLES)
async def test_compat_reason(venice: Client, members: dict[str, Any], reason: str) -> None:
    """What the native mode cannot serve is served translated, and a header names it; where the
    native mode is required, it is a 400."""
    headers, _ = await post(venice, {**asking(NATIVE), **members})
    async with venice.post(
        PATH, json={**asking(NATIVE), **members}, headers={MODE: "native"}
    ) as response:
        issues = (await response.json())["issues"]

    assert (headers[LANE], headers[REASON]) == ("compat", reason)
    assert (response.status, issues[0]["path"]) == (400, [reason])


@pytest.mark.parametrize(("model", "mode"), [(COMPAT, "native"), (NATIVE, "fast")])
async def test_mode_is_refused(venice: Client, model: str, mode: str) -> None:
    """The native mode of another model, and a mode that does not exist, are a 400."""
    async with venice.post(PATH, json=asking(model), headers={MODE: mode}) as response:
        assert response.status == 400


# Native


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"tools": [NESTED]}, ["tools", 0, "name"]),
        ({"tools": [LOOK], "tool_choice": NESTED}, ["tool_choice", "name"]),
        ({"tool_choice": {"type": "function", "name": "look"}}, ["tool_choice", "name"]),
        ({"tools": [{**LOOK, "strict": True}]}, ["tools", 0, "parameters"]),
        ({"text": {"format": {"type": "json_object"}}}, ["input"]),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, ["text", "format", "schema"]),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]},
            ["input", 0, "call_id"],
        ),
        (
            {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "b", "input": "c"}]},
            ["input", 0, "call_id"],
        ),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, ["input", 0, "id"]),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "other"}]},
            ["input", 0],
        ),
    ],
)
async def test_native_refusals(venice: Client, members: dict[str, Any], path: list[Any]) -> None:
    """The native mode refuses what OpenAI refuses, and names it."""
    status, body = await refused(venice, {**asking(NATIVE), **members}, PATH)

    assert (status, body["issues"][0]["path"]) == (400, path)


async def test_native_instructions_and_format(sdk: Any) -> None:
    """The native mode applies instructions, and answers in the requested format."""
    text = await sdk.responses.create(
        model=NATIVE, input="Hello", instructions="Be brief. [reply=Aye.]"
    )
    schema = {"type": "json_schema", "name": "place", "strict": True, "schema": STRICT}
    formatted = await sdk.responses.create(model=NATIVE, input="Where?", text={"format": schema})

    assert text.output_text == "Aye."
    assert text.instructions == "Be brief. [reply=Aye.]"
    assert json.loads(formatted.output_text) == {"at": "simulated"}


@pytest.mark.parametrize(
    ("tool", "marker", "kind", "members"),
    [
        (LOOK, '[call=look {"at": "sea"}]', "function_call", {"arguments": '{"at":"sea"}'}),
        (
            {"type": "custom", "name": "patch"},
            '[call=patch "*** Begin"]',
            "custom_tool_call",
            {"name": "patch", "input": "*** Begin"},
        ),
        (
            {"type": "apply_patch"},
            '[call=apply_patch {"type": "delete_file", "path": "a.py"}]',
            "apply_patch_call",
            {"operation": {"type": "delete_file", "path": "a.py"}},
        ),
        (
            LOCAL_SHELL,
            '[call=shell ["ls", "pwd"]]',
            "shell_call",
            {"action": {"commands": ["ls", "pwd"], "timeout_ms": None, "max_output_length": None}},
        ),
        (
            {"type": "local_shell"},
            '[call=local_shell ["ls", "-l"]]',
            "local_shell_call",
            {"action": {"type": "exec", "env": {}, "command": ["ls", "-l"]}},
        ),
        (
            {"type": "namespace", "name": "crm", "tools": [LOOK]},
            "[call=look]",
            "function_call",
            {"namespace": "crm", "arguments": '{"at":"simulated"}'},
        ),
    ],
)
async def test_native_tools(
    venice: Client, tool: Any, marker: str, kind: str, members: dict[str, Any]
) -> None:
    """The native mode calls every kind of tool that the client runs, and takes the call, its output
    and its reasoning back."""
    asked = asking(NATIVE, marker, tools=[tool])
    _, whole = await post(venice, asked)
    events = await stream(venice, asked)

    for output in (whole["output"], events[-1][1]["response"]["output"]):
        reasoning, call = output
        assert reasoning["encrypted_content"]
        assert (call["type"], call["status"]) == (kind, "completed")
        assert {name: call[name] for name in members} == members
    result = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "done"}
    items = [message({"type": "input_text", "text": marker}), *output, result]
    _, final = await post(venice, {**asked, "input": items})
    assert final["output"][-1]["content"][0]["text"].endswith("The last tool returned: done")


async def test_native_stream(venice: Client, sdk: Any) -> None:
    """The native mode sends all of OpenAI's events, numbered, which OpenAI's SDK assembles."""
    asked = asking(NATIVE, "[text=I look.][call=look {}]", tools=[LOOK])
    events = await stream(venice, asked)
    async with sdk.responses.stream(**asked) as streamed:
        assembled = await streamed.get_final_response()

    assert kinds_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    usage = events[-1][1]["response"]["usage"]
    assert usage["output_tokens_details"]["reasoning_tokens"] > 0
    assert [item.type for item in assembled.output] == ["reasoning", "message", "function_call"]
    assert assembled.output_text == "I look."


async def test_native_without_reasoning(venice: Client) -> None:
    """A model without reasoning, or asked not to reason, sends no reasoning item."""
    _, plain = await post(venice, asking("openai-gpt-4o-mini-2024-07-18"))
    _, off = await post(venice, asking(NATIVE, reasoning={"effort": "none"}))

    for body in (plain, off):
        assert [item["type"] for item in body["output"]] == ["message"]


async def test_native_files(venice: Client) -> None:
    """The native mode takes files that are part of the request, and the translated mode none."""
    asked = {"input": [message(FILE, {"type": "input_text", "text": "a"})]}

    headers, _ = await post(venice, {**asking(NATIVE), **asked})
    status, body = await refused(venice, {**asking(), **asked}, PATH)
    remote = await refused(venice, {**asking(NATIVE), "input": [message(REMOTE)]}, PATH)

    assert headers[LANE] == "native"
    assert (status, body["issues"][0]["path"]) == (400, ["input", 0, "content", 0, "type"])
    assert remote[0] == 400


# Translated


async def test_compat_ignores(venice: Client) -> None:
    """The translated mode ignores instructions, formats, hosted tools, reasoning items and unknown
    members."""
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": ["Hm."]}
    headers, body = await post(
        venice,
        asking(
            instructions="[reply=Aye.]",
            text={"format": {"type": "json_schema", "name": "a", "schema": STRICT}},
            tools=[{"type": "code_interpreter"}, {"type": "file_search"}],
            tool_choice="required",
            nonsense=1,
        )
        | {"input": [reasoning, {"type": "item_reference", "id": "a"}, message(role="user")]},
    )

    assert headers[LANE] == "compat"
    (answer,) = body["output"]
    assert answer["content"][0]["text"].startswith("This is a simulated answer")
    assert "cost" not in body
    assert "instructions" not in body


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"tool_choice": {"type": "function", "name": "look"}}, ["tool_choice", "function"]),
        ({"tool_choice": "any"}, ["tool_choice"]),
        ({"input": [{"type": "custom_tool_call", "call_id": "a"}]}, ["input", 0, "type"]),
        ({"input": [{"role": "tool", "content": "a"}]}, ["input", 0, "role"]),
        (
            {"input": [message({"type": "input_image", "image_url": "a", "detail": "original"})]},
            ["input", 0, "content", 0, "detail"],
        ),
        ({"max_output_tokens": 0, "nonsense": 1}, ["max_output_tokens"]),
    ],
)
async def test_compat_refusals(venice: Client, members: dict[str, Any], path: list[Any]) -> None:
    """The translated mode refuses what its schema does not allow, and names it."""
    status, body = await refused(venice, {**asking(tools=[LOOK]), **members}, PATH)

    assert (status, body["issues"][0]["path"]) == (400, path)


@pytest.mark.parametrize("tool", [LOOK, NESTED, {"type": "custom", "name": "look"}])
async def test_compat_tools(venice: Client, tool: Any) -> None:
    """The translated mode takes functions in both forms, custom tools as functions, and a choice in
    the form of chat completions."""
    choice = {"type": "function", "function": {"name": "look"}}
    _, body = await post(venice, asking(tools=[tool], tool_choice=choice))

    assert [(item["type"], item["name"]) for item in body["output"]] == [("function_call", "look")]


async def test_compat_stream(venice: Client) -> None:
    """The translated mode sends fewer events than OpenAI, and its own for reasoning."""
    asked = asking("kimi-k2-6", "[text=I look.][call=look {}]", tools=[LOOK])
    events = await stream(venice, asked)
    _, whole = await post(venice, asked)

    assert kinds_of(events) == [
        "created",
        "output_item.added",
        "reasoning.delta",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "output_item.done",
        "completed",
    ]
    last = events[-1][1]["response"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message", "function_call"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "function_call", "message"]
    assert whole["output"][0]["summary"] == ["I must call a tool."]


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"type": "web_search"}]},
        {"web_search": True},
        {"venice_parameters": {"enable_web_search": "on"}},
    ],
)
async def test_compat_search(venice: Client, members: dict[str, Any]) -> None:
    """A ``web_search`` tool forces a paid search, whose results come before the answer."""
    await post(venice, asking())
    unpaid = last_call(venice).charged_nanos
    cited = {"enable_web_citations": True, **members.get("venice_parameters", {})}
    asked = {**asking(), **members, "venice_parameters": cited}
    _, whole = await post(venice, asked)
    paid = last_call(venice).charged_nanos
    events = await stream(venice, asked)

    assert [item["type"] for item in whole["output"]] == ["web_search_call", "message"]
    (part,) = whole["output"][1]["content"]
    (annotation,) = part["annotations"]
    start, end = annotation["start_index"], annotation["end_index"]
    assert part["text"][start:end] == "^1^"
    # One more token at 2.8 USD per million for the citation.
    assert paid - unpaid == 10_000_000 + 2_800
    kind, data = events[1]
    assert (kind, data["type"]) == ("response.web_search.done", "web_search_call")
    assert "sequence_number" not in data
    assert data["results"][0].keys() == {"index", "url", "title", "snippet"}
    numbers = [data["sequence_number"] for kind, data in events if "search" not in kind]
    assert numbers == list(range(len(numbers)))


async def test_compat_searches_x(venice: Client) -> None:
    """``x_search`` is paid on models that have it, and ignored on others."""
    costs = []
    for model in ("grok-4-5", COMPAT):
        for tools in ([], [{"type": "x_search"}]):
            await post(venice, asking(model, tools=tools))
            costs.append(last_call(venice).charged_nanos)

    assert costs[1] - costs[0] == 10_000_000
    assert costs[3] == costs[2]


async def test_compat_unknown_character(venice: Client) -> None:
    """An unknown character is ignored together with the caller's system messages."""
    system = {"role": "system", "content": "[reply=Aye.]"}
    asked = {**asking(), "input": [system, {"role": "user", "content": "Hello"}]}
    texts = []
    for slug in (None, "simulated-sage", "nobody"):
        parameters = {"character_slug": slug} if slug else {}
        _, body = await post(venice, {**asked, "venice_parameters": parameters})
        texts.append(body["output"][0]["content"][0]["text"])

    assert texts[:2] == ["Aye.", "Aye."]
    assert "You wrote: Hello" in texts[2]


async def test_compat_e2ee(venice: Client) -> None:
    """A model with end-to-end encryption is served without it only."""
    without = {"venice_parameters": {"enable_e2ee": False}}

    status, _ = await refused(venice, asking("e2ee-qwen3-30b"), PATH)
    headers, _ = await post(venice, {**asking("e2ee-qwen3-30b"), **without})

    assert status == 400
    assert headers[LANE] == "compat"


# Both


@pytest.mark.parametrize("model", [NATIVE, COMPAT])
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"max_output_tokens": 2}, "max_output_tokens"),
        ({"input": "[finish=content_filter]"}, "content_filter"),
    ],
)
async def test_incomplete(venice: Client, model: str, members: Any, reason: str) -> None:
    """An answer that was cut is incomplete, with its reason, output and usage."""
    _, whole = await post(venice, {**asking(model), **members})
    events = await stream(venice, {**asking(model), **members})

    assert events[-1][0] == "response.incomplete"
    for response in (whole, events[-1][1]["response"]):
        assert response["status"] == response["output"][-1]["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": reason}
        assert response["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("model", [NATIVE, COMPAT])
async def test_failed(venice: Client, model: str) -> None:
    """``[fail=CODE]`` ends a stream with response.failed. A whole response is failed in the native
    mode and a 500 in the translated mode."""
    events = await stream(venice, asking(model, "[fail=rate_limit_exceeded][tokens=2]"))
    async with venice.post(PATH, json=asking(model, "[fail=server_error]")) as response:
        body = await response.json()

    kind, data = events[-1]
    assert kind == "response.failed"
    assert data["response"]["status"] == "failed"
    assert data["response"]["error"]["code"] == "rate_limit_exceeded"
    assert [kind for kind, _ in events].count("response.output_text.delta") == 2
    if model == NATIVE:
        assert (response.status, body["status"]) == (200, "failed")
    else:
        assert response.status == 500
    assert (body["error"]["code"] if model == NATIVE else body["code"]) == "server_error"


@pytest.mark.parametrize("model", [NATIVE, COMPAT])
async def test_error_event(venice: Client, sdk: Any, model: str) -> None:
    """``[error=CODE]`` ends a stream with an error event, and is a 500 without a stream."""
    asked = asking(model, "[error=model_overloaded]")
    kind, data = (await stream(venice, asked))[-1]
    status, _ = await refused(venice, asked, PATH)

    assert (kind, data["type"], data["code"], status) == ("error", "error", "model_overloaded", 500)
    events = [event async for event in await sdk.responses.create(**asked, stream=True)]
    assert (events[-1].type, events[-1].code) == ("error", "model_overloaded")


@pytest.mark.parametrize("model", [NATIVE, COMPAT])
async def test_refusal(venice: Client, model: str) -> None:
    """``[refusal=TEXT]`` is a refusal, whole and streamed."""
    asked = asking(model, "[refusal=I would rather not.]")
    _, whole = await post(venice, asked)
    events = await stream(venice, asked)

    expected = {"type": "refusal", "refusal": "I would rather not."}
    for response in (whole, events[-1][1]["response"]):
        assert response["output"][-1]["content"] == [expected]
    deltas = [data["delta"] for kind, data in events if kind == "response.refusal.delta"]
    assert "".join(deltas) == "I would rather not."
