"""Lone surrogates are kept while a text is in pieces and replaced when it is sent."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.formats import surrogates

TEXTS = st.text(st.sampled_from(["a", "\ud83d", "\ude00", "😀", "\uffff"]), max_size=8)


@given(st.lists(TEXTS))
def test_pieces_make_the_text(texts):
    """Each piece can be encoded at once, and all pieces together are the text."""
    pieces = surrogates.Pieces()
    sent = [surrogates.repair(pieces.add(text)) for text in texts]
    sent.append(pieces.rest())

    assert "".join(sent) == surrogates.repair("".join(texts))
    assert all(piece.encode() is not None for piece in sent)


@given(TEXTS)
def test_any_decoded_text_can_be_encoded(text):
    """A decoded text can be encoded, with U+FFFD for a lone surrogate."""
    value = {"first": [text, {"b": text}], text: 1}
    decoded = surrogates.decode(json.dumps(value).encode(), dict)

    assert json.loads(surrogates.encode(decoded))["first"][0] == surrogates.repair(text)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a":"\\ud83d"', b'"\\ud83d"NaN', b"[" * 100_000, b'["\\ud83d",NaN]']
)
def test_invalid_json_stays_invalid(content):
    """Invalid JSON with lone surrogates is invalid too."""
    with pytest.raises(msgspec.DecodeError):
        surrogates.decode(content, list)


def test_bytes_that_are_not_utf8():
    """Bytes that are not UTF-8 become U+FFFD."""
    assert surrogates.decode(b'"a\xff"', str) == "a\ufffd"
