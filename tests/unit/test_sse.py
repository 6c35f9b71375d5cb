"""The reader of server-sent events: the same events however the bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.formats import sse
from service.formats.sse import EventReader

TOKEN = b'data: {"choices":[{"delta":{"content":"data: a"}}]}\n\n'
MAX_HELD_BYTES = 1024 * 1024

FIELDS = [b"data: a", b"data:b", b"data:  c", b"data", b"data:", b"data: d: e", b"data: [DONE]"]
ODD_BYTES = b"data: \xff\xc3\xa9 \xe2\x80\xa8 \x0b\x0c\x1c\x85"
IGNORED = [b": comment", b":", b"event: done", b"id: 1", b"dat", b"other", b" data: x", b"DATA: x"]
LINES = st.sampled_from([b"", b"", b"", *FIELDS, ODD_BYTES, *IGNORED])
STREAMS = st.tuples(
    st.sampled_from([b"", sse.BYTE_ORDER_MARK]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=25),
    st.sampled_from([b"", b"data: not ended", b"dat"]),
).map(lambda parts: parts[0] + b"".join(line + end for line, end in parts[1]) + parts[2])


def events_of(stream):
    """The data of the events, as the specification reads them: byte by byte, without the reader.
    An event is dispatched at the end of the stream, too."""
    lines, line, before = [], bytearray(), b""
    for byte in stream.removeprefix(sse.BYTE_ORDER_MARK):
        if byte in b"\r\n":
            if not (byte == ord("\n") and before == b"\r"):
                lines.append(bytes(line))
                line.clear()
        else:
            line.append(byte)
        before = bytes([byte])
    lines += [bytes(line), b""]
    events, data = [], []
    for line in lines:
        field, _, value = line.partition(b":")
        if line == b"":
            if b"\n".join(data):
                events.append(b"\n".join(data))
            data = []
        elif field == b"data":
            data.append(value[1:] if value[:1] == b" " else value)
    return events


def pieces_of(stream, cuts):
    """The stream, cut there."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def datas(content):
    """The data of the events that the reader's module finds."""
    return [data for event in sse.split(content) if (data := sse.data_of(event))]


def read(pieces):
    """The runs of whole events that a reader returns for the pieces."""
    reader = EventReader()
    return [*(reader.feed(piece) for piece in pieces), reader.end()]


@given(STREAMS, st.lists(st.integers(0, 150), max_size=30))
def test_any_cut_gives_the_events_of_the_specification(stream, cuts):
    """By all three ends of lines, also mixed, with a byte order mark, comments, data in several
    lines and an end without an empty line. No byte is lost or changed."""
    runs = read(pieces_of(stream, cuts))

    assert b"".join(runs) == stream
    assert [data for run in runs for data in datas(run)] == events_of(stream)
    assert datas(stream) == events_of(stream)


@given(STREAMS)
def test_each_byte_alone_gives_the_same(stream):
    """The smallest chunks there are."""
    runs = read(stream[at : at + 1] for at in range(len(stream)))

    assert [data for run in runs for data in datas(run)] == events_of(stream)


@given(STREAMS)
def test_events_from_the_end(stream):
    """A reader from the end finds the same events in reverse, and loses no byte."""
    backwards = [*sse.split_backwards(stream)][::-1]

    assert b"".join(backwards) == b"".join(sse.split(stream)) == stream
    assert [data for event in backwards if (data := sse.data_of(event))] == events_of(stream)


@given(st.lists(st.integers(0, 400), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_only_whole_events_pass(cuts, ending):
    """Every run ends with an event, and none is held back when it has ended."""
    stream = (TOKEN * 3 + b"data: [DONE]\n\n").replace(b"\n", ending)
    reader = EventReader()

    seen = b""
    for piece in pieces_of(stream, cuts):
        run = reader.feed(piece)
        seen += piece
        assert not run or run.endswith(2 * ending)
        assert len(reader.held) < len(TOKEN.replace(b"\n", ending))

    assert (seen, reader.held) == (stream, b"")


def test_an_endless_event_is_passed_on():
    """Memory for an event that does not end is bounded."""
    reader = EventReader(MAX_HELD_BYTES)
    chunk = b"x" * 65_536

    passed = sum(len(reader.feed(chunk)) for _ in range(100))

    assert 100 * len(chunk) - passed <= MAX_HELD_BYTES
    assert reader.feed(b"\n" + b"\ndata: a") != b""
    assert reader.end() == b"data: a"


def test_an_event_that_has_come_is_not_copied():
    """A chunk that ends with an event is passed on as the same object, also after an event that
    came in two chunks."""
    chunk, reader = TOKEN * 3, EventReader()

    assert reader.feed(chunk) is chunk
    assert reader.feed(TOKEN[:9]) == b""
    assert reader.feed(TOKEN[9:]) == TOKEN
    assert reader.feed(chunk) is chunk


def test_an_event_that_was_too_long_leaves_nothing_behind():
    """After an event that was passed on in pieces, only its own end counts as one."""
    reader = EventReader(9)
    assert reader.feed(b"data: a b\n") == b"data: a b\n"
    assert reader.feed(b"data: y\n\n") == b"data: y\n\n"

    assert reader.feed(b"\ndata: z") == b""


@pytest.mark.parametrize(
    ("event", "texts"),
    [
        (b'data: {"a":\ndata: 1}\n\n', [b'{"a":\n1}']),
        (b"data: {}\ndata: [DONE]\n\n", [b"{}", b"[DONE]"]),
        (b'data: {"a": 1}\r\ndata: {"b": \r\n\r\n', [b'{"a": 1}', b'{"b": ']),
        (b"data: {}\n\n", [b"{}"]),
        (b": comment\n\n", [b""]),
    ],
)
def test_each_line_may_be_an_event(event, texts):
    """Lines that are not one JSON value are texts of their own: the empty line may be missing."""
    assert sse.texts_of(event) == texts
    assert list(sse.texts(event + event)) == [text for text in texts + texts if text]


@given(st.lists(st.sampled_from([b"data", b":", b" ", b"x", b"\n", b"\r"]), max_size=12))
def test_the_texts_of_any_content_are_those_of_its_events(parts):
    """The usual form of an event, which is recognized at once, is read as any other."""
    content = b"data: x" + b"".join(parts) + b"\n\n"

    expected = [text for event in sse.split(content) for text in sse.texts_of(event) if text]
    assert list(sse.texts(content)) == expected


@given(st.lists(st.binary(max_size=20), max_size=8), st.integers(1, 60))
def test_the_end_of_the_held_event(pieces, size):
    """Its last bytes are those of the whole, however it arrived."""
    reader = EventReader()
    for piece in pieces:
        reader.feed(piece)

    assert reader.last_held(size) == reader.held[-size:]
