"""The reader of chat completions: what it keeps of malformed answers, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import UpstreamError
from service.formats import completion
from service.formats.completion import Function, ToolCall, ToolCallNumbers


def read(**members):
    return completion.decode(json.dumps(members).encode())


def delta(**members):
    (choice,) = read(choices=[{"delta": members}]).choices
    return choice.delta


ODD = [None, 5, 1.5, True, "", "text", "\ud83d", [], [None], ["a"], {}, {"a": 1}]
UNNEEDED = [
    ("id", "created", "model", "usage", "venice_parameters", "object", "error"),
    ("finish_reason", "logprobs"),
    (
        "refusal",
        "reasoning_content",
        "reasoning",
        "reasoning_details",
        "reasoning_encrypted",
        "thought_signature",
        "annotations",
        "role",
    ),
]


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize(
    ("level", "name"), [(level, name) for level, names in enumerate(UNNEEDED) for name in names]
)
def test_an_odd_member_loses_nothing_else(level, name, value):
    """A member that a translation can do without may have any type."""
    message = {"content": "Hi", "tool_calls": [{"id": "t", "function": {"name": "f"}}]}
    choice = {"index": 0, "delta": message, "finish_reason": "stop"}
    whole = {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 3}}
    (whole, choice, message)[level][name] = value

    (found,) = read(**whole).choices
    assert found.delta.content == "Hi"
    assert [call.name for call in found.delta.tool_calls] == ["f"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(10, 10), (10.0, 10), ("10", 10), (None, None), (-1, None), (1.5, None), ({}, None)],
)
def test_counts(value, expected):
    """A count may be a text or have a zero fraction; a malformed one does not lose the others."""
    usage = read(
        usage={
            "prompt_tokens": value,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": value},
            "completion_tokens_details": 5,
        }
    ).usage

    assert (usage.prompt_tokens, usage.completion_tokens) == (expected, 7)
    assert usage.cached_tokens == (expected or 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a", "a"),
        (None, None),
        ([{"type": "text", "text": "a"}, {"type": "thinking"}, "b", None], "ab"),
        ({"text": "a"}, "a"),
        ("\ud83d", "\ud83d"),
    ],
)
def test_content(content, expected):
    """The content may be a list of parts; halves of surrogate pairs stay."""
    assert delta(content=content, role=5).content == expected


def test_arguments_may_be_an_object():
    """Arguments that are an object become its JSON."""
    (call,) = delta(tool_calls=[None, {"function": {"arguments": {"a": "\u00e9"}}}]).tool_calls

    assert json.loads(call.arguments) == {"a": "\u00e9"}


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"choices": 5}, "choices"),
        ({"choices": ["a"]}, "choices[0]"),
        ({"choices": [{"index": "a"}]}, "choices[0].index"),
        ({"choices": [{}, {"delta": []}]}, "choices[1].delta"),
        ({"choices": [{"message": "a"}]}, "choices[0].message"),
        ({"choices": [{"delta": {"content": 5}}]}, "choices[0].delta.content"),
        ({"choices": [{"delta": {"content": {}}}]}, "choices[0].delta.content"),
        ({"choices": [{"delta": {"tool_calls": {}}}]}, "choices[0].delta.tool_calls"),
        ({"choices": [{"delta": {"tool_calls": [1]}}]}, "choices[0].delta.tool_calls[0]"),
        (
            {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": 5}}]}}]},
            "choices[0].delta.tool_calls[0].function.arguments",
        ),
    ],
)
def test_an_error_names_the_needed_member(members, path):
    """A malformed member of the answer itself is an error with its path."""
    with pytest.raises(UpstreamError) as caught:
        read(**members)

    assert str(caught.value).startswith(f"Venice's answer cannot be read: {path} ")


@pytest.mark.parametrize("content", [b"<html>", b"{", b"", b'{"a":' * 5000])
def test_no_json_is_an_error(content):
    """Bytes that are not JSON are an error."""
    with pytest.raises(UpstreamError):
        completion.decode(content)


@pytest.mark.parametrize("content", [b"5", b"[]", b"null", b'"a"', b"{}"])
def test_other_json_has_no_choices(content):
    """JSON without choices is no error: chunks of usage have none."""
    assert completion.decode(content).choices == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "delta", "content", "tool_calls", "function", "id", "usage"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_only_its_own_error(value):
    """Whatever arrives, it is read, or the error is the reader's own."""
    for content in (value, {"choices": [{"delta": value}]}):
        try:
            read_back = completion.decode(json.dumps(content).encode())
        except UpstreamError:
            continue
        assert isinstance(read_back.choices, list)


def piece(index=None, call_id=None, name=None):
    return ToolCall(index=index, id=call_id, function=Function(name=name))


@pytest.mark.parametrize(
    ("pieces", "numbers"),
    [
        # Every call has the same index.
        ([(0, "a", "f"), (0,), (0, "b", "g"), (0,), (0, "b")], [0, 0, 1, 1, 1]),
        # Pieces alternate.
        ([(0, "a", "f"), (1, "b", "g"), (0,), (1,)], [0, 1, 0, 1]),
        # An id is repeated with another index, or without one.
        ([(0, "a", "f"), (1, "b", "g"), (1, "a"), (None, "a")], [0, 1, 0, 0]),
        # No index at all.
        ([(None, "a", "f"), (None, None), (None, "b", "g"), (None, "")], [0, 0, 1, 1]),
        ([(None, "", "f"), (None, "", "g"), (None, "")], [0, 1, 1]),
        # The name or the id comes late.
        ([(0, "a"), (0, "", "f"), (0, "b"), (0, None, "g")], [0, 0, 1, 1]),
        ([(0, None, "f"), (0, "a"), (0, "b", "g")], [0, 0, 1]),
        # Neither id nor name, but an index.
        ([(3,), (5,), (3,)], [0, 1, 0]),
        # The name is repeated in each piece.
        ([(0, "", "f"), (0, "", "f"), (1, "", "f")], [0, 0, 1]),
    ],
)
def test_the_call_of_a_piece(pieces, numbers):
    """A new id begins a call; a piece without an id continues the latest call of its index."""
    calls = ToolCallNumbers()

    assert [calls.number_of(piece(*one)) for one in pieces] == numbers
