"""However a response is cut into pieces, and whatever its bytes are, the HTTP client behaves."""

import pytest
from http_wire import PARTS_OF_RESPONSES, play
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import UpstreamCut
from service.upstream.http.errors import InvalidResponse

TOKENS = st.text("abcXYZ-_09", min_size=1, max_size=8)
VALUES = st.text('abc =;,\t"é/', max_size=12)
FIELDS = st.lists(st.tuples(TOKENS.map("X-{}".format), VALUES), max_size=5)
BODIES = st.binary(max_size=300) | st.binary(min_size=1, max_size=40).map(lambda part: part * 3000)
INTERIM = b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n"


def lines(fields):
    """Return the lines of the fields."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode()


@st.composite
def responses(draw):
    """A valid response: its bytes, its status and body, how it ends, and whether it is kept."""
    body, status = draw(BODIES), draw(st.sampled_from([200, 201, 204, 304, 400, 500, 999]))
    is_bodiless = status in (204, 304)
    how = draw(st.sampled_from(["length", "chunks", "connection"]))
    is_last = draw(st.booleans())
    fields = draw(FIELDS) + ([("Connection", "close")] if is_last else [])
    if how == "length":
        framing, content = f"Content-Length: {len(body)}\r\n".encode(), body
    elif how == "connection":
        framing, content = b"", body
    else:
        framing, content, rest = b"Transfer-Encoding: chunked\r\n", b"", body
        while rest:
            size = draw(st.integers(1, len(rest)) | st.just(len(rest)))
            extension = draw(st.sampled_from([b"", b";a=b", b';a="b c"']))
            content += b"%x%b\r\n%b\r\n" % (size, extension, rest[:size])
            rest = rest[size:]
        content += b"0\r\n" + lines(draw(FIELDS)) + b"\r\n"
    head = f"HTTP/1.1 {status} Some Text\r\n".encode() + lines(fields) + framing + b"\r\n"
    interim = INTERIM * draw(st.integers(0, 3))
    is_kept = not is_last and (is_bodiless or how != "connection")
    if is_bodiless:
        body = content = b""
    return interim + head + content, status, body, is_kept, len(interim + head)


def cut(content, places):
    """Return the content in pieces, cut at these places."""
    places = sorted({place % (len(content) + 1) for place in places})
    bounds = zip([0, *places], [*places, len(content)], strict=True)
    return [content[begin:end] for begin, end in bounds if end > begin]


PLACES = st.lists(st.integers(0, 200_000), max_size=20)


@settings(max_examples=300, deadline=None)
@given(responses(), PLACES)
async def test_a_valid_response_in_any_pieces(response, places):
    """It has the same status and body, and its connection the same fate, however it is cut."""
    content, status, body, is_kept, _ = response

    assert await play(cut(content, places)) == (status, body, None, is_kept)


@settings(max_examples=200, deadline=None)
@given(responses(), PLACES, st.integers(0, 200_000))
async def test_a_response_that_breaks_off_anywhere(response, places, end):
    """Whatever is missing, the response is cut, never short, and its connection is not kept."""
    content, _, body, _, head_size = response
    part = content[: end % len(content)]

    _, received, error, is_kept = await play(cut(part, places))

    assert body.startswith(received)
    is_framed_by_end = b"Content-Length" not in content and b"Transfer-Encoding" not in content
    if is_framed_by_end and len(part) >= head_size:
        assert error is None
    else:
        assert (error, is_kept) == (UpstreamCut, False)


@settings(max_examples=200, deadline=None)
@given(responses(), PLACES, st.sampled_from([b"x", b"HTTP/1.1 200 OK\r\n", b"\0"]))
async def test_bytes_after_any_response(response, places, extra):
    """They never belong to it, and end its connection."""
    content, status, body, _, _ = response
    is_framed = b"Content-Length" in content or b"Transfer-Encoding" in content
    if not is_framed and status not in (204, 304):
        return
    got_status, received, error, is_kept = await play(cut(content + extra, places))

    assert not is_kept
    assert error is InvalidResponse or (got_status, received, error) == (status, body, None)


PARTS = st.sampled_from(PARTS_OF_RESPONSES)
ANYTHING = st.lists(PARTS | st.binary(max_size=4), max_size=14).map(b"".join)
MUTATED = st.tuples(responses(), st.integers(0, 200_000), PARTS | st.binary(max_size=3)).map(
    lambda made: made[0][0][: made[1] % 400] + made[2] + made[0][0][made[1] % 400 + 1 :]
)


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@settings(max_examples=500, deadline=None)
@given(content=ANYTHING | MUTATED | st.binary(max_size=60), places=PLACES)
async def test_any_bytes(method, content, places):
    """No bytes make the client hang, raise anything but its own errors, or keep a connection on
    which bytes are left."""
    await play(cut(content, places), method)
