"""Multipart bodies: what their fields are called and how long they are."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClientError
from service.multipart import MOST_PARTS, TEXT_BYTES, is_multipart, parse, set_texts, write

TYPE = "multipart/form-data; boundary=b"


def head(name, more=""):
    """The head of a part."""
    return f'Content-Disposition: form-data; name="{name}"{more}'.encode()


def parts_of(content, content_type=TYPE):
    """Name, length and text of each."""
    return [(part.name, part.length_bytes, part.text) for part in parse(content, content_type)]


def body(*parts, end=b"--b--\r\n"):
    """Heads and contents between boundaries."""
    written = (b"--b\r\n%b\r\n\r\n%b\r\n" % part for part in parts)
    return b"".join(written) + end


CONTENT = st.binary(max_size=60).filter(lambda content: b"--b" not in content)


@given(st.lists(st.tuples(st.sampled_from("abc"), CONTENT, st.booleans())))
def test_parts_are_read_as_written(fields):
    """Names and lengths of any content; texts of what is no file."""
    written = body(
        *(
            (head(name, '; filename="x.bin"' if is_file else ""), content)
            for name, content, is_file in fields
        )
    )

    assert parts_of(written) == [
        (name, len(content), None if is_file else content.decode(errors="replace"))
        for name, content, is_file in fields
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="b"',
        "multipart/form-data;boundary=b",
        "Multipart/Form-Data; charset=utf-8; Boundary=b",
        "multipart/form-data; boundary=b; charset=utf-8",
    ],
)
def test_ways_to_say_the_boundary(content_type):
    """Quoted or not, wherever it stands."""
    assert is_multipart(content_type)
    assert parts_of(body((head("a"), b"1")), content_type) == [("a", 1, "1")]


def test_what_is_too_long_for_a_text():
    """Is none, and is measured all the same."""
    long = b"x" * (TEXT_BYTES + 1)

    assert parts_of(body((head("a"), long))) == [("a", len(long), None)]


def test_more_headers_and_a_preamble():
    """What stands before the first boundary says nothing, nor do a part's other headers."""
    odd = b'Content-Type: text/plain\r\ncontent-disposition: form-data; filename*=x; name="a"'

    assert parts_of(b"ignore me\r\n" + body((odd, b"1"))) == [("a", 1, None)]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (body((head("a"), b"1")), "multipart/form-data"),
        (body((head("a"), b"1")), "multipart/form-data; boundary=other"),
        (body((head("a"), b"1")), "multipart/form-data; boundary=b\udcff"),
        (body((head("a"), b"1"), end=b""), TYPE),
        (body((b"Content-Disposition: form-data", b"1")), TYPE),
        (body(*[(head("a"), b"")] * (MOST_PARTS + 1)), TYPE),
        (b"--b\r\nno end of a head\r\n--b--", TYPE),
        (b"", TYPE),
    ],
)
def test_what_is_no_form(content, content_type):
    """Is a clear error."""
    with pytest.raises(ClientError):
        parse(content, content_type)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(content):
    """But with the error that says so."""
    for tried in (content, b"--b" + content, b"--b\r\n" + content + b"\r\n--b--"):
        with contextlib.suppress(ClientError):
            assert all(part.length_bytes >= 0 for part in parse(tried, TYPE))


@given(st.lists(st.tuples(st.sampled_from("abc"), CONTENT, st.booleans())))
def test_texts_are_set_where_they_stand(fields):
    """Of every field of the name that is no file; all else stays, byte for byte."""

    def written(change):
        return body(
            *(
                (
                    head(name, '; filename="x.bin"' if is_file else ""),
                    b"other" if change and name == "a" and not is_file else content,
                )
                for name, content, is_file in fields
            )
        )

    assert set_texts(written(False), TYPE, {"a": "other"}) == written(True)


@pytest.mark.parametrize("boundary", ["\udcff", '"\udcff"', "é", "", '"'])
def test_a_boundary_is_ascii(boundary):
    """A boundary of other bytes is refused: as a header's text they cannot even be encoded."""
    with pytest.raises(ClientError, match="needs a boundary"):
        parse(b"--b--", f"multipart/form-data; boundary={boundary}")


@given(st.lists(CONTENT, min_size=1, max_size=4), CONTENT)
def test_another_body_is_written(files, text):
    """Of texts, and of files under another name, whose bytes and headers are what they were."""
    name = b'Content-Type: image/png\r\nContent-Disposition: form-data; filename="name"; name="%b"'
    sent = body(*((name % b"a[]", content) for content in files), (head("b"), b"gone"))
    texts = {"c": text.decode(errors="replace")}
    kept = [("d", part) for part in parse(sent, TYPE) if part.name == "a[]"]

    expected = [(head("c"), texts["c"].encode()), *((name % b"d", content) for content in files)]
    assert write(sent, TYPE, texts, kept) == body(*expected)
