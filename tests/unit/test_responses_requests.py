"""Requests of the Responses API that are translated to chat completions."""

import contextlib
import time

import msgspec
import pytest

from service import responses
from service.accounts import KeySettings
from service.errors import ClientError
from service.gateway.call import Inbound
from service.gateway.endpoints import members
from service.gateway.endpoints.responses import RESPONSES

TEXT = {"type": "input_text", "text": "Hello"}
IMAGE = {"type": "input_image", "image_url": "https://a.example/a.png", "detail": "original"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://a.example/a.png", "detail": "high"}}


def body_of(items, **asked):
    """Return the body of the chat completion that a request becomes."""
    body, _ = responses.chat_body({"model": "m", "input": items, **asked})
    return body


def messages_of(*items, **asked):
    """Return the messages that the items become."""
    return body_of(list(items), **asked)["messages"]


def called(name, **item):
    """Return the call of a tool in the form of chat completions."""
    return {"id": "c", "type": "function", "function": {"name": name, **item}}


def test_a_conversation():
    """Items of one turn of the model become one message, and results follow as their own."""
    assert messages_of(
        {"role": "user", "content": [TEXT, IMAGE]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [TEXT, IMAGE]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        instructions="Be short.",
    ) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, PICTURE]},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm",
            "tool_calls": [called("look", arguments="{}")],
        },
        {"role": "tool", "tool_call_id": "c", "content": "Hello"},
        {"role": "user", "content": [PICTURE]},
        {"role": "assistant", "content": "No."},
    ]


def test_late_system_messages_join_the_users_turn():
    """System messages at the start become one; a later one becomes a part of the user's turn."""
    assert messages_of(
        {"role": "developer", "content": "Be careful."},
        {"role": "user", "content": "Hello"},
        {"role": "system", "content": "Be quick."},
        {"role": "assistant", "content": "Hi"},
        {"role": "developer", "content": "Stop."},
        instructions="Be short.",
    ) == [
        {"role": "system", "content": "Be short.\n\nBe careful."},
        {"role": "user", "content": "Hello\n\nBe quick."},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Stop."},
    ]


@pytest.mark.parametrize(
    ("item", "output", "name", "arguments", "text"),
    [
        (
            {"type": "custom_tool_call", "name": "write", "input": "a\nb"},
            {"type": "custom_tool_call_output", "output": "done"},
            "write",
            '{"input":"a\\nb"}',
            "done",
        ),
        (
            {"type": "local_shell_call", "action": {"type": "exec", "command": ["ls"], "env": {}}},
            {"type": "local_shell_call_output", "output": "a"},
            "local_shell",
            '{"command":["ls"],"env":{}}',
            "a",
        ),
        (
            {"type": "shell_call", "action": {"commands": ["ls"]}},
            {"type": "shell_call_output", "output": [{"stdout": "a", "stderr": ""}]},
            "shell",
            '{"commands":["ls"]}',
            '[{"stdout":"a","stderr":""}]',
        ),
        (
            {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}},
            {"type": "apply_patch_call_output", "status": "completed"},
            "apply_patch",
            '{"type":"delete_file","path":"a"}',
            "completed",
        ),
        (
            {"type": "function_call", "name": "f", "namespace": "n", "arguments": "{}"},
            {"type": "function_call_output", "output": {"a": 1}},
            "n__f",
            "{}",
            '{"a":1}',
        ),
        (
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "a"}},
            {"type": "tool_search_output", "tools": [{"type": "function", "name": "found"}]},
            "tool_search",
            '{"query":"a"}',
            '["found"]',
        ),
    ],
)
def test_the_history_of_client_tools(item, output, name, arguments, text):
    """Calls of tools that the client runs, and their results, are calls of functions."""
    body = body_of([{**item, "call_id": "c"}, {**output, "call_id": "c"}])
    assert body["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [called(name, arguments=arguments)]},
        {"role": "tool", "tool_call_id": "c", "content": text},
    ]
    # What a search for tools has found can be called from then on.
    found = [tool["function"]["name"] for tool in body.get("tools", [])]
    assert found == (["found"] if name == "tool_search" else [])


def test_names_of_functions_are_unique_and_short():
    """Tools of the same name in several namespaces, or of several types, become functions with
    names of their own that are short enough."""
    inner = [{"type": "function", "name": "look"}, {"type": "custom", "name": "x" * 70}]
    tools = [
        {"type": "namespace", "name": "a", "tools": inner},
        {"type": "namespace", "name": "b", "tools": inner},
        {"type": "function", "name": "apply_patch"},
        {"type": "apply_patch"},
        {"type": "function", "name": "look"},
    ]
    names = [tool["function"]["name"] for tool in body_of("x", tools=tools)["tools"]]

    assert len(set(names)) == len(names) == 7
    assert {"a__look", "b__look", "look", "apply_patch"} < set(names)
    assert max(map(len, names)) <= 64


def test_other_members():
    """Members that both APIs have are copied, and others get the form of chat completions."""
    look = {"type": "function", "name": "look", "description": "Looks.", "parameters": {}}
    body = body_of(
        "Hello",
        max_output_tokens=9,
        temperature=0.5,
        stream=True,
        tools=[look],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        text={
            "format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True},
            "verbosity": "low",
        },
        reasoning={"effort": "high", "summary": None, "generate_summary": "auto"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        prompt_cache_key="k",
        user="u",
        store=False,
        metadata={"a": "b"},
        truncation="disabled",
        seed=5,
    )

    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "stream": True,
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Looks.", "parameters": {}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {}, "strict": True},
        },
        "verbosity": "low",
        "reasoning": {"effort": "high", "summary": "auto"},
        "logprobs": True,
        "top_logprobs": 2,
        "prompt_cache_key": "k",
        "user": "u",
        "seed": 5,
    }


@pytest.mark.parametrize("form", ["json_object", {"type": "text", "strict": True}])
def test_an_unknown_form_of_text_is_venices_to_judge(form):
    """A form of the text that is not one of OpenAI's is passed on, rather than ignored."""
    assert body_of("x", text={"format": form})["response_format"] == form


def test_a_custom_tool_is_a_function_of_one_text():
    """A custom tool's grammar is in the description of its function."""
    form = {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"}
    tool = {"type": "custom", "name": "write", "description": "Writes.", "format": form}
    (function,) = body_of("x", tools=[tool])["tools"]

    assert function["function"]["parameters"]["required"] == ["input"]
    assert function["function"]["description"].startswith("Writes.\n\n")
    assert "start: /a+/" in function["function"]["description"]


def test_allowed_tools_are_the_only_ones():
    """A choice of allowed tools leaves the others out."""
    tools = [
        {"type": "function", "name": "a"},
        {"type": "custom", "name": "b"},
        {"type": "function", "name": "c"},
        {"type": "web_search"},
        {"type": "x_search"},
    ]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [tools[0], tools[1]]}
    body = body_of("x", tools=tools, tool_choice=choice)

    assert [tool["function"]["name"] for tool in body["tools"]] == ["a", "b"]
    assert body["tool_choice"] == "required"
    assert "venice_parameters" not in body


@pytest.mark.parametrize(
    ("choice", "search"),
    [("auto", "auto"), ({"type": "web_search"}, "on"), ("none", None), ("required", "on")],
)
def test_a_hosted_search_is_venices(choice, search):
    """A hosted search becomes Venice's, which runs for sure if the choice names it."""
    body = body_of("x", tools=[{"type": "web_search_preview"}], tool_choice=choice)

    assert body.get("venice_parameters", {}).get("enable_web_search") == search
    assert body.keys() & {"tools", "tool_choice"} == set()


@pytest.mark.parametrize(
    "kind",
    [
        *("web_search", "web_search_preview", "web_search_2025_08_26", "Web_Search", "websearch"),
        *(
            "web_search_20250305",
            "x_search",
            "xsearch",
            "web_search_and_more",
            "search",
            "function",
        ),
    ],
)
def test_searches_are_told_apart_as_for_their_price(kind):
    """What this table takes for a search is what has the price of one."""
    is_search = responses.tool_type({"type": kind}) in ("web_search", "x_search")
    assert is_search == (members.SEARCH_TOOL.fullmatch(kind) is not None)


def test_models_of_both_kinds_share_a_chat_completion():
    """Where only a chat completion can express a request, it is translated once for all models."""
    content = msgspec.json.encode({"model": "alias", "input": "Hello", "n": 1})
    inbound = Inbound(content=content, request_id="r", headers={}, settings=KeySettings())
    native, translated = RESPONSES.parse(inbound).for_models(["openai-gpt-53-codex", "kimi-k2-6"])

    assert native.translation is translated.translation
    assert (native.model, translated.model) == ("openai-gpt-53-codex", "kimi-k2-6")


def test_a_large_body_is_read_once():
    """All forms of a large body, and its refusals, are made where it is read, which is a thread of
    its own. Choosing the models, in the event loop, takes a fraction of that time."""
    items = [{"role": "user", "content": "Hello"}] * 20_000
    stored = [{"type": "item_reference", "id": "x"}]
    for conversation, is_refused in ((items, False), (items + stored, True)):
        content = msgspec.json.encode({"model": "alias", "input": conversation, "n": 1})
        inbound = Inbound(content=content, request_id="r", headers={}, settings=KeySettings())
        started = time.perf_counter()
        call = RESPONSES.parse(inbound)
        parsed = time.perf_counter()
        with pytest.raises(ClientError) if is_refused else contextlib.nullcontext():
            call.for_models(["openai-gpt-53-codex", "kimi-k2-6"])
        assert time.perf_counter() - parsed < (parsed - started) / 10
