"""JSON objects that arrive in pieces."""

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.formats.partial_json import MAX_DEPTH, PartialObject

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)
CUTS = st.lists(st.integers(0, 200), max_size=8)


def fed(text, cuts=()):
    partial = PartialObject()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        partial.feed(text[start:end])
    return partial


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans(), CUTS, st.data())
def test_every_beginning_of_an_object_is_valid(value, indent, ascii_only, cuts, data):
    """Each beginning is valid in whatever pieces it arrives, and only the whole is complete."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    end = data.draw(st.integers(0, len(text) - 1))

    assert fed(text, cuts).is_complete
    assert fed(text + " \n", cuts).is_complete
    beginning = fed(text[:end], cuts)
    assert (beginning.is_valid, beginning.is_complete) == (True, False)


@given(OBJECTS, st.integers(0, 200), st.characters(max_codepoint=127), CUTS)
def test_it_judges_as_the_decoder_does(value, at, character, cuts):
    """A text with one character changed is complete where the decoder reads an object."""
    text = json.dumps(value)
    text = text[:at] + character + text[at + 1 :]
    try:
        is_object = isinstance(json.loads(text, parse_constant=int), dict)
    except ValueError:
        is_object = False

    assert fed(text, cuts).is_complete is is_object


BROKEN = r"""
[ a "a } {}{ {, {'a {"a"1 {"a":1" {"a":01, {"a":[1"2" {"a":"\x {"a":"\u12g {"a":] {"a":1,}
[1,] {"a":tru, {"a":1{ {:
"""


@pytest.mark.parametrize("text", [*BROKEN.split(), '{"a":"\n', '{"a":1 2'])
def test_what_cannot_be_an_object(text):
    """A text that no object begins with is found at once."""
    assert not fed(text).is_valid


def test_depth_is_bounded():
    """An object that is nested more deeply than clients read is not valid."""
    assert fed('{"a":' * MAX_DEPTH).is_valid
    assert not fed('{"a":' * (MAX_DEPTH + 1)).is_valid


def test_a_number_in_many_pieces_takes_little_time():
    """The time grows with the length of the number, not with its square."""
    partial = PartialObject()
    partial.feed('{"a":')
    began = time.process_time()
    for _ in range(10_000):
        partial.feed("1" * 1000)
    partial.feed("}")

    assert partial.is_complete
    assert time.process_time() - began < 1
