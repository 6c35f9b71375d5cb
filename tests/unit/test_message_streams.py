"""Every stream of message events is valid, whatever Venice sends."""

import json

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_streams import InvalidStreamError, check_events, streams, translated

from service.anthropic import EventWriter, message
from service.errors import UpstreamError
from service.formats.sse import EventReader
from service.gateway.assembly import ChatCompletion


class Playback(httpx2.BaseTransport):
    """Answers the SDK's requests with given events."""

    content = b""

    def handle_request(self, request):
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=self.content)


PLAYBACK = Playback()
CLIENT = anthropic.Anthropic(
    api_key="k", http_client=httpx2.Client(transport=PLAYBACK), max_retries=0
)


def accumulated(content):
    """What Anthropic's own SDK makes of the events; its error if they end with one."""
    PLAYBACK.content = content
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    with CLIENT.messages.stream(**asked) as stream:
        try:
            return stream.get_final_message()
        except anthropic.APIStatusError as error:
            return error


HALVES = str.maketrans("", "", "\N{GRINNING FACE}\N{REPLACEMENT CHARACTER}")


def totals(blocks):
    """The texts and the tools of blocks, whatever their order and their ids. Halves of a character
    that come apart are left out."""
    texts = {
        kind: sorted(
            "".join(block[kind] for block in blocks if block["type"] == kind).translate(HALVES)
        )
        for kind in ("text", "thinking")
    }
    tools = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    return texts, tools


@given(streams(), st.booleans())
def test_every_stream_is_valid(chunks, with_thinking):
    """An independent validator and the SDK's accumulator accept the events, and read the same."""
    content = translated(chunks, with_thinking=with_thinking)
    blocks, last = check_events(content)
    found = accumulated(content)

    if last["type"] == "error":
        assert isinstance(found, anthropic.APIStatusError)
        return
    assert [block.type for block in found.content] == [block["type"] for block in blocks]
    assert found.stop_reason == last["delta"]["stop_reason"]
    assert found.usage.output_tokens == last["usage"]["output_tokens"]
    for block, theirs in zip(blocks, found.content, strict=True):
        if block["type"] == "tool_use" and block["json"]:
            assert (theirs.id, theirs.name) == (block["id"], block["name"])
        elif block["type"] == "thinking":
            assert (theirs.thinking, theirs.signature) == (block["thinking"], block["signature"])
        elif block["type"] == "text":
            assert theirs.text == block["text"]


@given(streams(), st.booleans())
def test_a_stream_equals_the_whole_answer(chunks, with_thinking):
    """The same chunks, put together first and then translated, have the same texts and tools."""
    content = translated(chunks, with_thinking=with_thinking)
    blocks, last = check_events(content)
    if last["type"] == "error" or b"".join(chunks).partition(b"[DONE]")[2].strip():
        return
    reader, assembly = EventReader(), ChatCompletion()
    for chunk in chunks:
        assembly.feed(reader.feed(chunk))
    assembly.feed(reader.end())
    whole = json.loads(message(assembly.result(), with_thinking=with_thinking))
    for block in blocks:
        if block["type"] == "tool_use":
            try:
                block["input"] = json.loads(block["json"] or "{}")
            except ValueError:
                block["input"] = {"arguments": block["json"]}

    assert totals(blocks) == totals(whole["content"])
    assert whole["stop_reason"] == last["delta"]["stop_reason"]


METHODS = {
    "begin": lambda writer: writer.begin({}),
    "start": lambda writer: writer.start_block({"type": "text", "text": ""}),
    "add": lambda writer: writer.add({"type": "text_delta", "text": "a"}),
    "stop": lambda writer: writer.stop_block(),
    "end": lambda writer: writer.end("end_turn", {"output_tokens": 1}),
    "fail": lambda writer: writer.fail({"error": {"type": "api_error", "message": "x"}}),
}


@given(st.lists(st.sampled_from(sorted(METHODS)), max_size=12))
def test_the_writer_writes_no_invalid_order(calls):
    """Calls in any order write a valid beginning of a stream, or raise an error."""
    writer = EventWriter()
    order = []
    for call in calls:
        try:
            METHODS[call](writer)
        except RuntimeError:
            continue
        order.append(call)

    state = "new"
    for call in order:
        assert state != "ended"
        if call == "fail":
            state = "ended"
            continue
        before, after = {
            "begin": ("new", "between"),
            "start": ("between", "in"),
            "add": ("in", "in"),
            "stop": ("in", "between"),
            "end": ("between", "ended"),
        }[call]
        assert state == before
        state = after


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        b'event: error\ndata: {"type":"error","error":{"message":"x"}}\n\n' * 2,
    ],
)
def test_the_validator_finds_faults(content):
    """The validator of this test refuses streams without an end, or with two."""
    with pytest.raises((InvalidStreamError, KeyError)):
        check_events(content)


def test_a_stream_without_an_answer_is_an_error():
    """A stream that ends without any choice is an error, not an empty message."""
    events = translated([b"data: [DONE]\n\n"], with_thinking=False)

    assert check_events(events)[1]["error"]["message"] == "Venice's stream holds no answer."
    with pytest.raises(UpstreamError):
        message(b'{"choices":[]}', with_thinking=False)
