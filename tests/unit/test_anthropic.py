"""Messages as chat completions and back, without a server."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.anthropic import MessageEvents, chat_request, decode, estimate_tokens, message
from service.errors import ClientError, UpstreamError

PNG = {"type": "base64", "media_type": "image/png", "data": "aGk="}


def chat(*messages, **members):
    """Return the chat completion that Venice would get."""
    asked = {"model": "m", "max_tokens": 9, "messages": list(messages), **members}
    return json.loads(chat_request(decode(json.dumps(asked).encode()), takes_effort=True).body)


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def text(content):
    return {"type": "text", "text": content}


def result(content, **more):
    return {"type": "tool_result", "tool_use_id": "t", "content": content, **more}


def test_pictures_and_documents():
    """Inline and linked media are translated."""
    content = chat(
        user(
            text("look"),
            {"type": "image", "source": PNG},
            {"type": "image", "source": {"type": "url", "url": "https://a.invalid/b.png"}},
            {
                "type": "document",
                "title": "a.pdf",
                "source": {**PNG, "media_type": "application/pdf"},
            },
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "words"},
            },
        )
    )["messages"][0]["content"]

    assert content == [
        text("look"),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
        {"type": "image_url", "image_url": {"url": "https://a.invalid/b.png"}},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"},
        },
        text("words"),
    ]


def test_results_of_tools():
    """Each result is a message; what is not text comes with the user's own words."""
    calls = assistant(
        text("I look."),
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
        {"type": "tool_use", "id": "u", "name": "see", "input": {}},
    )
    results = user(
        result([text("A"), text("fox"), {"type": "image", "source": PNG}]),
        result("gone", is_error=True),
        result(None),
        text("and?"),
    )
    messages = chat(calls, results)["messages"]

    assert messages[0]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a": 1}'}
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["t", "u"]
    assert [(one["role"], one["content"]) for one in messages[1:4]] == [
        ("tool", "A\nfox"),
        ("tool", "Error: gone"),
        ("tool", ""),
    ]
    assert [part["type"] for part in messages[4]["content"]] == ["image_url", "text"]


def test_members():
    """Members with other names or shapes are translated."""
    tool = {"name": "look", "input_schema": {"type": "object"}, "strict": True}
    sent = chat(
        user(text("a")),
        system=[text("b"), {**text("c"), "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        tools=[tool, {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        stop_sequences=["x"],
        temperature=0.5,
        top_k=3,
        metadata={"user_id": "me"},
        output_config={
            "effort": "high",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
        stream=True,
        service_tier="auto",
    )

    assert sent == {
        "model": "m",
        "max_completion_tokens": 9,
        "messages": [
            {
                "role": "system",
                "content": [text("b"), {**text("c"), "cache_control": {"type": "ephemeral"}}],
            },
            {"role": "user", "content": "a"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "parameters": {"type": "object"},
                    "strict": True,
                },
            }
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "venice_parameters": {
            "disable_thinking": True,
            "strip_thinking_response": True,
            "enable_web_search": "auto",
            "enable_web_citations": True,
            "include_search_results_in_stream": True,
        },
        "stream": True,
        "temperature": 0.5,
        "top_k": 3,
        "stop": ["x"],
        "user": "me",
        "reasoning_effort": "high",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": {"type": "object"}, "strict": True},
        },
    }


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [user({"type": "video"})]}, "messages[0].content[0].type"),
        ({"messages": [assistant(result("x"))]}, "messages"),
        ({"messages": [user({"type": "thinking", "thinking": "x"})]}, "messages"),
        ({"tools": [{"type": "code_execution_20250825", "name": "c"}]}, "tools[0].type"),
        ({"tools": [{"type": "computer_toolset_20260801", "name": "c"}]}, "tools[0].type"),
        ({"tools": [{"name": "c"}], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": list("abcde")}, "stop_sequences"),
    ],
)
def test_what_is_refused(members, param):
    """An error names the field as Anthropic does."""
    with pytest.raises(ClientError) as caught:
        chat(user(text("a")), **members)

    assert caught.value.param == param


def test_an_estimate_does_not_count_the_bytes_of_pictures():
    """Counting needs no maximum of output."""
    big = {"type": "image", "source": {**PNG, "data": "a" * 1_000_000}}
    asked = {"model": "m", "messages": [user(text("word " * 100), big)]}

    assert 1_600 < estimate_tokens(json.dumps(asked).encode()) < 2_000


def completion(**answer):
    return json.dumps(
        {
            "id": "chat-1",
            "model": "m",
            "choices": [{"message": answer, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_creation_input_tokens": 1},
            },
        }
    ).encode()


def call(arguments, index=0, **more):
    return {"index": index, "function": {"arguments": arguments}, **more}


def test_a_whole_answer():
    """Cached tokens are not input tokens here; arguments that are not an object are kept."""
    calls = [
        {"id": "t", "function": {"name": "look", "arguments": '{"a": [1.10]}'}},
        {"id": "u", "function": {"name": "see", "arguments": "oops"}},
    ]
    raw = message(completion(content="Hi", tool_calls=calls), with_thinking=False)

    assert b"1.10" in raw
    decoded = json.loads(raw)
    assert decoded["content"] == [
        text("Hi"),
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": [1.1]}},
        {"type": "tool_use", "id": "u", "name": "see", "input": {"arguments": "oops"}},
    ]
    assert decoded["stop_reason"] == "tool_use"
    assert decoded["usage"] == {
        "input_tokens": 5,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 1,
        "output_tokens": 3,
    }
    with pytest.raises(UpstreamError):
        message(b"<html>", with_thinking=False)


def test_what_a_model_wants_back_comes_back():
    """Reasoning details come back through the signature, byte for byte, whole and streamed."""
    details = [{"type": "reasoning.text", "text": "Hm", "signature": "s=", "index": 0}]
    answer = json.loads(
        message(
            completion(reasoning_content="Hm", reasoning_details=details, content="a"),
            with_thinking=True,
        )
    )
    back = chat(assistant(*answer["content"]))["messages"][0]
    assert (back["reasoning_content"], back["reasoning_details"]) == ("Hm", details)

    pieces = [
        {"reasoning_content": "H", "reasoning_details": [{"text": "H", "index": 0}]},
        {"reasoning_content": "m", "reasoning_details": [{"text": "m", "index": 0}]},
        {"reasoning_details": [{"signature": "s=", "type": "reasoning.text", "index": 0}]},
        {"content": "a"},
    ]
    blocks = content_blocks(*pieces)
    back = chat(assistant(*blocks))["messages"][0]
    assert (back["reasoning_content"], back["reasoning_details"]) == ("Hm", details)
    # Another maker's signature means nothing here.
    foreign = {"type": "thinking", "thinking": "Hm", "signature": "EqQB/+!"}
    assert "reasoning_details" not in chat(assistant(foreign, text("a")))["messages"][0]


def stream(*deltas, last="stop"):
    """Return a stream of these deltas."""
    choices = [{"delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"delta": {}, "finish_reason": last})
    chunks = [{"id": "chat-1", "model": "m", "choices": [choice]} for choice in choices]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": heartbeat\n\n", *lines, "data: [DONE]\n\n"]).encode()


def events(content, cuts=()):
    """Return the events that a client gets of a stream, however it is cut."""
    translation = MessageEvents(with_thinking=True)
    edges = [0, *sorted(cuts), len(content)]
    out = b"".join(translation.feed(content[start:end]) for start, end in itertools.pairwise(edges))
    out += translation.end()
    found = []
    for event in out.decode().split("\n\n")[:-1]:
        kind, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def test_events_without_empty_lines_between_them():
    """A stream that the meter reads is translated too."""
    whole = stream({"content": "a"}, {"content": "b"})
    tight = whole.replace(b"\n\n", b"\n") + b"\n"

    assert events(tight) == events(whole)


def content_blocks(*deltas):
    """Return the blocks that a client adds up; each event must find its block open."""
    blocks, opened = [], set()
    first, *others = events(stream(*deltas))
    assert first["type"] == "message_start"
    assert [event["type"] for event in others[-2:]] == ["message_delta", "message_stop"]
    for event in others[:-2]:
        index = event["index"]
        if event["type"] == "content_block_start":
            assert index == len(blocks)
            opened.add(index)
            blocks.append({**event["content_block"], "json": ""})
            continue
        assert index in opened
        if event["type"] == "content_block_stop":
            opened.remove(index)
            continue
        delta = event["delta"]
        name = {
            "text_delta": "text",
            "thinking_delta": "thinking",
            "signature_delta": "signature",
            "input_json_delta": "json",
        }[delta["type"]]
        blocks[index][name] += delta.get("partial_json", delta.get(name))
    assert opened == set()
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return blocks


def test_calls_whose_pieces_alternate():
    """Each piece is added to its own call."""
    blocks = content_blocks(
        {"content": "I look."},
        {"tool_calls": [{"index": 0, "id": "t", "function": {"name": "look"}}]},
        {"tool_calls": [{"index": 1, "id": "u", "function": {"name": "see"}}]},
        {"tool_calls": [call('{"a"', 0), call('{"b"', 1)]},
        {"tool_calls": [call(":1}", 0)]},
        {"tool_calls": [call(":2}", 1)]},
    )

    assert blocks == [
        text("I look."),
        {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
        {"type": "tool_use", "id": "u", "name": "see", "input": {"b": 2}},
    ]


def test_what_is_kept_comes_before_the_call():
    """A thought signature precedes the call, after text and without a thought too."""
    blocks = content_blocks(
        {"content": "I look."},
        {
            "thought_signature": "abc",
            "tool_calls": [{"index": 0, "id": "t", "function": {"name": "look"}}],
        },
    )

    assert [block["type"] for block in blocks] == ["text", "thinking", "tool_use"]
    assert chat(assistant(*blocks))["messages"][0]["thought_signature"] == "abc"


DELTAS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"content": st.text(max_size=3)}),
        st.fixed_dictionaries({"reasoning_content": st.text(max_size=3)}),
        st.fixed_dictionaries({"reasoning_details": st.just([{"text": "x", "index": 0}])}),
        st.integers(0, 2).map(lambda index: {"tool_calls": [call("", index)]}),
    ),
    max_size=12,
)


@given(DELTAS)
def test_any_order_makes_whole_blocks(deltas):
    """No text and no thought is lost."""
    blocks = content_blocks(*deltas)

    for kind, name in (("text", "content"), ("thinking", "reasoning_content")):
        expected = "".join(delta.get(name, "") for delta in deltas)
        assert "".join(block[kind] for block in blocks if block["type"] == kind) == expected


@given(st.lists(st.integers(0, 600), max_size=20))
def test_any_cut_is_told_the_same(cuts):
    """The events do not depend on how the bytes are cut."""
    content = stream({"reasoning_content": "Hm"}, {"content": "H\u00e9"}, {"content": "llo"})

    assert events(content, cuts) == events(content)


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
def test_any_stream_of_the_same_events_is_told_the_same(ending):
    """Other line endings, a byte order mark, data in several lines and a missing end are read."""
    content = stream({"content": "H\u00e9"}, {"content": "llo"})
    odd = b"\xef\xbb\xbf" + content.replace(b', "', b',\ndata: "').rstrip(b"\n")

    assert events(odd.replace(b"\n", ending)) == events(content)


@pytest.mark.parametrize(
    ("last", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")],
)
def test_how_it_ends(last, reason):
    """`message_delta` has the stop reason and the usage."""
    event = events(stream({"content": "a"}, last=last))[-2]

    assert event["delta"]["stop_reason"] == reason
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (5, 2)


def test_an_error_within_ends_it():
    """Nothing follows an error."""
    failure = {"error": {"message": "broken", "type": "x", "code": "y"}}
    content = f"data: {json.dumps(failure)}\n\ndata: [DONE]\n\n".encode()

    assert events(content) == [
        {"type": "error", "error": {"type": "api_error", "message": "broken"}}
    ]
    with pytest.raises(UpstreamError):
        events(b"data: <html>\n\n")
