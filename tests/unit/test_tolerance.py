"""Members that clients send by default and Venice refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.formats import body
from service.gateway.endpoints.tolerance import LEFT_OUT, tolerate

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def tolerated(**members):
    read = body.read(json.dumps(members).encode())
    return json.loads(read.edited(tolerate(read.members)).document.content)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_members_without_effect_are_removed(name):
    """Members that have no effect are removed, in any position."""
    assert tolerated(a=1, **{name: {"x": [1]}}, b=2) == {"a": 1, "b": 2}


def test_nulls_are_removed():
    """Members that are null are removed, except within other members."""
    assert tolerated(a=None, b={"c": None}, d=[None]) == {"b": {"c": None}, "d": [None]}
    assert tolerated(a=None) == {}


@pytest.mark.parametrize(
    ("stream", "is_kept"), [({"stream": True}, True), ({"stream": False}, False), ({}, False)]
)
def test_stream_options_need_a_stream(stream, is_kept):
    """``stream_options`` is kept for streams only."""
    members = tolerated(stream_options={"include_usage": True}, **stream)

    assert ("stream_options" in members) is is_kept


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("auto", "auto"), ({"name": "look"}, {"type": "function", "function": {"name": "look"}})],
)
def test_functions_become_tools(choice, expected):
    """The old ``functions`` and ``function_call`` become tools."""
    function = {"name": "look", "parameters": {"type": "object"}}

    assert tolerated(functions=[function], function_call=choice) == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": expected,
    }
    assert tolerated(functions=[function], tools=[]) == {"tools": []}
    assert tolerated(functions=1) == {"tools": 1}
    assert tolerated(functions=[function], tools=None)["tools"][0]["function"] == function


def test_a_tools_text_in_parts_is_joined():
    """A tool's message has one text at Venice; its other members and all other messages stay."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]
    user = {"role": "user", "content": parts}
    tool = {"role": "tool", "tool_call_id": "t", "content": parts}

    assert tolerated(messages=[user, tool])["messages"] == [user, {**tool, "content": "a\nb"}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": None},
        {"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "tool", "content": [{"type": "text", "text": 5}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        "tool",
    ],
)
def test_other_messages_stay(message):
    """A message without parts, with other parts, or of another role is not changed."""
    assert tolerate({"messages": [message]}) == {}


@pytest.mark.parametrize(
    "content",
    [
        b'{ "model" : "m","messages":[{"role":"user","content":"is null, store"}] }',
        b'{"a": "\\"store\\"", "b": {"metadata": 1}, "stream": true, "stream_options": {}}',
    ],
)
def test_other_bodies_are_unchanged(content):
    """A body without such members is not changed by a byte."""
    assert tolerate(json.loads(content)) == {}


@given(st.dictionaries(st.text(max_size=4) | st.sampled_from(sorted(LEFT_OUT)), JSON))
def test_all_other_members_stay(members):
    """All other members stay, whatever their names and values are."""
    kept = {
        name: value for name, value in members.items() if name not in LEFT_OUT and value is not None
    }

    assert tolerated(**members) == kept
