"""An assembled stream equals the plain answer."""

import contextlib
import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UpstreamError
from service.formats.sse import EventReader
from service.gateway.assembly import ChatCompletion, Response

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def stream(*objects):
    """Return server-sent events, ended as Venice ends them."""
    lines = (b"data: " + json.dumps(value).encode() for value in objects)
    return b"".join(line + b"\n\n" for line in lines) + b"data: [DONE]\n\n"


def chunk(delta, index=0, finish_reason=None, **more):
    """Return a chunk of one choice."""
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, **more}
    return {**HEAD, "choices": [choice]}


LAST = {**HEAD, "choices": [], "usage": {"completion_tokens": 2}, "cost": {"usd": 0.1}}


def assembled(assembly, *pieces):
    """Return the assembled JSON."""
    reader = EventReader()
    for piece in pieces:
        assembly.feed(reader.feed(piece))
    assembly.feed(reader.end())
    return json.loads(assembly.result())


def whole(*chunks):
    """Return the completion of these chunks."""
    return assembled(ChatCompletion(), stream(*chunks, LAST))


@given(st.lists(st.lists(st.text(max_size=5), max_size=6), min_size=1, max_size=3))
def test_texts_are_joined_for_each_choice(choices):
    """Texts are joined for each choice, whatever is in them and in whatever order choices come."""
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
    """Usage and cost are members, and nothing shows that it was a stream."""
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
    """Arguments come in pieces; ids and names come once, or repeatedly."""
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
    """Reasoning, its details by their index, and the log probability of each token."""
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
    """A response is its last event; earlier events are ignored."""
    answer = {"id": "r1", "status": "completed", "output": [], "usage": {"input_tokens": 1}}
    events = stream(
        {"type": "response.created", "response": {"id": "r1"}},
        {"type": "response.completed", "response": answer},
    )
    assert assembled(Response(), events) == answer


EVENTS = {
    ChatCompletion: stream(
        chunk({"role": "assistant", "content": "a\n\nb \u00e9"}),
        chunk({"content": "c", "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}, 0, "stop"),
        LAST,
    ),
    Response: stream(
        {"type": "response.created", "response": {"id": "r1"}},
        {"type": "response.completed", "response": {"id": "r1", "output": ["a\n\nb"]}},
    ),
}


@pytest.mark.parametrize("kind", EVENTS)
@given(cuts=st.lists(st.integers(0, 1000), max_size=40), windows=st.booleans())
def test_any_cut_gives_the_same(kind, cuts, windows):
    """The result does not depend on cuts and line endings."""
    events = EVENTS[kind].replace(b"\n", b"\r\n") if windows else EVENTS[kind]
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    pieces = [events[start:end] for start, end in itertools.pairwise(edges)]

    assert assembled(kind(), *pieces) == assembled(kind(), EVENTS[kind])


def work_of(assembly, pieces):
    """Return how many lines of Python the assembly runs, which load does not change."""
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        assembled(assembly, *pieces)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize(
    "more",
    [
        lambda n: {"delta": {"content": "word"}},
        lambda n: {"delta": {}, "logprobs": {"content": [{"token": "word", "logprob": -0.1}]}},
        lambda n: {"delta": {"tool_calls": [{"index": n, "function": {"arguments": "{}"}}]}},
    ],
)
def test_twice_the_pieces_are_twice_the_work(more):
    """An answer of a hundred thousand events costs little for each."""

    def work(count):
        return work_of(ChatCompletion(), [stream(chunk(**more(n))) for n in range(count)])

    assert work(400) < 2.2 * work(200)


def test_what_is_read_is_not_kept():
    """The output is kept, not its events, which are many times longer; of a response, the last."""
    events = stream({"type": "response.output_text.delta", "delta": "x" * 1000})
    response, chat = Response(), ChatCompletion()
    last = stream({"type": "response.completed", "response": {"output": []}})
    held = _size(response)
    for _ in range(1000):
        response.feed(events)
        chat.feed(stream({**chunk({"content": "word"}), "pad": "x" * 1000}))

    assert _size(response) < held + 10_000
    assert _size(chat) < 200_000
    assert assembled(response, last) == {"output": []}


def _size(value):
    """Return the bytes of all objects that an object refers to."""
    if hasattr(value, "__dict__"):
        return sys.getsizeof(value) + _size(vars(value))
    if isinstance(value, dict):
        return sys.getsizeof(value) + sum(map(_size, [*value, *value.values()]))
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(_size, value))
    return sys.getsizeof(value)


@pytest.mark.parametrize("kind", [ChatCompletion, Response])
@pytest.mark.parametrize(
    "events", [b"", b"data: [DONE]\n\n", b"data: {\n\n", stream({"choices": [1]}), stream([])]
)
def test_what_is_no_answer(kind, events):
    """An empty or invalid stream raises UpstreamError."""
    with pytest.raises(UpstreamError):
        assembled(kind(), events)


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": 5},
        {"choices": "ab"},
        {"choices": ["a"]},
        {"choices": [{"index": "a"}]},
        {"choices": [{"delta": 5}]},
        chunk({"tool_calls": "x"}),
        chunk({"tool_calls": {"index": 0}}),
        chunk({"tool_calls": [1]}),
        chunk({"tool_calls": [{"index": "a"}]}),
        chunk({"tool_calls": [{"index": {}}]}),
    ],
)
def test_odd_shapes_are_an_error(odd):
    """Venice's error raises UpstreamError, also among valid chunks."""
    with pytest.raises(UpstreamError):
        whole(chunk({"content": "a"}), odd)


def test_calls_that_share_an_index_are_kept_apart():
    """A new id begins a new call, and the pieces after it belong to it."""
    completion = whole(
        chunk({"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "f"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]}),
        chunk({"tool_calls": [{"index": 0, "id": "t2", "function": {"name": "f"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": {"a": 2}}}]}, 0, "tool_calls"),
    )

    assert completion["choices"][0]["message"]["tool_calls"] == [
        {"id": "t1", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "t2", "function": {"name": "f", "arguments": '{"a":2}'}},
    ]


def test_an_empty_text_does_not_replace_what_is_known():
    """Later empty ids, names and members count as null; texts in pieces are joined."""
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f"}}
    empty = {"index": 0, "id": "", "type": None, "function": {"name": "", "arguments": "{}"}}
    completion = whole(
        chunk({"role": "assistant", "thought_signature": "s", "tool_calls": [call]}),
        {
            **chunk({"role": "", "thought_signature": "", "tool_calls": [empty]}),
            "id": "",
            "model": None,
        },
        chunk({"content": ""}, finish_reason="tool_calls"),
        chunk({}, finish_reason=""),
    )

    assert (completion["id"], completion["model"]) == ("c1", "m")
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "",
        "thought_signature": "s",
        "tool_calls": [
            {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }


@pytest.mark.parametrize(
    "odd",
    [
        chunk({}, logprobs="x"),
        chunk({"reasoning_content": {"text": "x"}}),
        chunk({"reasoning_content": 5, "reasoning_details": "x"}),
        chunk({"refusal": ["x"]}),
        {**chunk({}), "id": None, "usage": None},
        {**chunk({}, finish_reason=3), "id": 5, "usage": "x"},
        {"choices": None},
        {"choices": [None]},
        [],
        "x",
    ],
)
def test_an_odd_member_loses_nothing_else(odd):
    """A malformed member that is not part of the answer's text changes nothing else."""
    choice = {"reasoning_content": "Hm", "content": [{"type": "text", "text": "a"}]}
    chunks = [chunk(choice), chunk({"content": "b"}, finish_reason="length")]
    for place in range(3):
        completion = assembled(
            ChatCompletion(), stream(LAST, *chunks[:place], odd, *chunks[place:])
        )
        assert (completion["id"], completion["usage"]) == ("c1", LAST["usage"])
        message = completion["choices"][0]["message"]
        assert completion["choices"][0]["finish_reason"] == "length"
        assert (message["content"], message["reasoning_content"]) == ("ab", "Hm")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "delta", "message", "content", "tool_calls", "logprobs"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.lists(
        ANYTHING
        | ANYTHING.map(lambda value: {"choices": [value]})
        | ANYTHING.map(lambda value: {"choices": [{"delta": value}]})
        | ANYTHING.map(lambda value: {"choices": [{"delta": {"tool_calls": [value]}}]})
        | ANYTHING.map(lambda value: {"type": "response.completed", "response": value}),
        max_size=4,
    )
)
def test_arbitrary_events_raise_only_upstream_error(events):
    """Arbitrary events are assembled, or raise UpstreamError."""
    for kind in EVENTS:
        with contextlib.suppress(UpstreamError):
            assert isinstance(assembled(kind(), stream(*events)), dict)


@pytest.mark.parametrize("kind", [ChatCompletion, Response])
@pytest.mark.parametrize("depth", [500, 100_000])
def test_what_is_nested_deeply_breaks_nothing(kind, depth):
    """Deeply nested members are assembled, or raise UpstreamError."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    events = b'data: {"type":"response.completed","response":%b,"choices":[{"delta":%b}]}\n\n'
    with contextlib.suppress(UpstreamError):
        assert assembled(kind(), events % (deep, deep))


def test_events_without_empty_lines_between_them():
    """A stream that the meter reads can be assembled."""
    whole = stream(chunk({"content": "a"}), chunk({"content": "b"}, finish_reason="stop"), LAST)
    tight = whole.replace(b"\n\n", b"\n") + b"\n"

    assert assembled(ChatCompletion(), tight) == assembled(ChatCompletion(), whole)
