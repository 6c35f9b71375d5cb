"""Multipart bodies: the names, lengths and texts of their fields."""

import contextlib
import time

import httpx
import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ClientError
from service.formats.multipart import (
    HEADER,
    MAX_HEAD_BYTES,
    MAX_PARTS,
    TEXT_BYTES,
    is_multipart,
    parse,
    set_texts,
    write,
)

TYPE = "multipart/form-data; boundary=b"


def head(name, more=""):
    """Return the head of a part."""
    return f'Content-Disposition: form-data; name="{name}"{more}'.encode()


def parts_of(content, content_type=TYPE):
    """Return name, length and text of each part."""
    return [(part.name, part.length_bytes, part.text) for part in parse(content, content_type)]


def body(*parts, end=b"--b--\r\n"):
    """Return heads and contents between boundaries."""
    written = (b"--b\r\n%b\r\n\r\n%b\r\n" % part for part in parts)
    return b"".join(written) + end


CONTENT = st.binary(max_size=60).filter(lambda content: b"--b" not in content)


@given(st.lists(st.tuples(st.sampled_from("abc"), CONTENT, st.booleans())))
def test_parts_are_read_as_written(fields):
    """Names and lengths are those of the fields, and texts those of fields that are no file."""
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
def test_spellings_of_the_boundary(content_type):
    """The boundary may be quoted or not and may be in any position."""
    assert is_multipart(content_type)
    assert parts_of(body((head("a"), b"1")), content_type) == [("a", 1, "1")]


def test_a_long_text_is_not_kept():
    """A field that is too long for a text is measured without one."""
    long = b"x" * (TEXT_BYTES + 1)

    assert parts_of(body((head("a"), long))) == [("a", len(long), None)]


def test_more_headers_and_a_preamble():
    """A preamble and a part's other headers are ignored."""
    odd = b'Content-Type: a/b; name="x"\r\ncontent-disposition: form-data; filename*=x; name="a"'

    assert parts_of(b"ignore me\r\n" + body((odd, b"1"))) == [("a", 1, None)]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (body((head("a"), b"1")), "multipart/form-data"),
        (body((head("a"), b"1")), "multipart/form-data; boundary=other"),
        (body((head("a"), b"1")), "multipart/form-data; boundary=b\udcff"),
        (body((head("a"), b"1"), end=b""), TYPE),
        (body((b"Content-Disposition: form-data", b"1")), TYPE),
        (body(*[(head("a"), b"")] * (MAX_PARTS + 1)), TYPE),
        (b"--b\r\nno end of a head\r\n--b--", TYPE),
        (b"--b\r\n" + head("a") + b"\r\n\r\n--b--", TYPE),
        (b"", TYPE),
    ],
)
def test_invalid_forms(content, content_type):
    """An invalid form is a clear error."""
    with pytest.raises(ClientError):
        parse(content, content_type)


@given(st.binary(max_size=200))
def test_any_bytes_are_handled(content):
    """Any bytes are parsed or refused with the error for forms."""
    for tried in (content, b"--b" + content, b"--b\r\n" + content + b"\r\n--b--"):
        with contextlib.suppress(ClientError):
            assert all(part.length_bytes >= 0 for part in parse(tried, TYPE))


@given(st.lists(st.tuples(st.sampled_from("abc"), CONTENT, st.booleans())))
def test_texts_are_replaced_in_place(fields):
    """Every text field of the name is replaced in place, and all other bytes stay."""

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
    """A boundary with bytes outside ASCII is refused, because it cannot be encoded as a header."""
    with pytest.raises(ClientError, match="needs exactly one boundary"):
        parse(b"--b--", f"multipart/form-data; boundary={boundary}")


@given(st.lists(CONTENT, min_size=1, max_size=4), CONTENT)
def test_another_body_is_written(files, text):
    """A new body has the given texts and the files under another name with their bytes and
    headers."""
    name = b'Content-Type: image/png\r\nContent-Disposition: form-data; filename="name"; name="%b"'
    sent = body(*((name % b"a[]", content) for content in files), (head("b"), b"gone"))
    texts = {"c": text.decode(errors="replace")}
    kept = [("d", part) for part in parse(sent, TYPE) if part.name == "a[]"]

    expected = [(head("c"), texts["c"].encode()), *((name % b"d", content) for content in files)]
    assert write(sent, TYPE, texts, kept) == body(*expected)


@pytest.mark.parametrize(
    "more",
    [
        "xboundary=aaa; boundary=b; boundary=aaa",
        'x="; boundary=aaa"; boundary=b; BOUNDARY=b',
        "boundary=b; boundary*=utf-8''aaa",
        "boundary*0=a; boundary*1=aa",
        "boundary*0=a; boundary*1=aa; boundary=b",
        'boundary="b\\"; x="',
        'boundary="a\\a"',
        "boundary=b c",
        "boundary=b, multipart/form-data",
        "boundary = b",
        "boundary=b;",
        "boundary=b; x",
        "charset",
    ],
)
def test_parameters_occur_once(more):
    """A boundary or any other parameter that occurs twice is refused, because parsers differ in
    which one they take."""
    for boundary in (b"b", b"aaa"):
        content = body((head("a"), b"1")).replace(b"--b", b"--" + boundary)
        with pytest.raises(ClientError, match="needs exactly one boundary") as refused:
            parse(content, f"multipart/form-data; {more}")
        assert refused.value.param == "Content-Type"


def test_another_parameter_is_not_the_boundary():
    """A parameter whose name ends in boundary, or whose text has one, is not the boundary."""
    for more in ("xboundary=aaa; boundary=b", 'x="; boundary=aaa"; boundary=b'):
        assert parts_of(body((head("a"), b"1")), f"multipart/form-data; {more}") == [("a", 1, "1")]


@pytest.mark.parametrize("content_type", ["multipart/form-datax; boundary=b", "multipart/mixed"])
def test_another_type_is_no_form(content_type):
    """A content type that only begins like multipart/form-data is no form."""
    assert not is_multipart(content_type)


NAMED = b'Content-Disposition: form-data; name="a"'


@pytest.mark.parametrize(
    "odd",
    [
        b'X: a; name="a"',
        NAMED + b"\r\n" + NAMED,
        NAMED + b'\r\ncontent-disposition: form-data; name="b"',
        b'Content-Disposition : form-data; name="a"',
        b'Content-Disposition: form-data;\r\n name="a"',
        b'X: y\nContent-Disposition: form-data; name="b"\r\n' + NAMED,
        NAMED + b"\r\nno header",
        NAMED + b'; name="b"',
        NAMED + b"; name*=utf-8''b",
        NAMED + b"; filename*0=x",
        NAMED + b'; filename="x"; FileName="y"',
        NAMED + b"; x=y",
        NAMED + b";",
        NAMED + b' filename="x"',
        b'Content-Disposition: attachment; name="a"',
        b'Content-Disposition: form-data; name=""',
        b'Content-Disposition: form-data; name="a\\"b"',
        b'Content-Disposition: form-data; name="a\\b"',
        b'Content-Disposition: form-data; filename="x\\"; name="a"; x="y"',
        b'Content-Disposition: form-data; filename="x\\"; name="a"',
        b'Content-Disposition: form-data; name="%61"',
        b'Content-Disposition: form-data; name="a%2D%6d"',
        NAMED + b"\r\nContent-Transfer-Encoding: base64",
        NAMED + b"\r\nContent-Type: text/plain; charset=utf-7",
        NAMED + b'\r\nContent-Type: text/plain; name="x"',
        NAMED + b"\r\nContent-Type: application/octet-stream",
    ],
)
def test_ambiguous_parts_are_refused(odd):
    """A part whose name, kind or value could be read in two ways is refused."""
    with pytest.raises(ClientError):
        parse(body((odd, b"1")), TYPE)


def test_a_disposition_decides_what_is_a_file():
    """Only Content-Disposition decides whether a part is a file, not another header or a quoted
    text."""
    other = b'X: a; filename="x"; name="b"\r\n' + NAMED
    quoted = b'Content-Disposition: form-data; name="a; filename=x"'

    assert parts_of(body((other, b"1"), (quoted, b"2"))) == [
        ("a", 1, "1"),
        ("a; filename=x", 1, "2"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        body((NAMED, b"1")).replace(b"--b\r\n", b"--bc\r\n", 1),
        body((NAMED, b"1"), end=b"--b-\r\n"),
        body((NAMED, b"1"), end=b"--b--x\r\n"),
        body((NAMED, b"1"), end=b"--b \t x\r\n--b--"),
        body((NAMED, b"1\r\n--bc\r\n" + NAMED + b"\r\n\r\n2")),
        body((NAMED, b"1\n--b\r\n" + NAMED + b"\r\n\r\n2")),
        b"x" + body((NAMED, b"1")),
        b"x\n" + body((NAMED, b"1")),
    ],
)
def test_a_boundary_is_a_line(content):
    """Only a whole line is a boundary; a line that merely begins like it is refused."""
    with pytest.raises(ClientError, match="boundary"):
        parse(content, TYPE)


def test_a_boundary_may_be_padded():
    """A boundary may be followed by spaces and tabs, as the RFC allows."""
    for end in (b"--b--", b"--b-- \t\r\nignored"):
        padded = body((NAMED, b"1"), end=end).replace(b"--b\r\n", b"--b \t\r\n")
        assert parts_of(padded) == [("a", 1, "1")]


FILE = ("x y;.bin", b"\x00", "application/octet-stream")


def of_httpx(name):
    """Return a form as httpx writes it."""
    made = httpx.Request("POST", "http://x", data={name: "1"}, files={"file": FILE})
    return made.read(), made.headers["Content-Type"]


def of_urllib3(name):
    """Return a form as urllib3, and so requests, writes it."""
    return urllib3.encode_multipart_formdata({name: "1", "file": FILE})


def of_browsers(name):
    """Return a form as the HTML standard specifies it, which undici follows."""
    for character, written in (('"', "%22"), ("\r", "%0D"), ("\n", "%0A")):
        name = name.replace(character, written)
    file = head("file", '; filename="x y;.bin"') + b"\r\nContent-Type: application/octet-stream"
    boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
    content = body((head(name), b"1"), (file, b"\x00")).replace(b"--b", b"--" + boundary.encode())
    return content, f"multipart/form-data; boundary={boundary}"


def of_dotnet(name):
    """Return a form as .NET writes it: quoted only where necessary, and with names in UTF-8."""
    disposition = "form-data; name=file; filename=\"x y;.bin\"; filename*=utf-8''x%20y%3B.bin"
    text = b"Content-Type: text/plain; charset=utf-8\r\n" + head(name)
    content = body((text, b"1"), (b"Content-Disposition: " + disposition.encode(), b"\x00"))
    return content, 'multipart/form-data; boundary="b"'


@pytest.mark.parametrize("name", ["model", "images[]", "a b;c=d", "\u00e9"])
@pytest.mark.parametrize("made", [of_httpx, of_urllib3, of_browsers, of_dotnet])
def test_forms_of_real_clients(made, name):
    """The names in real clients' forms are read exactly, and only a filename makes a file."""
    assert parts_of(*made(name)) == [(name, 1, "1"), ("file", 1, None)]


@pytest.mark.parametrize("made", [of_httpx, of_urllib3, of_browsers])
def test_quotes_in_names_are_read_as_written(made):
    """Quotes in names are read in the one way that clients escape them."""
    assert parts_of(*made('a"; name="b'))[0] == ('a"; name="b', 1, "1")


@pytest.mark.parametrize(
    "head_of_part",
    [
        head("a" * MAX_HEAD_BYTES),
        head("%22" * MAX_HEAD_BYTES),
        head("\\\\a" * MAX_HEAD_BYTES),
        head("a", more="".join(f";x{number}=1" for number in range(MAX_HEAD_BYTES))),
        b"\r\n".join([head("a"), *(b"x-%d: 1" % number for number in range(MAX_HEAD_BYTES))]),
        head("a", more=" " * MAX_HEAD_BYTES),
    ],
)
def test_the_headers_of_a_part_are_short(head_of_part):
    """A part with long headers is refused before they are parsed."""
    with pytest.raises(ClientError, match="bytes of headers"):
        parse(body((head_of_part, b"")), TYPE)


def test_a_header_of_spaces_is_read_once():
    """A header of many spaces is parsed in linear time."""
    line = "a:" + " " * 200_000 + "\x01"
    started_at = time.process_time()
    assert HEADER.fullmatch(line) is None
    assert time.process_time() - started_at < 1
