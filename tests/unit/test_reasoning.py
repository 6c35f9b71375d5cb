"""What a model needs back with its reasoning, through every translation that carries it."""

import json
import time

import pytest

from service import anthropic, responses
from service.formats.completion import AssistantMessage
from service.formats.reasoning import KeptReasoning
from service.gateway.assembly import ChatCompletion

NAMES = ("reasoning_details", "reasoning_encrypted", "thought_signature")
TEXT = {"type": "reasoning.text", "index": 0, "format": "anthropic-claude-v1"}
CALL = {"index": 0, "id": "a", "function": {"name": "look", "arguments": "{}"}}
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def stream(*deltas):
    """Return the events of a completion with these deltas."""
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "tool_calls"
    events = (b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    return b"".join(events) + b"data: [DONE]\n\n"


def assembled(events):
    """Return the message of a plain answer."""
    assembly = ChatCompletion()
    assembly.feed(events)
    return json.loads(assembly.result())["choices"][0]["message"]


def events_of(content):
    data = (line for line in content.split(b"\n") if line.startswith(b"data: {"))
    return [json.loads(line.removeprefix(b"data: ")) for line in data]


def through_messages(events):
    """Return the message that comes back from a client of Anthropic's API."""
    blocks = []
    for event in events_of(anthropic.MessageEvents(with_thinking=True).feed(events)):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            name = delta["type"].removesuffix("_delta")
            if name in ("thinking", "signature"):
                blocks[-1][name] += delta[name]
    turns = [{"role": "assistant", "content": blocks}, {"role": "user", "content": "x"}]
    asked = json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode()
    chat = anthropic.chat_request(anthropic.decode(asked), takes_effort=False)
    return json.loads(chat.body)["messages"][0]


def through_responses(events):
    """Return the message that comes back from a client of the Responses API."""
    request = {"model": "m", "input": "x", "tools": [LOOK]}
    _, context = responses.chat_body(request)
    *_, last = events_of(responses.ChatAnswer(context).feed(events))
    body, _ = responses.chat_body({**request, "input": last["response"]["output"]})
    return json.loads(json.dumps(body, default=json.loads))["messages"][0]


CARRIERS = [assembled, through_messages, through_responses]


@pytest.mark.parametrize("carry", CARRIERS)
@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        # The text comes in pieces. The signature is complete, and may come after the answer began.
        (
            [
                {"reasoning_content": "A", "reasoning_details": [{**TEXT, "text": "A"}]},
                {"reasoning_content": "B", "reasoning_details": [{**TEXT, "text": "B"}]},
                {"reasoning_details": [{**TEXT, "signature": "s="}]},
                {"tool_calls": [CALL], "reasoning_details": [{"index": 0, "signature": "s="}]},
            ],
            {"reasoning_details": [{**TEXT, "text": "AB", "signature": "s="}]},
        ),
        # Some makers number each type from 0, and some repeat a number with another id.
        (
            [
                {"reasoning_content": "A", "reasoning_details": [{**TEXT, "text": "A"}]},
                {"reasoning_details": [{"type": "reasoning.encrypted", "index": 0, "data": "d"}]},
                {
                    "tool_calls": [CALL],
                    "reasoning_details": [
                        {"type": "reasoning.encrypted", "index": 1, "id": "x", "data": "e"},
                        {"type": "reasoning.encrypted", "index": 1, "id": "y", "data": "f"},
                    ],
                },
            ],
            {
                "reasoning_details": [
                    {**TEXT, "text": "A"},
                    {"type": "reasoning.encrypted", "index": 0, "data": "d"},
                    {"type": "reasoning.encrypted", "index": 1, "id": "x", "data": "e"},
                    {"type": "reasoning.encrypted", "index": 1, "id": "y", "data": "f"},
                ]
            },
        ),
        # Encrypted reasoning comes in pieces, and a signature again and again.
        (
            [
                {"reasoning_content": "A", "reasoning_encrypted": "e1", "thought_signature": "t"},
                {"tool_calls": [CALL]},
                {"reasoning_encrypted": "e2", "thought_signature": "t"},
                {"reasoning_encrypted": "", "thought_signature": ""},
            ],
            {"reasoning_encrypted": "e1e2", "thought_signature": "t"},
        ),
    ],
)
def test_pieces_come_back_as_one(carry, deltas, expected):
    """Whoever carries it, the model gets back what it sent, in one piece."""
    back = carry(stream(*deltas))

    assert {name: back[name] for name in NAMES if name in back} == expected


@pytest.mark.parametrize("carry", CARRIERS)
@pytest.mark.parametrize("name", ["reasoning_encrypted", "reasoning_details"])
def test_what_is_nested_deeply_comes_back(carry, name):
    """A member that is nested as deeply as a decoder reads comes back as it was."""
    value = "x"
    for _ in range(600):
        value = {"a": value}
    kept = {name: [{**TEXT, "more": value}] if name == "reasoning_details" else value}
    back = carry(stream({"reasoning_content": "A", **kept}, {"content": "B"}))

    assert str(back[name]) == str(kept[name])


def test_many_pieces_take_little_time():
    """The time grows with the length of the reasoning, not with its square."""
    kept = KeptReasoning()
    began = time.process_time()
    for _ in range(10_000):
        kept.take(AssistantMessage(reasoning_details=[{**TEXT, "text": "x" * 1000}]))

    assert len(kept.members["reasoning_details"][0]["text"]) == 10_000_000
    assert time.process_time() - began < 1
