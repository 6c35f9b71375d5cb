"""Streams put together: what a plain answer would have said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UpstreamError
from service.gateway import assembly

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def stream(*objects):
    """Server-sent events, ended as Venice ends them."""
    lines = (b"data: " + json.dumps(value).encode() for value in objects)
    return b"".join(line + b"\n\n" for line in lines) + b"data: [DONE]\n\n"


def chunk(delta, index=0, finish_reason=None, **more):
    """A chunk of one choice."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, **more}
    return {**HEAD, "choices": [choice]}


LAST = {**HEAD, "choices": [], "usage": {"completion_tokens": 2}, "cost": {"usd": 0.1}}


def whole(*chunks):
    """What the chunks amount to."""
    return json.loads(assembly.chat_completion(stream(*chunks, LAST)))


@given(st.lists(st.lists(st.text(max_size=5), max_size=6), min_size=1, max_size=3))
def test_texts_are_joined_for_each_choice(choices):
    """Whatever is in them, in whatever turn the choices come."""
    chunks = [
        chunk({"role": "assistant", "content": piece}, index)
        for index, pieces in enumerate(choices)
        for piece in ["", *pieces]
    ]
    chunks += [chunk({}, index, "stop") for index in range(len(choices))]

    completion = whole(*reversed(chunks[-len(choices) :]), *chunks[: -len(choices)])

    assert [choice["message"]["content"] for choice in completion["choices"]] == [
        "".join(pieces) for pieces in choices
    ]
    assert {choice["finish_reason"] for choice in completion["choices"]} == {"stop"}


def test_the_frame_is_a_plain_answers():
    """Usage and cost are its members, and nothing says that it was a stream."""
    completion = whole(chunk({"content": "a"}), chunk({"content": None}, finish_reason="length"))

    assert completion == {
        "id": "c1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a"},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {"completion_tokens": 2},
        "cost": {"usd": 0.1},
    }


def test_calls_of_tools_are_joined_by_their_index():
    """Arguments come in pieces; ids and names are said once, or again and again."""
    first = {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "t2", "type": "function", "function": {"name": "g"}}
    completion = whole(
        chunk({"role": "assistant", "content": None, "tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "id": "t1", "function": {"arguments": '{"a"'}}]}),
        chunk({"tool_calls": [second]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}, 0, "tool_calls"),
    )

    message = completion["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "t2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_thoughts_and_probabilities_are_kept():
    """Reasoning, its details by their index, and what is said of each token."""
    detail = {"type": "reasoning.text", "format": "x", "index": 0}
    completion = whole(
        chunk({"reasoning_content": "I ", "reasoning_details": [{**detail, "text": "I "}]}),
        chunk({"reasoning_content": "am", "reasoning_details": [{**detail, "text": "am"}]}),
        chunk({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
        chunk({"content": "b"}, logprobs={"content": [{"token": "b"}]}, finish_reason="stop"),
    )

    choice = completion["choices"][0]
    assert choice["message"]["reasoning_content"] == "I am"
    assert choice["message"]["reasoning_details"] == [{**detail, "text": "I am"}]
    assert [token["token"] for token in choice["logprobs"]["content"]] == ["a", "b"]


def test_a_response_is_what_its_last_event_repeats():
    """The others are its pieces."""
    answer = {"id": "r1", "status": "completed", "output": [], "usage": {"input_tokens": 1}}
    events = stream(
        {"type": "response.created", "response": {"id": "r1"}},
        {"type": "response.completed", "response": answer},
    )
    assert json.loads(assembly.response(events)) == answer


@pytest.mark.parametrize("assemble", [assembly.chat_completion, assembly.response])
@pytest.mark.parametrize(
    "events", [b"", b"data: [DONE]\n\n", b"data: {\n\n", stream({"choices": [1]}), stream([])]
)
def test_what_is_no_answer(assemble, events):
    """Is an error, never an empty answer."""
    with pytest.raises(UpstreamError):
        assemble(events)
