"""Chat completions as messages: thinking, tool calls, searches and ends."""

import json

import pytest
from message_streams import check_events, translated

from service.anthropic import MessageEvents, chat_request, decode, message
from service.errors import UpstreamError

RESULTS = [
    {"title": "Foxes", "url": "https://f.invalid", "content": "Foxes run. " * 30, "date": "2026"},
    {"title": "Bears", "url": "https://b.invalid"},
]


def chunk(finish_reason=None, **delta):
    return {"id": "c", "model": "m", "choices": [{"delta": delta, "finish_reason": finish_reason}]}


def call(index=0, call_id=None, name=None, arguments=None):
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "function": function}


def stream(*chunks, end=b"data: [DONE]\n\n", with_thinking=True):
    """The blocks and the last event of a stream of these chunks."""
    events = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks)
    blocks, last = check_events(translated([events + end], with_thinking=with_thinking))
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use" and last["type"] != "error":
            block["input"] = json.loads(arguments or "{}")
    return blocks, last


def whole(finish_reason="stop", *, with_thinking=True, results=None, **members):
    """The whole message of a completion."""
    choice = {"index": 0, "message": members, "finish_reason": finish_reason}
    answer = {"id": "c", "model": "m", "choices": [choice]}
    if results is not None:
        answer["venice_parameters"] = {"web_search_citations": results}
    return json.loads(message(json.dumps(answer).encode(), with_thinking=with_thinking))


def sent_back(blocks):
    """The message of the model that Venice gets with the next request."""
    asked = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "assistant", "content": blocks}, {"role": "user", "content": "x"}],
    }
    request = decode(json.dumps(asked).encode())
    return json.loads(chat_request(request, takes_effort=False).body)["messages"][0]


def tool(call_id, name, **arguments):
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


@pytest.mark.parametrize(
    ("pieces", "blocks"),
    [
        # Every call has index 0.
        (
            [call(0, "a", "look", '{"city":"A"}'), call(0, "b", "look", '{"city":"B"}')],
            [tool("a", "look", city="A"), tool("b", "look", city="B")],
        ),
        # Pieces alternate, and the block of one is over before the other begins.
        (
            [
                call(0, "a", "look", '{"c'),
                call(1, "b", "see", '{"d'),
                call(0, arguments='ity":"A"}'),
                call(1, arguments='ay":1}'),
            ],
            [tool("a", "look", city="A"), tool("b", "see", day=1)],
        ),
        # The name comes late, and the text that follows waits for it.
        (
            [call(0, "a", None, '{"city":'), call(0, None, "look", '"A"}')],
            [tool("a", "look", city="A")],
        ),
        # Empty texts and nulls change nothing.
        (
            [call(0, "a", "look", ""), call(0, "", "", None), call(None, None, None, "{}")],
            [tool("a", "look")],
        ),
        # What is not JSON is passed on, so that the tool can refuse it.
        ([call(0, "a", "look", "{'city': 'A'}")], [tool("a", "look", arguments="{'city': 'A'}")]),
        ([call(0, "a", "look", "null")], [tool("a", "look")]),
        ([call(0, "a", "look", " ")], [tool("a", "look")]),
    ],
)
def test_tool_calls(pieces, blocks):
    """Calls are told apart by their ids, keep their order, and are written one after the other."""
    found, last = stream(*[chunk(tool_calls=[piece]) for piece in pieces])

    assert found == blocks
    assert last["delta"]["stop_reason"] == "tool_use"


def test_text_after_a_call_waits():
    """A text that begins within a tool call is written after it."""
    found, _ = stream(
        chunk(content="I look."),
        chunk(tool_calls=[call(0, "a", "look", '{"city":')]),
        chunk(content="Then "),
        chunk(tool_calls=[call(0, arguments='"A"}')]),
        chunk(content="on."),
    )

    assert [block["type"] for block in found] == ["text", "tool_use", "text"]
    assert found[1]["input"] == {"city": "A"}
    assert found[2]["text"] == "Then on."


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([chunk(tool_calls=[call(0, "a", None, "{}")])], "a tool call has no name"),
        (
            [
                chunk(tool_calls=[call(0, "a", "look", '{"a"')]),
                chunk(tool_calls=[call(0, arguments="=1}")]),
            ],
            "not a JSON object",
        ),
        (
            [
                chunk(tool_calls=[call(0, "a", "look", '{"a":1}')]),
                chunk(tool_calls=[call(0, arguments='{"a":2}')]),
            ],
            "not a JSON object",
        ),
    ],
)
def test_a_broken_call_is_an_error(chunks, text):
    """A call without a name, or that stops being JSON, ends the stream with an error."""
    _, last = stream(*chunks)

    assert text in last["error"]["message"]


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"", b"\n\n"])
def test_a_good_end(end):
    """A stream that states its finish reason ends well, whatever its last bytes are."""
    blocks, last = stream(chunk(content="Hi"), chunk("length"), end=end)

    assert (blocks[0]["text"], last["delta"]["stop_reason"]) == ("Hi", "max_tokens")


def test_an_end_without_a_reason():
    """A stream that just stops is an error, and nothing pretends that it is whole."""
    _, last = stream(chunk(content="Hi"), end=b"")

    assert last["error"]["message"] == "Venice ended the stream before its end."


@pytest.mark.parametrize(
    ("reason", "has_tool", "expected"),
    [
        ("stop", False, "end_turn"),
        ("tool_calls", False, "end_turn"),
        ("eos", False, "end_turn"),
        (None, True, "tool_use"),
        ("eos", True, "tool_use"),
        ("function_call", True, "tool_use"),
        ("length", True, "max_tokens"),
        ("content_filter", False, "refusal"),
    ],
)
def test_stop_reasons(reason, has_tool, expected):
    """Tool calls continue the turn, by whatever name the model gives for its end."""
    delta = {"tool_calls": [call(0, "a", "look", "{}")]} if has_tool else {"content": "Hi"}
    _, last = stream(chunk(**delta), chunk(reason, content=""))

    assert last["delta"]["stop_reason"] == expected
    assert whole(reason, **delta)["stop_reason"] == expected


def test_a_refusal_is_text():
    """The text of a refusal is shown, and is the reason for the end."""
    blocks, last = stream(chunk(refusal="I can"), chunk(refusal="not."), chunk("stop"))

    assert blocks == [{"type": "text", "text": "I cannot."}]
    assert last["delta"]["stop_reason"] == "refusal"
    message = whole(content=None, refusal="I cannot.")
    assert (message["content"], message["stop_reason"]) == (blocks, "refusal")


DETAIL = {"type": "reasoning.text", "index": 0}


def test_a_thought_without_details_has_a_signature():
    """Clients drop a thought without a signature, and the model then lacks its reasoning."""
    blocks, _ = stream(chunk(reasoning_content="Hm"), chunk(content="Hi"))

    for content in (blocks, whole(reasoning_content="Hm", content="Hi")["content"]):
        thought, _ = content
        assert (thought["thinking"], bool(thought["signature"])) == ("Hm", True)
        back = sent_back(content)
        assert back == {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"}


def test_each_of_several_thoughts_keeps_its_details():
    """The details of every thought come back, in their order."""
    blocks, _ = stream(
        chunk(reasoning_content="A", reasoning_details=[{**DETAIL, "text": "A"}]),
        chunk(reasoning_details=[{"index": 0, "signature": "s="}]),
        chunk(content="Hi"),
        chunk(reasoning_content="B", reasoning_details=[{**DETAIL, "text": "B"}]),
        chunk(tool_calls=[call(0, "a", "look", "{}")]),
    )

    assert [block["type"] for block in blocks] == ["thinking", "text", "thinking", "tool_use"]
    back = sent_back(blocks)
    assert back["reasoning_details"] == [
        {**DETAIL, "text": "A", "signature": "s="},
        {**DETAIL, "text": "B"},
    ]
    assert back["reasoning_content"] == "AB"


KEPT = [
    {"thought_signature": "t"},
    {"reasoning_encrypted": "e"},
    {"reasoning_details": [{"type": "reasoning.encrypted", "data": "d=", "index": 0}]},
]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("with_thinking", [True, False])
def test_what_only_the_model_can_read_comes_back(kept, with_thinking):
    """It comes back whether or not the caller asked for thinking, streamed and whole."""
    calls = [call(0, "a", "look", "{}")]
    streamed, _ = stream(chunk(**kept, tool_calls=calls), with_thinking=with_thinking)
    message = whole("tool_calls", **kept, tool_calls=calls, with_thinking=with_thinking)

    for blocks in (streamed, message["content"]):
        assert [block["type"] for block in blocks] == ["thinking", "tool_use"]
        assert blocks[0]["thinking"] == ""
        back = sent_back(blocks)
        assert {name: back[name] for name in kept} == kept


def test_thoughts_that_nobody_asked_for_stay_out():
    """Reasoning that a caller did not ask for, and no model needs, is not shown."""
    thought = {"reasoning_content": "Hm", "reasoning_details": [{**DETAIL, "text": "Hm"}]}
    blocks, _ = stream(chunk(**thought, content="Hi"), with_thinking=False)

    assert blocks == [{"type": "text", "text": "Hi"}]
    assert whole(**thought, content="Hi", with_thinking=False)["content"] == blocks


def test_a_search_is_shown_with_its_citations():
    """The results come before the answer, and the answer cites those that it marks."""
    first = {"choices": [], "venice_parameters": {"web_search_citations": RESULTS}}
    blocks, last = stream(
        first, chunk(content="They run.^1"), chunk(content=", 2^ So^0, 9^."), first, chunk("stop")
    )
    message = whole(content="They run.^1, 2^ So^0, 9^.", results=RESULTS)

    for content, usage in (
        (blocks, last["usage"]),
        (message["content"], message["usage"]),
    ):
        use, found, text = content
        assert (use["type"], use["name"]) == ("server_tool_use", "web_search")
        assert found["tool_use_id"] == use["id"]
        assert [(one["title"], one["url"]) for one in found["content"]] == [
            ("Foxes", "https://f.invalid"),
            ("Bears", "https://b.invalid"),
        ]
        assert text["text"] == "They run.^1, 2^ So^0, 9^."
        assert [citation["url"] for citation in text["citations"]] == [
            "https://f.invalid",
            "https://b.invalid",
        ]
        assert text["citations"][0]["cited_text"].startswith("Foxes run.")
        assert len(text["citations"][0]["cited_text"]) == 150
        assert usage["server_tool_use"]["web_search_requests"] == 1
    assert sent_back(blocks)["content"].startswith("\nFoxes\nhttps://f.invalid")


def test_results_may_come_last():
    """A stream that states its results at its end cites them, too."""
    results = {"choices": [], "venice_parameters": {"web_search_citations": RESULTS}}
    blocks, last = stream(chunk(content="They run.^1^"), chunk("stop"), results)

    text, use, found = blocks
    assert [citation["title"] for citation in text["citations"]] == ["Foxes"]
    assert (use["type"], found["type"]) == ("server_tool_use", "web_search_tool_result")
    assert last["usage"]["server_tool_use"]["web_search_requests"] == 1


def test_no_search_has_no_blocks():
    """An answer without results has no blocks and no count of a search."""
    message = whole(content="Hi", results=[])

    assert [block["type"] for block in message["content"]] == ["text"]
    assert "server_tool_use" not in message["usage"]


def test_usage_that_is_not_stated():
    """The estimate of the input stays where Venice states no usage."""
    _, last = stream(chunk(content="Hi"), chunk("stop"))
    assert (last["usage"]["input_tokens"], last["usage"]["output_tokens"]) == (11, 0)

    usage = {"prompt_tokens": "9", "completion_tokens": 3.0, "cache_read_input_tokens": 4}
    _, last = stream(chunk(content="Hi"), {"choices": [], "usage": usage})
    assert (last["usage"]["input_tokens"], last["usage"]["output_tokens"]) == (5, 3)
    assert last["usage"]["cache_read_input_tokens"] == 4


def event(*calls, **delta):
    return b"data: %b\n\n" % json.dumps(chunk(tool_calls=list(calls), **delta)).encode()


LONG = "x" * 1024 * 1024


@pytest.mark.parametrize(
    ("first", "more"),
    [
        # Arguments that are not JSON, and a call without a name.
        (event(call(0, "a", "look", "oops")), event(call(0, None, None, LONG))),
        (event(call(0, "a")), event(call(0, None, None, LONG))),
        # A block that waits for the end of a call.
        (event(call(0, "a", "look", "{}"), content="So"), event(content=LONG)),
    ],
)
def test_what_is_held_back_is_bounded(first, more):
    """A stream of which too much waits for a later event ends with an error."""
    translation = MessageEvents(with_thinking=False)
    translation.feed(first)
    with pytest.raises(UpstreamError, match="too large"):
        for _ in range(65):
            translation.feed(more)


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (event(call(0, "a", "look", '{"a": "')), event(call(0, None, None, LONG))),
        (event(), event(content=LONG)),
    ],
)
def test_what_is_passed_on_is_not_bounded(first, more):
    """A stream of which nothing waits may be as long as it likes."""
    translation = MessageEvents(with_thinking=False)
    translation.feed(first)
    for _ in range(65):
        assert LONG.encode() in translation.feed(more)
