"""Bodies: spliced, never re-encoded; errors name the field."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import body
from service.errors import ClientError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"m"}', b'{"user":"p","model":"m"}'),
        (b"{}", b'{"user":"p"}'),
        (b' \n{ "a" : 1.0e5 }\n', b' \n{"user":"p", "a" : 1.0e5 }\n'),
    ],
)
def test_a_missing_member_goes_to_the_front(before, after):
    """All other bytes stay as they were."""
    assert body.set_members(before, {"user": "p"}, ()) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"user":"alice","n":1}', b'{"user":"p","n":1}'),
        (b'{"n":1 , "user" : null }', b'{"n":1 , "user" : "p" }'),
        (b'{"user":{"a":["]}"]},"n":1}', b'{"user":"p","n":1}'),
        (b'{"\\u0075ser":"alice"}', b'{"\\u0075ser":"p"}'),
        (b'{"user":"a","user":"b"}', b'{"user":"p","user":"p"}'),
        (b'{"m":{"user":"inner"},"user":"x\\"y"}', b'{"m":{"user":"inner"},"user":"p"}'),
        (b'{"m":"user","user":"x"}', b'{"m":"user","user":"p"}'),
        (b'{"m":["user",{"user":1}],"user":1}', b'{"m":["user",{"user":1}],"user":"p"}'),
    ],
)
def test_a_member_is_replaced_where_it_stands(before, after):
    """Only the member itself at the top level is changed, in every spelling and repetition."""
    assert body.set_members(before, {"user": "p"}, {"user"}) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1}', b'{"a":1}'),
        (b'{"gone":1}', b"{}"),
        (b' { "gone" : "x", "a" : 1.0e0 } ', b' { "a" : 1.0e0 } '),
        (b'{"a":1 ,\n "gone":[{"a":"}"}] }', b'{"a":1 }'),
        (b'{"gone":1,"a":{"gone":2},"g\\u006fne":3}', b'{"a":{"gone":2}}'),
    ],
)
def test_a_member_is_taken_out(before, after):
    """At the top level, in every spelling and repetition; the others keep their bytes."""
    assert body.without_members(before, {"gone"}) == after


@given(st.dictionaries(st.text(), JSON), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_taking_out_equals_deleting(members, ascii_only, indent, data):
    """On any JSON object it means what decoding, deleting and encoding means."""
    names = set(data.draw(st.lists(st.sampled_from([*members, "other"]))))
    content = json.dumps(members, ensure_ascii=ascii_only, indent=indent)
    content = content.encode("utf-8", "surrogatepass")

    left = body.without_members(content, names)

    assert json.loads(left) == {name: members[name] for name in members if name not in names}


@given(st.dictionaries(st.text(), JSON), st.text(), st.booleans(), st.sampled_from([None, 1]))
def test_splicing_equals_setting(members, user, ascii_only, indent):
    """On any JSON object splicing means what decoding, setting and encoding means."""
    content = json.dumps(members, ensure_ascii=ascii_only, indent=indent)
    content = content.encode("utf-8", "surrogatepass")

    spliced = body.set_members(content, {"user": user}, members.keys() & {"user"})

    assert json.loads(spliced) == {**members, "user": user}


class Shape(msgspec.Struct):
    model: str
    n: int = 1


@pytest.mark.parametrize(
    ("content", "param", "text"),
    [
        (b'{"model":1}', "model", "Expected 'str', got 'int'"),
        (b"{}", "model", "missing required field 'model'"),
        (b'{"model":"m","n":"x"}', "n", "Expected 'int'"),
        (b"[]", None, "Expected 'object'"),
        (b'{"model"', None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "not valid JSON"),
        (b"", None, "not valid JSON"),
    ],
)
def test_errors_name_the_field(content, param, text):
    """A body of another shape is answered with the field and the rule."""
    with pytest.raises(ClientError) as caught:
        body.decode(content, Shape)

    assert caught.value.param == param
    assert text in caught.value.message


@given(JSON, st.booleans())
def test_the_bytes_of_a_text_are_bounded(value, ensure_ascii):
    """However it is escaped, by no less than its characters have, and by few more than they may."""
    plain = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    escaped = json.dumps(value, ensure_ascii=ensure_ascii).encode(errors="replace")

    def characters(part):
        if isinstance(part, dict):
            return sum(map(characters, (*part, *part.values())))
        if isinstance(part, list):
            return sum(map(characters, part))
        return len(part.encode(errors="replace")) if isinstance(part, str) else 0

    assert characters(value) <= body.text_bytes(escaped)
    assert body.text_bytes(escaped) <= len(plain) * 2


def test_a_backslash_before_a_u_is_no_escape():
    """An escaped backslash takes the next character from nobody."""
    for text in (r"\u0041", "\\" * 7 + "u", "\\n", "\u20ac", "\U0001f600"):
        assert body.text_bytes(json.dumps(text).encode()) >= len(text.encode()) + 2
    assert body.text_bytes(b'"\\u20ac"') == 5
