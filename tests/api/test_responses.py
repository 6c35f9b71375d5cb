"""The Responses API before a Venice that plays both of its modes: nothing that a caller asks for is
lost in silence, and what Venice lacks is refused by name."""

import asyncio
import json

import openai
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_venice import odd_venice, serving, stream, whole
from support import MODEL, assert_ledger_matches_charges, cost_of, set_alias, set_limit

CHAT, RESPONSES = "/chat/completions", "/responses"
NATIVE, TRANSLATED = "openai-gpt-53-codex", "kimi-k2-6"
OSS = "openai-gpt-oss-120b"
LANE = "x-venice-responses-lane"
REASON = "x-venice-responses-compat-reason"
MODE = "x-venice-responses-mode"
PIXEL = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,AAAA"
SCHEMA = {
    "type": "object",
    "properties": {"where": {"type": "string"}},
    "required": ["where"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
NESTED = {"type": "function", "function": {"name": "look", "parameters": SCHEMA, "strict": True}}
NESTED_CHOICE = {"type": "function", "function": {"name": "look"}}
WRITE = {"type": "custom", "name": "write", "description": "Writes."}
USER = {"role": "user", "content": "Hello"}
CALLED = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
CUSTOM_CALLED = {"type": "custom_tool_call", "call_id": "c", "name": "write", "input": "x"}
CUSTOM_RESULT = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
JSON_FORMAT = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}
LOGPROBS = "message.output_text.logprobs"
PASS, REWRITE, CHAT_WAY = "pass", "rewrite", "chat"
pytestmark = pytest.mark.shares_service


def parts(*content):
    return {"input": [{"role": "user", "content": list(content)}]}


TABLE = [
    # The members, what becomes of them natively and translated: the field that is refused, else how
    # the request arrives.
    ({}, PASS, PASS),
    ({"temperature": 0.5, "top_p": 0.5, "max_output_tokens": 50}, PASS, PASS),
    ({"instructions": "Be short."}, PASS, REWRITE),
    ({"instructions": ""}, PASS, REWRITE),
    ({"instructions": "Be short.", "input": [USER]}, PASS, REWRITE),
    ({"input": [{"role": "developer", "content": "Be short."}, USER]}, PASS, PASS),
    (
        {"instructions": "Be short.", "input": [{"role": "developer", "content": "x"}, USER]},
        PASS,
        CHAT_WAY,
    ),
    ({"input": [USER, {"role": "system", "content": "Be short."}]}, PASS, CHAT_WAY),
    ({"text": {"format": {"type": "text"}}}, PASS, PASS),
    ({"text": JSON_FORMAT}, PASS, CHAT_WAY),
    ({"text": {"format": {"type": "json_object"}}, "input": "Hello as JSON"}, PASS, CHAT_WAY),
    ({"text": {"verbosity": "medium"}}, PASS, CHAT_WAY),
    ({"tools": [LOOK]}, PASS, PASS),
    ({"tools": [NESTED]}, REWRITE, PASS),
    ({"tools": [LOOK], "tool_choice": "required"}, PASS, PASS),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}}, PASS, REWRITE),
    ({"tools": [LOOK], "tool_choice": NESTED_CHOICE}, REWRITE, PASS),
    (
        {
            "tools": [LOOK, WRITE],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [LOOK]},
        },
        PASS,
        CHAT_WAY,
    ),
    ({"tools": [LOOK], "parallel_tool_calls": True}, PASS, PASS),
    ({"tools": [LOOK], "parallel_tool_calls": False}, PASS, CHAT_WAY),
    ({"tools": [WRITE]}, PASS, CHAT_WAY),
    ({"tools": [WRITE], "tool_choice": {"type": "custom", "name": "write"}}, PASS, CHAT_WAY),
    ({"tools": [{"type": "local_shell"}]}, PASS, CHAT_WAY),
    ({"tools": [{"type": "apply_patch"}]}, PASS, CHAT_WAY),
    ({"tools": [{"type": "shell"}]}, REWRITE, CHAT_WAY),
    ({"tools": [{"type": "shell", "environment": {"type": "local"}}]}, PASS, CHAT_WAY),
    (
        {"tools": [{"type": "namespace", "name": "a", "description": "A.", "tools": [LOOK]}]},
        PASS,
        CHAT_WAY,
    ),
    ({"tools": [{"type": "computer_use_preview", "environment": "linux"}]}, PASS, CHAT_WAY),
    ({"tools": [{"type": "web_search"}]}, CHAT_WAY, CHAT_WAY),
    ({"tools": [{"type": "web_search_preview"}]}, CHAT_WAY, CHAT_WAY),
    ({"tools": [{"type": "web_search", "external_web_access": False}]}, PASS, PASS),
    (
        {"tools": [{"type": "web_search", "filters": {"allowed_domains": ["a.example"]}}]},
        "tools[0].filters",
        "tools[0].filters",
    ),
    ({"tools": [LOOK, {"type": "code_interpreter"}]}, "tools[1].type", "tools[1].type"),
    ({"tools": [{"type": "file_search"}]}, "tools[0].type", "tools[0].type"),
    ({"tools": [{"type": "image_generation"}]}, "tools[0].type", "tools[0].type"),
    ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0].type", "tools[0].type"),
    ({"tools": [{"type": "tool_search"}]}, "tools[0].type", "tools[0].type"),
    (
        {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
        "tools[0].type",
        "tools[0].type",
    ),
    ({"tools": [{"type": "f\u0069le_search_2"}]}, "tools[0].type", "tools[0].type"),
    (
        {"tools": [LOOK], "tool_choice": {"type": "image_generation"}},
        "tool_choice.type",
        "tool_choice.type",
    ),
    ({"tools": [{"type": "x_search", "from_date": "2026-01-01"}]}, PASS, PASS),
    (
        {"tools": [{"type": "x_search", "from_date": "2026-01-01"}, WRITE]},
        "tools[0].from_date",
        "tools[0].from_date",
    ),
    ({"web_search": True}, PASS, PASS),
    ({"venice_parameters": {"enable_web_search": "on"}}, PASS, PASS),
    ({"venice_parameters": {"enable_web_search": "on"}, "instructions": "x"}, REWRITE, REWRITE),
    ({"venice_parameters": {"include_venice_system_prompt": True}}, PASS, PASS),
    ({"venice_parameters": {"disable_thinking": True}}, CHAT_WAY, CHAT_WAY),
    ({"venice_parameters": {"enable_x_search": True}}, CHAT_WAY, CHAT_WAY),
    ({"reasoning": {"effort": "low"}}, PASS, PASS),
    ({"reasoning": {"effort": "low", "summary": "auto"}}, PASS, CHAT_WAY),
    ({"include": ["reasoning.encrypted_content"]}, PASS, PASS),
    ({"prompt_cache_key": "k"}, PASS, CHAT_WAY),
    ({"seed": 5}, CHAT_WAY, CHAT_WAY),
    ({"stop": ["x"]}, CHAT_WAY, CHAT_WAY),
    ({"truncation": "disabled"}, PASS, PASS),
    ({"truncation": "auto"}, PASS, "truncation"),
    ({"max_tool_calls": 3}, PASS, "max_tool_calls"),
    ({"background": True}, "background", "background"),
    ({"background": False, "previous_response_id": None}, PASS, PASS),
    ({"previous_response_id": "r"}, "previous_response_id", "previous_response_id"),
    ({"conversation": "c"}, "conversation", "conversation"),
    ({"prompt": {"id": "p"}}, "prompt", "prompt"),
    ({"store": True, "metadata": {"a": "b"}}, PASS, PASS),
    ({"client_metadata": {"a": "b"}}, REWRITE, REWRITE),
    ({"user": "u", "safety_identifier": "s"}, PASS, PASS),
    (parts({"type": "input_text", "text": "x"}), PASS, PASS),
    (parts({"type": "input_image", "image_url": PIXEL}), PASS, CHAT_WAY),
    (parts({"type": "input_image", "image_url": PIXEL, "detail": "original"}), PASS, CHAT_WAY),
    (parts({"type": "input_file", "file_data": PDF, "filename": "a.pdf"}), PASS, CHAT_WAY),
    (parts({"type": "input_file", "file_url": "https://a.example/a.pdf"}), CHAT_WAY, CHAT_WAY),
    (
        parts({"type": "input_file", "file_id": "f"}),
        "input[0].content[0].file_id",
        "input[0].content[0].file_id",
    ),
    ({"input": [USER, CALLED, {**CUSTOM_RESULT, "type": "function_call_output"}]}, PASS, PASS),
    ({"input": [USER, CUSTOM_CALLED, CUSTOM_RESULT]}, PASS, CHAT_WAY),
    (
        {"input": [USER, {"type": "reasoning", "id": "r", "summary": []}, USER]},
        REWRITE,
        CHAT_WAY,
    ),
    ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type", "input[0].type"),
    ({"input": [{"id": "i"}]}, "input[0].type", "input[0].type"),
]


async def send(caller, model, headers=None, **members):
    """Post a request; return the response, read, and its decoded body."""
    body = {"model": model, "input": "Hello", **members}
    headers = {**caller.headers, **(headers or {})}
    url = f"/v1{RESPONSES}"
    async with caller.service.http.post(url, json=body, headers=headers) as response:
        return response, await response.json()


def sent(upstream):
    """Return the path and the body of the last call, without the members that are always added."""
    call = upstream.posts[-1]
    body = json.loads(call.body)
    for name in ("user", "max_output_tokens", "max_completion_tokens", "model"):
        body.pop(name, None)
    return call.path, body


@pytest.mark.parametrize("model", [NATIVE, TRANSLATED, OSS])
@pytest.mark.parametrize(("members", "native", "translated"), TABLE, ids=json.dumps)
async def test_the_table(caller, upstream, model, members, native, translated):
    """Each member passes, is rewritten, goes by way of chat completions or is refused by name, and
    Venice serves the request in the mode for which it was written."""
    expected = native if model == NATIVE else translated
    response, answer = await send(caller, model, **members)
    if expected not in (PASS, REWRITE, CHAT_WAY):
        assert (response.status, answer["error"]["param"]) == (400, expected), answer
        assert answer["error"]["message"].startswith(f"{expected}: ")
        assert upstream.posts == []
        return

    path, body = sent(upstream)
    assert path == (CHAT if expected == CHAT_WAY else RESPONSES)
    if response.status == 400:
        # A model without vision or formats, or one of OpenAI's that takes neither of these.
        assert answer["error"]["code"] == "upstream_rejected"
        assert path == CHAT
        assert model == OSS or members.keys() & {"seed", "stop"}
        return
    assert (response.status, answer["status"]) == (200, "completed"), answer
    asked = {"input": "Hello", **members}
    asked.pop("max_output_tokens", None)
    if path == RESPONSES:
        is_unchanged = {name: body.get(name) for name in asked} == asked
        dropped = ("store", "metadata", "safety_identifier", "user")
        is_tolerated = any(name in members for name in dropped) or "background" in members
        is_search_left_out = members.get("tools", [{}])[0].get("external_web_access") is False
        assert is_unchanged == (expected == PASS) or is_tolerated or is_search_left_out
        parameters = members.get("venice_parameters", {})
        is_searched = members.get("web_search") or "enable_web_search" in parameters
        is_searched = is_searched or members.get("tools", [{}])[0].get("type") == "x_search"
        is_native = model == NATIVE and not is_searched
        assert response.headers[LANE] == ("native" if is_native else "compat")
        if not is_native:
            assert_nothing_is_ignored(body)


IGNORED = {
    *("instructions", "text", "prompt_cache_key", "prompt_cache_retention", "seed", "stop", "n"),
    *("top_logprobs", "max_tool_calls", "response_format", "reasoning_effort", "conversation"),
    *("previous_response_id", "prompt", "client_metadata", "verbosity", "top_k"),
}
"""Members that Venice's translation takes and ignores."""
TRANSLATED_TYPES = {"message", "function_call", "function_call_output", None}


def assert_nothing_is_ignored(body):
    """Assert that a body has nothing that Venice's translation ignores, except what asks for
    nothing."""
    ignored = {name for name in IGNORED & body.keys() if body[name] not in (None, False, {})}
    if body.get("text") == {"format": {"type": "text"}}:
        ignored.discard("text")
    assert ignored == set()
    assert body.get("parallel_tool_calls", True) is True
    assert body.get("truncation", "disabled") == "disabled"
    assert (body.get("reasoning") or {}).get("summary") is None
    assert LOGPROBS not in body.get("include", [])
    for tool in body.get("tools", []):
        assert tool["type"] in ("function", "x_search")
    choice = body.get("tool_choice")
    assert choice in (None, "auto", "none", "required") or "function" in choice
    assert ":" not in body.get("model", "")
    known = {"enable_web_search", "enable_web_scraping", "enable_web_citations", "enable_e2ee"}
    known |= {"include_venice_system_prompt", "include_search_results_in_stream"}
    assert body.get("venice_parameters", {}).keys() <= known
    for index, item in enumerate(body["input"] if isinstance(body["input"], list) else ()):
        assert item.get("type") in TRANSLATED_TYPES
        assert item.get("role") not in ("system", "developer") or index == 0
        for part in item["content"] if isinstance(item.get("content"), list) else ():
            assert part["type"] in ("input_text", "output_text", "text")


members = st.sampled_from(TABLE).map(lambda row: row[0])


@settings(
    max_examples=10 * settings.default.max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(members, min_size=1, max_size=4),
    model=st.sampled_from([NATIVE, TRANSLATED, MODEL]),
    mode=st.sampled_from([None, None, "auto", "compat", "native"]),
)
async def test_members_together(caller, upstream, rows, model, mode):
    """Whatever members a request has together, Venice never translates one with members that its
    translation ignores, and never serves an OpenAI model in another mode than was foreseen."""
    upstream.calls.clear()
    asked = {name: value for row in rows for name, value in row.items()}
    response, answer = await send(caller, model, {MODE: mode} if mode else {}, **asked)
    if not upstream.calls.to(RESPONSES):
        assert upstream.calls.to(CHAT) or response.status == 400, answer
        return
    (call,) = upstream.calls.to(RESPONSES)
    lane = response.headers.get(LANE)
    if lane is None:
        assert response.status == 400, answer
    elif lane == "compat":
        assert_nothing_is_ignored(json.loads(call.body))
    else:
        assert model == NATIVE
        assert mode != "compat"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_headers_for_the_mode_pass(caller, upstream, stream):
    """The caller's mode reaches Venice, and Venice's lane and reason reach the caller."""
    for mode, model, lane in (
        ("native", NATIVE, "native"),
        ("auto", NATIVE, "native"),
        ("compat", NATIVE, "compat"),
        ("compat", TRANSLATED, "compat"),
    ):
        asked = {"model": model, "input": "Hello", "stream": stream}
        headers = {**caller.headers, MODE: mode}
        async with caller.service.http.post(
            f"/v1{RESPONSES}", json=asked, headers=headers
        ) as response:
            await response.read()
        assert (response.status, response.headers[LANE]) == (200, lane)
        assert upstream.posts[-1].headers[MODE] == mode

    response, _ = await send(caller, NATIVE, web_search=True)
    assert (response.headers[LANE], response.headers[REASON]) == ("compat", "web_search")


@pytest.mark.parametrize(
    ("mode", "model", "members", "param"),
    [
        ("other", NATIVE, {}, MODE),
        ("native", TRANSLATED, {}, MODE),
        ("native", NATIVE, {"web_search": True}, "web_search"),
        ("native", NATIVE, {"seed": 5}, "seed"),
    ],
)
async def test_a_mode_that_cannot_serve_the_request_is_refused(
    caller, upstream, mode, model, members, param
):
    """A mode that does not exist, or that cannot serve the request, is a 400 that names why."""
    response, answer = await send(caller, model, {MODE: mode}, **members)

    assert (response.status, answer["error"]["param"]) == (400, param)
    assert upstream.posts == []


async def test_an_unknown_member_is_never_ignored(caller, upstream):
    """Venice itself refuses a member that Rialto does not know, rather than ignore it: natively
    because the mode is pinned, and for other models because chat completions are strict."""
    for model, path in ((NATIVE, RESPONSES), (TRANSLATED, CHAT)):
        response, answer = await send(caller, model, instructions="x", moonlight="on")
        assert (response.status, answer["error"]["code"]) == (400, "upstream_rejected")
        assert upstream.posts[-1].path == path
    assert upstream.calls.to(RESPONSES)[0].headers[MODE] == "native"


async def test_a_target_of_the_other_mode(service, caller, upstream):
    """When the first target of an alias is overloaded, the second gets the request in the form of
    its own mode, and the entry is of what was called."""
    for name, targets in (("first", [NATIVE, TRANSLATED]), ("second", [TRANSLATED, NATIVE])):
        await set_alias(service, name, targets)
    asked = {"instructions": "Be short.", "tools": [WRITE], "text": JSON_FORMAT}
    for name, path, other in (("first", RESPONSES, CHAT), ("second", CHAT, RESPONSES)):
        for is_stream in (False, True):
            upstream.calls.clear()
            upstream.faults.push(path, "at_capacity", times=1)
            body = {"model": name, "input": "Hello", "stream": is_stream, **asked}
            async with service.http.post(
                f"/v1{RESPONSES}", json=body, headers=caller.headers
            ) as response:
                answered = await response.text()
            assert response.status == 200, answered
            assert ("response.completed" in answered) == is_stream
            assert [call.path for call in upstream.posts] == [path, other]
            entry = (await caller.entries())[0]
            assert (entry["endpoint"], entry["outcome"]) == (other, "ok")
            reaches = json.loads(upstream.calls.to(RESPONSES)[0].body)
            assert reaches["instructions"] == "Be short."
            (message, _) = json.loads(upstream.calls.to(CHAT)[0].body)["messages"]
            assert message == {"role": "system", "content": "Be short."}


async def test_a_target_that_cannot_serve_the_request_is_left_out(service, caller, upstream):
    """A target of an alias for which a member cannot be expressed is left out; if no target is
    left, the refusal names the member."""
    await set_alias(service, "both", [TRANSLATED, NATIVE])
    response, _ = await send(caller, "both", truncation="auto")
    assert (response.status, response.headers["x-rialto-model"]) == (200, NATIVE)
    await set_alias(service, "neither", [TRANSLATED, MODEL])
    response, answer = await send(caller, "neither", truncation="auto")
    assert (response.status, answer["error"]["param"]) == (400, "truncation")


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"instructions": "Be short."}, "instructions"),
        ({"text": JSON_FORMAT}, "text.format"),
        ({"tools": [WRITE]}, "tools[0]"),
    ],
)
async def test_an_encrypted_body_is_not_translated(caller, upstream, members, param):
    """What Venice would ignore in the body of a model with end-to-end encryption is refused, since
    such a body is never changed."""
    asked = {"stream": True, "venice_parameters": {"enable_e2ee": False}}
    response, answer = await send(caller, "e2ee-qwen3-30b", **asked, **members)

    assert (response.status, answer["error"]["param"]) == (400, param)
    assert upstream.posts == []


async def test_a_call_by_way_of_chat_is_held_and_booked_as_one(caller, upstream):
    """A response by way of chat completions is held for by the chat completion's bound, and booked
    with the cost that Venice states."""
    await set_limit(caller, unit="usd", period="day", ceiling="1")
    asked = {"max_output_tokens": 50, "text": JSON_FORMAT, "instructions": "Be short."}
    body = {"model": TRANSLATED, "input": "Hello", **asked}
    async with caller.service.http.post(
        "/v1/quote/responses", json=body, headers=caller.headers
    ) as response:
        quote = await response.json()
    assert (quote["endpoint"], quote["max_output_tokens"]) == (CHAT, 50)
    assert (await send(caller, TRANSLATED, **asked))[0].status == 200

    entry = await caller.only_entry()
    assert (entry["endpoint"], entry["cost_source"]) == (CHAT, "reported")
    assert 0 < cost_of(entry) <= float(quote["max_cost_usd"])
    await assert_ledger_matches_charges(caller, upstream)
    await set_limit(caller, unit="usd", period="month", ceiling="0.0001")
    response, answer = await send(caller, TRANSLATED, **asked)
    assert (response.status, answer["error"]["code"]) == (402, "limit_exceeded")
    assert "max_completion_tokens" not in answer["error"]["message"]


class Place(pydantic.BaseModel):
    """The structured output of the tests."""

    where: str


@pytest.fixture
async def client(caller):
    url = f"{caller.service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=caller.key, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", [NATIVE, TRANSLATED])
async def test_structured_output(client, caller, upstream, model):
    """``responses.parse`` returns an object, whole and streamed, on every kind of model."""
    asked = {"model": model, "input": "Hello", "text_format": Place}
    whole = await client.responses.parse(**asked)
    async with client.responses.stream(**asked) as stream:
        streamed = await stream.get_final_response()

    assert isinstance(whole.output_parsed, Place)
    assert whole.output_parsed == streamed.output_parsed
    assert {entry["outcome"] for entry in await caller.entries()} == {"ok"}


CODEX_TOOLS = [
    LOOK,
    {"type": "custom", "name": "write", "description": "Writes a file."},
    {"type": "local_shell"},
    {"type": "apply_patch"},
    {"type": "web_search", "external_web_access": False},
]
TASK = (
    'Do it. [think=3][call=look {"where": "here"} + write "line 1\\nline 2"]'
    ' [call=local_shell {"command": ["ls"]}]'
    ' [call=apply_patch {"type": "update_file", "path": "a", "diff": "+b"}] [reply=All done.]'
)
RESULTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "local_shell_call": "local_shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
}


@pytest.mark.parametrize("model", [NATIVE, TRANSLATED, "qwen3-235b-a22b-thinking-2507"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_agent_finishes_its_task(client, caller, upstream, model, streamed):
    """A coding agent with tools of every kind finishes its task under a limit of money: the calls
    come back as the items that it knows, and its reasoning and results reach the model."""
    await set_limit(caller, unit="usd", period="day", ceiling="3")
    items, seen = [{"role": "user", "content": TASK}], []
    for _ in range(6):
        asked = {
            "model": model,
            "instructions": "You are an agent.",
            "input": [{"role": "developer", "content": "Be careful."}, *items],
            "tools": CODEX_TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "session",
            "store": False,
        }
        if streamed:
            async with client.responses.stream(**asked) as stream:
                response = await stream.get_final_response()
        else:
            response = await client.responses.create(**asked)
        items += [item.model_dump(exclude_none=True) for item in response.output]
        calls = [item for item in response.output if item.type in RESULTS]
        if not calls:
            break
        for call in calls:
            seen.append(call)
            result = {"type": RESULTS[call.type], "call_id": call.call_id, "output": "fine"}
            if call.type == "apply_patch_call":
                result["status"] = "completed"
            items.append(result)

    assert [call.type for call in seen] == list(RESULTS)
    look, write, shell, patch = seen
    assert json.loads(look.arguments) == {"where": "here"}
    assert write.input == "line 1\nline 2"
    assert shell.action.command == ["ls"]
    assert (patch.operation.type, patch.operation.path) == ("update_file", "a")
    assert "All done." in response.output_text
    assert "reasoning" in {item["type"] for item in items if "type" in item}
    assert {entry["outcome"] for entry in await caller.entries()} == {"ok"}
    assert all(cost_of(entry) > 0 for entry in await caller.entries())


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_search_has_citations(client, caller, upstream, streamed):
    """A hosted search becomes Venice's own, and its results are citations of the text."""
    asked = {
        "model": TRANSLATED,
        "input": "Hello [search]",
        "tools": [{"type": "web_search"}],
    }
    if streamed:
        async with client.responses.stream(**asked) as stream:
            response = await stream.get_final_response()
    else:
        response = await client.responses.create(**asked)

    assert json.loads(upstream.posts[-1].body)["venice_parameters"]["enable_web_search"] == "auto"
    (message,) = [item for item in response.output if item.type == "message"]
    (search,) = [item for item in response.output if item.type == "web_search_call"]
    (annotation,) = message.content[0].annotations
    assert annotation.url in [source.url for source in search.action.sources]
    cited = message.content[0].text[annotation.start_index : annotation.end_index]
    assert cited == "^1^"
    await assert_ledger_matches_charges(caller, upstream)


@pytest.mark.parametrize("members", [{}, {"prompt_cache_key": "k"}], ids=["passed", "chat"])
async def test_an_incomplete_response(client, members):
    """A response that was cut off states why, by either way, whole and streamed."""
    asked = {"model": TRANSLATED, "input": "[tokens=50]", "max_output_tokens": 5, **members}
    whole = await client.responses.create(**asked)
    async for event in await client.responses.create(**asked, stream=True):
        last = event

    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output_text
        assert response.usage.output_tokens == 5


async def post(caller, **asked):
    """Stream a response; return its events, ``[DONE]`` left out."""
    asked = {"model": TRANSLATED, "stream": True, **asked}
    async with caller.service.http.post(
        f"/v1{RESPONSES}", json=asked, headers=caller.headers
    ) as response:
        text = (await response.read()).decode()
    assert response.status == 200, text
    assert text.endswith("data: [DONE]\n\n")
    lines = [line for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


WAYS = [{"model": NATIVE}, {"model": TRANSLATED}, {"prompt_cache_key": "k"}]


@pytest.mark.parametrize("members", WAYS, ids=["native", "translated", "chat"])
async def test_a_stream_that_breaks_off_ends_with_a_failure(client, caller, members):
    """A stream that Venice cuts ends with one ``response.failed``, numbered on, that has the error
    where OpenAI's clients look for it."""
    events = await post(caller, input="[tokens=9][cut=5]", **members)
    *before, last = events

    assert last["type"] == "response.failed"
    assert last["sequence_number"] == before[-1]["sequence_number"] + 1
    assert last["response"]["id"] == before[0]["response"]["id"]
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["error"]["code"] == "upstream_cut"
    assert last["error"]["message"] == last["response"]["error"]["message"]
    assert [event["type"] for event in before if event["type"].startswith("response.fail")] == []
    entry = await caller.only_entry()
    assert entry["outcome"] == "upstream_cut"

    asked = {"model": TRANSLATED, "input": "[tokens=9][cut=5]", **members}
    with pytest.raises(openai.APIError, match="closed the connection"):
        async for _ in await client.responses.create(**asked, stream=True):
            pass


@pytest.mark.parametrize("marker", ["[fail]", "[error]"])
@pytest.mark.parametrize("members", WAYS[:2], ids=["native", "translated"])
async def test_what_venice_ends_is_not_ended_twice(caller, members, marker):
    """Venice's own ``error`` and ``response.failed`` pass and end the stream."""
    events = await post(caller, input=f"[tokens=4]{marker}", **members)

    ends = ("error", "response.failed", "response.completed", "response.incomplete")
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind in ends] == [kinds[-1]]
    assert kinds[-1] == ("error" if marker == "[error]" else "response.failed")
    assert (await caller.only_entry())["outcome"] == "upstream_error"


@pytest.fixture
async def odd(database_address):
    """A Venice for which the test writes every byte, and a caller of the service before it."""
    async with odd_venice() as venice, serving(database_address, venice) as service:
        yield venice, await service.new_caller()


def event(kind, number, **data):
    """Return one event of a response."""
    content = json.dumps({"type": kind, "sequence_number": number, **data})
    return f"event: {kind}\ndata: {content}\n\n".encode()


CREATED = event("response.created", 0, response={"id": "r", "model": "m", "status": "in_progress"})
DELTA = event("response.output_text.delta", 1, delta="a", odd=None)
DONE = b"data: [DONE]\n\n"
USAGE = {"input_tokens": 5, "output_tokens": 7}
COMPLETED = event("response.completed", 2, response={"id": "r", "output": [], "usage": USAGE})
NO = {"code": "server_error", "message": "The moon is full."}
FAILED_RESPONSE = {"id": "r", "status": "failed", "output": [], "error": NO, "usage": USAGE}


async def read_stream(caller, **members):
    asked = {"model": "m", "input": "x", "stream": True, **members}
    async with caller.service.http.post(
        f"/v1{RESPONSES}", json=asked, headers=caller.headers
    ) as response:
        return response.status, await response.read()


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (COMPLETED + DONE, "ok"),
        (COMPLETED, "ok"),
        (event("response.failed", 2, response=FAILED_RESPONSE) + DONE, "upstream_error"),
        (event("error", 2, **NO), "upstream_error"),
        (event("error", 2, **NO) + DONE, "upstream_error"),
    ],
)
async def test_a_stream_that_passes_stays_byte_for_byte(odd, last, outcome):
    """Events that Venice writes itself pass unchanged, and nothing is added to them."""
    venice, caller = odd
    odd_comment = b": odd\r\n\r\n"
    venice.answer = stream(CREATED, odd_comment, DELTA, last)
    status, content = await read_stream(caller)

    assert (status, content) == (200, CREATED + odd_comment + DELTA + last)
    assert (await caller.only_entry())["outcome"] == outcome


@pytest.mark.parametrize(
    "last",
    [
        b'data: {"error":{"message":"no","code":"model_overloaded","retry_after":9}}\n\n' + DONE,
        b"",
        DELTA[:-9],
    ],
    ids=["chat's error", "cut", "cut within an event"],
)
async def test_a_stream_that_venice_does_not_end_is_ended_once(odd, last):
    """An error in the form of chat completions, or the end of the connection, becomes one
    ``response.failed`` of the same response."""
    venice, caller = odd
    venice.answer = stream(CREATED, DELTA, last)
    _, content = await read_stream(caller)

    assert content.startswith(CREATED + DELTA)
    kind, data = content.removeprefix(CREATED + DELTA).removesuffix(DONE).decode().split("\n", 1)
    assert kind == "event: response.failed"
    failed = json.loads(data.removeprefix("data: "))
    assert (failed["sequence_number"], failed["response"]["id"]) == (2, "r")
    is_busy = b"model_overloaded" in last
    stated = failed["response"]["error"]
    assert stated["code"] == ("rate_limit_exceeded" if is_busy else "server_error")
    assert ("try again in 9s" in stated["message"]) == is_busy
    assert failed["error"]["code"] == ("upstream_busy" if is_busy else "upstream_cut")


@pytest.mark.parametrize("maximum", [10, 20_000], ids=["plain", "assembled"])
async def test_a_plain_failure_keeps_its_reason(odd, maximum):
    """A plain response that failed is an error with Venice's reason, also where it is assembled
    from a stream."""
    venice, caller = odd
    venice.answer = whole(json.dumps(FAILED_RESPONSE).encode())
    if maximum > 10:
        venice.answer = stream(CREATED, event("response.failed", 1, response=FAILED_RESPONSE))
    asked = {"model": "m", "input": "x", "max_output_tokens": maximum}
    async with caller.service.http.post(
        f"/v1{RESPONSES}", json=asked, headers=caller.headers
    ) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "upstream_error")
    assert error["message"].endswith("The moon is full.")
    assert (await caller.only_entry())["outcome"] == "upstream_error"


async def test_a_duration_passes(odd):
    """Venice's header for the length of a sound reaches the caller."""
    venice, caller = odd
    content = json.dumps({"id": "r", "output": [], "usage": USAGE}).encode()
    venice.answer = whole(content, x_venice_audio_duration="5.5")
    response, _ = await send(caller, "m")

    assert response.headers["x-venice-audio-duration"] == "5.5"


SEARCHED = {"type": "tool_search_output", "call_id": "c"}


@pytest.mark.parametrize("model", [NATIVE, TRANSLATED])
@pytest.mark.parametrize(
    ("members", "param"),
    [
        (parts({"type": "input_text", "text": 5}, {"type": "input_image", "image_url": PIXEL}), 0),
        (parts({"type": "refusal", "refusal": []}), 0),
        ({"input": [{**CUSTOM_RESULT, "output": [{"type": "text", "text": {}}]}]}, 0),
        ({"tools": [WRITE, {"type": "namespace", "name": "n", "tools": 5}]}, "tools[1].tools"),
        ({"tools": [WRITE], "tool_choice": 5}, "tool_choice"),
        (
            {"tools": [WRITE], "tool_choice": {"type": "allowed_tools", "tools": 5}},
            "tool_choice.tools",
        ),
        ({"input": [{**SEARCHED, "tools": ["x"]}]}, "input[0].tools"),
        ({"instructions": {"type": "input_text", "text": 5}, "tools": [WRITE]}, "instructions"),
        ({"input": [{"role": "user", "content": 5}], "tools": [WRITE]}, "input[0].content"),
        ({**parts("Hello"), "tools": [WRITE]}, "input[0].content[0]"),
        ({"instructions": [{"role": "system", "content": [5]}]}, "instructions[0].content[0]"),
        ({"tools": [WRITE], "text": "short"}, "text"),
        ({"tools": [WRITE], "reasoning": "high"}, "reasoning"),
        ({"tools": [WRITE], "include": LOGPROBS}, "include"),
        ({"tools": [WRITE], "include": [5]}, "include[0]"),
    ],
    ids=str,
)
async def test_members_of_another_type_are_refused(caller, members, param, model):
    """A member of another type, which no translation could read, is refused by its name, whatever
    the model."""
    body = {"model": model, "input": "Hello", **members}
    async with caller.service.http.post(
        "/v1/responses", json=body, headers=caller.headers
    ) as response:
        error = (await response.json())["error"]

    assert response.status == 400, error
    if param:
        assert error["param"] == param
    else:
        assert error["message"].endswith(": must be a text.")


async def test_deep_tools_do_not_hold_up_others(caller):
    """Tools within tools are read once each, however deep they are."""
    deep = {"type": "namespace", "name": "n", "tools": [{"type": "custom"}] * 8_000}
    for _ in range(90):
        deep = {"type": "namespace", "name": "n", "tools": [deep]}
    body = {"model": TRANSLATED, "input": [{**SEARCHED, "tools": [deep]}]}
    started = asyncio.get_running_loop().time()
    async with caller.service.http.post(
        "/v1/responses", json=body, headers=caller.headers
    ) as response:
        assert response.status == 200, await response.text()
    assert asyncio.get_running_loop().time() - started < 0.5
