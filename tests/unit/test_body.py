"""Bodies are parsed as Venice parses them and changed without being re-encoded; errors name the
field."""

import json
import tracemalloc
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClientError, PayloadTooLarge
from service.formats import body

UNSET = msgspec.UNSET
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def edited(content, changes):
    """Return the edited content, and check that editing it again in a second step gives the
    same."""
    document = body.read(content).document
    once = document.edited(changes).content
    again = document.edited({"before": 1}).edited({**changes, "before": UNSET}).content
    assert json.loads(again) == json.loads(once)
    return once


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model":"m"}', b'{"user":"p","model":"m"}'),
        (b"{}", b'{"user":"p"}'),
        (b' \n{ "a" : 1.0e5 }\n', b' \n{"user":"p", "a" : 1.0e5 }\n'),
    ],
)
def test_a_new_member_goes_to_the_front(before, after):
    """A new member is inserted at the front, and all other bytes stay."""
    assert edited(before, {"user": "p"}) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"user":"alice","n":1}', b'{"user":"p","n":1}'),
        (b'{"n":1 , "user" : null }', b'{"n":1 , "user" : "p" }'),
        (b'{"user":{"a":["]}"]},"n":1}', b'{"user":"p","n":1}'),
        (b'{"\\u0075ser":"alice"}', b'{"\\u0075ser":"p"}'),
        (b'{"m":{"user":"inner"},"user":"x\\"y"}', b'{"m":{"user":"inner"},"user":"p"}'),
        (b'{"m":"user","user":"x"}', b'{"m":"user","user":"p"}'),
        (b'{"m":["user",{"user":1}],"user":1}', b'{"m":["user",{"user":1}],"user":"p"}'),
        (b'{"m":"\\ud83d \\\\ud83d","user":"x"}', b'{"m":"\\ud83d \\\\ud83d","user":"p"}'),
    ],
)
def test_a_member_is_replaced_in_place(before, after):
    """Only the top-level member is replaced, in every spelling of its name."""
    assert edited(before, {"user": "p"}) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"a":1}', b'{"a":1}'),
        (b'{"gone":1}', b"{}"),
        (b' { "gone" : "x", "a" : 1.0e0 } ', b' { "a" : 1.0e0 } '),
        (b'{"a":1 ,\n "gone":[{"a":"}"}] }', b'{"a":1 }'),
        (b'{"g\\u006fne":1,"a":{"gone":2}}', b'{"a":{"gone":2}}'),
    ],
)
def test_a_member_is_removed(before, after):
    """A top-level member is removed in every spelling of its name, and the others keep their
    bytes."""
    assert edited(before, {"gone": UNSET}) == after


@given(st.dictionaries(st.text(), JSON), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_editing_equals_setting_and_deleting(members, ascii_only, indent, data):
    """Editing any JSON object gives the object that decoding, changing and encoding gives."""
    names = st.sampled_from([*members, "other"])
    changes = data.draw(st.dictionaries(names, st.just(UNSET) | st.integers()))
    content = json.dumps(members, ensure_ascii=ascii_only, indent=indent)
    content = content.encode("utf-8", "surrogatepass")

    wanted = {**members, **changes}
    assert json.loads(edited(content, changes)) == {
        name: value for name, value in wanted.items() if value is not UNSET
    }


class Shape(msgspec.Struct):
    model: str
    n: int = 1


@pytest.mark.parametrize(
    ("content", "param", "text"),
    [
        (b'{"model":1}', "model", "Expected 'str', got 'int'"),
        (b"{}", "model", "missing required field 'model'"),
        (b'{"model":"m","n":"x"}', "n", "Expected 'int'"),
        (b'{"model":"m","n":1.0}', "n", "Expected 'int'"),
        (b'{"model":"m","n":true}', "n", "Expected 'int'"),
        (b"[]", None, "Expected 'object'"),
        (b'{"model"', None, "not valid JSON"),
        (b'{"model":"\xff"}', None, "not valid JSON"),
        (b'{"model":NaN}', None, "not valid JSON"),
        (b'{"model":1e999}', None, "not valid JSON"),
        (b'{"model":%b}' % (b"9" * 5000), None, "not valid JSON"),
        (b'\xef\xbb\xbf{"model":"m"}', None, "not valid JSON"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"a":' * 100_000, None, "nested too deeply"),
        (b"", None, "not valid JSON"),
    ],
)
def test_errors_name_the_field(content, param, text):
    """A body of the wrong type is an error with the field and the rule."""
    with pytest.raises(ClientError) as caught:
        body.decode(content, Shape)

    assert caught.value.param == param
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"a","mod\\u0065l":"b"}', "model"),
        (b'{"model":"a","model":"a"}', "model"),
        (b'{"a":{"b":[{"c":1,"c":{}}]}}', "c"),
        (b'{"a":"\\"","b\\\\":1,"b\\\\":2}', "b\\"),
        (b'{"a":[{"":1,"":2}]}', ""),
        (b'{"a":1,"a":"\\u0022\\u0022"}', "a"),
        (b'{"a":"\\ud83d","n":1,"n":2}', "n"),
        (b'{"a":"%b","n":1,"n":2}' % (b"x" * 300_000), "n"),
        (b'[{"a":1},{"a":1,"a":2}]', "a"),
    ],
)
def test_duplicate_members_are_refused(content, name):
    """A member that occurs twice is refused, because parsers differ in which one they take."""
    with pytest.raises(ClientError) as caught:
        body.read(content)

    assert (caught.value.status, caught.value.param) == (400, name)
    assert "twice" in caught.value.message


def test_duplicates_in_a_large_body_are_refused():
    """A duplicate member of a large body is refused, without its name."""
    with pytest.raises(ClientError, match="twice"):
        body.read(b'{"a":"%b","n":1,"n":2}' % (b"x" * body.MAX_NAMED_DUPLICATE_BYTES))


@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_any_json_is_accepted(value, ascii_only, indent):
    """No JSON without duplicate members is refused."""
    content = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert body.read(content).value == json.loads(content)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b'{"a":1%b}' % b"".join(b',"%d":1' % i for i in range(5_000)), "1,000 members"),
        (b'{"messages":[%b]}' % b",".join([b'{"role":""}'] * 2_800_000), "250,000 values"),
        (b'{"messages":[%b]}' % b",".join([b'{"role":""}'] * 130_000), "250,000 values"),
        (b"[%b]" % b",".join([b"1"] * 300_000), "250,000 values"),
        (b"[%b]" % b",".join([b"[]"] * 300_000), "250,000 values"),
        (b"[%b]" % b",".join([b'""'] * 300_000), "250,000 values"),
        (b'{"a":"%b"}' % (b"\\n" * 4_000_001), "4,000,000 escaped"),
        (b'{"a":1%b}' % (b',"a":1' * 5_800_000), "250,000 values"),
        (b"[%b]" % b",".join([b"1.5e-320"] * 4_001), "4,000 numbers with an exponent"),
        (b"[%b]" % b",".join([b"17976931348623158E292"] * 4_001), "4,000 numbers with an exponent"),
        (b"[%b]" % b",".join([b"9" * 4_000] * 10), "more than 50 digits"),
        (b"[%b]" % b",".join([b"0.%b" % (b"1" * 400)] * 100), "more than 50 digits"),
        (b'"%b"' % (b"\\ud800" * 200_001), "200,000 halves"),
        (b'"%b\\ud83d"' % (b"\\uD83D\\uDE00" * 100_000), "200,000 halves"),
    ],
)
def test_bodies_that_are_slow_to_parse_are_refused(content, rule):
    """A body that is slow to parse is refused before it is decoded and uses next to no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=rule):
            body.read(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < max(3 * len(content), 60_000_000)


@pytest.mark.parametrize(
    "value",
    [
        {"input": list(range(100_000))},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 10_000},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 1_000},
        {"text": "[{,:\\\"'}]\n" * 1_000_000},
        {"picture": "a" * 30_000_000},
        {"digits": "1e-300," * 100_000 + "7" * 100_000, "flags": [True, False] * 10_000},
        {"vectors": [1.2345678901234567e-05] * 3_000 + [0.1234567890123456] * 100_000},
        {"text": "\U0001f600" * 500_000},
    ],
)
def test_bodies_of_real_agents_are_accepted(value):
    """Long conversations with any text are accepted."""
    assert body.read(json.dumps(value).encode()).value == value


@given(st.text('\\"\n{,', min_size=12), st.integers(0, 12), st.booleans())
def test_a_body_is_counted_in_slices_that_cut_no_escape(text, shift, ascii_only):
    """Counting a text in slices cuts no escape, and counts each byte once at the end of a slice."""
    padding = "x" * (body.SLICE_BYTES - shift - len('{"a":"'))
    members = {"a": padding + text, "b": text, "c": [text]}
    content = json.dumps(members, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    limits = body.Limits(values=5)
    assert body.read(content, limits).value == members
    with pytest.raises(PayloadTooLarge, match="values"):
        body.read(content, limits._replace(values=4))
    with pytest.raises(ClientError, match="twice"):
        body.read(content[:-1] + b',"c":1}')


@given(JSON, st.sampled_from([None, 1]))
def test_one_text_has_one_length(value, indent):
    """A text has the same length however it is escaped and indented, and never less than its bytes
    in UTF-8."""
    plain = json.dumps(value, ensure_ascii=False).encode()
    escaped = json.dumps(value, indent=indent).encode()

    def characters(part):
        if isinstance(part, dict):
            return sum(map(characters, (*part, *part.values())))
        if isinstance(part, list):
            return sum(map(characters, part))
        return len(part.encode(errors="replace")) if isinstance(part, str) else 0

    assert body.read(plain).text_bytes == body.read(escaped).text_bytes
    assert characters(value) <= body.read(escaped).text_bytes <= len(plain) * 2


@pytest.mark.parametrize(
    "text", ["word " * 4_000, 'a\n\t\\"b" ' * 4_000, "h\u00e9llo \U0001f600 " * 4_000]
)
def test_a_long_text_has_the_length_of_its_encoding(text):
    """A long text, which is not encoded to be measured, has the same length in any spelling."""
    value = {"a": [{"text": text, "n": 1.5}, text], "b": {"c": [True, None, {}]}}
    length = len(msgspec.json.encode(value))
    for ascii_only in (False, True):
        for indent in (None, 1):
            content = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
            assert len(content) > body.UNCOUNTED_BYTES
            assert body.read(content).text_bytes == length


@pytest.mark.parametrize(
    "number",
    [
        "31186746009474785.5",
        "-47016672402067711.1",
        "123456789012345678901",
        "0.00001",
        "1e15",
        "2.50",
        "7",
    ],
)
def test_a_long_body_is_never_measured_as_shorter_than_its_encoding(number):
    """The encoding of a number may be longer than the number; the bound of a call covers both."""
    content = b'{"a":"%b","n":%b}' % (b"word " * 4_000, number.encode())
    assert body.read(content).text_bytes >= len(msgspec.json.encode(msgspec.json.decode(content)))


@pytest.mark.parametrize("twice", [rb'"n":1,"n":2', rb'"n":1,"\u006e":2', rb'"n":1,"n":{"n":2}'])
def test_a_member_twice_in_a_long_body_is_refused(twice):
    """A member that is there twice is refused at any depth and in any spelling of its name."""
    for text in (b"word ", rb"a \"b\": \\"):
        for content in (b'{"a":"%b",%b}', b'[[{"a":"%b"}],{"b":[{%b}]}]'):
            with pytest.raises(ClientError, match="twice"):
                body.read(content % (text * 10_000, twice))
            body.read(content % (text * 10_000, b'"n":1,"m":2'))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (rb'"a \ud83d b"', "a \ufffd b"),
        (rb'"\ude00"', "\ufffd"),
        (rb'"\ud83d\ud83d\ude00\ude00"', "\ufffd\U0001f600\ufffd"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (rb'"\\\ud83d"', "\\\ufffd"),
    ],
)
def test_a_lone_surrogate_is_accepted(content, text):
    """A lone surrogate, which JavaScript writes for a truncated text, is accepted, and its bytes
    pass unchanged."""
    read = body.read(content)

    assert read.value == text
    assert read.document.content == content


@pytest.mark.parametrize("path", ["", "a"])
def test_an_error_quotes_little_of_the_body(path):
    """An error neither repeats nor searches names and values of megabytes."""

    class Inner(msgspec.Struct, forbid_unknown_fields=True):
        kind: Literal["x", "y"] = "x"

    class Outer(msgspec.Struct, forbid_unknown_fields=True):
        a: Inner | None = None

    for content in (b'{"%b":1}' % (b"n" * 1_000_000), b'{"kind":"%b"}' % (b"v" * 1_000_000)):
        shape = Outer if path else Inner
        with pytest.raises(ClientError) as caught:
            body.decode(b'{"a":%b}' % content if path else content, shape)

        assert len(caught.value.message) < 2_500
        assert len(caught.value.param) < 1_500
        assert caught.value.param.startswith(path)


@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a\\"[":', b"}]")])
def test_the_depth_has_a_limit(pair):
    """A body may be as deep as its limit, and no deeper, so that whatever reads it may recurse."""
    begin, end = pair
    levels = len(begin.replace(b'a\\"[', b"").translate(None, b'":a'))
    fitting = body.LIMITS.depth // levels

    def nested(depth):
        return b"[%b]" % b",".join([begin * depth + b"0" + end * depth] * 3)

    body.read(nested(fitting - 1))
    with pytest.raises(ClientError, match="nested too deeply"):
        body.read(nested(fitting))
