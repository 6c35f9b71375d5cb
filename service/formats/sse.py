"""Server-sent events: the one reader of streams.

It follows https://html.spec.whatwg.org/multipage/server-sent-events.html: a line ends with LF, CRLF
or CR, an empty line ends an event, and several lines of data are one text. It is more tolerant in
two ways: an event counts although the stream ends before its empty line, and a byte order mark is
ignored before any field, not only at the start of the stream.

Bytes are cut into events, never changed, so a stream can be passed on as it came.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

DONE: Final = b"[DONE]"
"""The data of the last event in the streams of OpenAI's API and Venice's."""
DATA: Final = b"data:"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
LF: Final = b"\n"
CR: Final = b"\r"
EMPTY_LINE: Final = b"\n\n"
"""How an event ends in a stream without carriage returns."""
EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\n\r\n", b"\n\r")
ANY_EMPTY_LINE: Final = re.compile(rb"\n\n|\r\r|\n\r\n?")
ONE_LINE: Final = re.compile(rb"data: ([^\r\n]+)\n\n")
"""An event as most come: of one line, and alone."""
SEAM_BYTES: Final = 2
"""The longest beginning of an event's end."""


class EventReader:
    """Cuts a stream that arrives in chunks into runs of whole events.

    Memory is bounded by ``max_held_bytes``, if set: a longer event is passed on in pieces.
    """

    def __init__(self, max_held_bytes: int | None = None) -> None:
        self._max_held_bytes = max_held_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._seam = b""
        """The last bytes of the event that has begun: the end of an event may lie across chunks."""

    @property
    def held(self) -> bytes:
        """The bytes of the event that has begun and not ended."""
        return b"".join(self._held)

    def last_held(self, max_bytes: int) -> bytes:
        """The last bytes of the event that has begun and not ended, without copying all of it."""
        pieces: list[bytes] = []
        missing = max_bytes
        for piece in reversed(self._held):
            if missing <= 0:
                break
            pieces.append(piece[-missing:])
            missing -= len(piece)
        return b"".join(reversed(pieces))

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, and return all whole events that were not returned before."""
        if chunk.endswith(EMPTY_LINE) and not self._held:
            # Almost always the chunk is whole events.
            self._seam = b""
            return chunk
        # Held bytes were searched when they came, so only the seam is searched again.
        seen = self._seam + chunk
        end = _last_end(seen) if CR in seen else seen.rfind(EMPTY_LINE) + len(EMPTY_LINE)
        if end < len(EMPTY_LINE):
            return self._hold(chunk, seen[-SEAM_BYTES:])
        end -= len(self._seam)
        events = b"".join([*self._held, chunk[:end]])
        begun = chunk[end:]
        self._held, self._held_bytes = [begun] if begun else [], len(begun)
        self._seam = begun[-SEAM_BYTES:]
        return events

    def end(self) -> bytes:
        """Return what is left when the stream has ended: an event without its empty line."""
        left = self.held
        self._held, self._held_bytes, self._seam = [], 0, b""
        return left

    def _hold(self, chunk: bytes, seam: bytes) -> bytes:
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        passed = b""
        if self._max_held_bytes is not None and self._held_bytes > self._max_held_bytes:
            passed = self.end()
        self._seam = seam
        return passed


def _last_end(content: bytes) -> int:
    """Where the last whole event ends, whichever way lines end; below 2 if none ends."""
    ends = [content.rfind(EMPTY_LINE) + 2, content.rfind(b"\r\r") + 2]
    at = content.rfind(b"\n\r")
    if at == len(content) - 2:
        # The line may end with CRLF, whose LF is still to come.
        at = content.rfind(b"\n\r", 0, at)
    if at != -1:
        ends.append(at + 2 + content.startswith(LF, at + 2))
    return max(ends)


def split(content: bytes) -> Iterator[bytes]:
    """The events in ``content`` byte for byte; the last may lack its empty line."""
    start = 0
    for empty_line in ANY_EMPTY_LINE.finditer(content):
        end = empty_line.end()
        yield content[start:end]
        start = end
    if start < len(content):
        yield content[start:]


def data_of(event: bytes) -> bytes:
    """The data of one event, its lines joined by LF; empty for a comment."""
    lines = []
    for line in event.splitlines():
        field = line.removeprefix(BYTE_ORDER_MARK)
        if field.startswith(DATA):
            lines.append(field[len(DATA) :].removeprefix(b" "))
        elif field == DATA[:-1]:
            lines.append(b"")
    return LF.join(lines)


def texts_of(event: bytes) -> list[bytes]:
    """The texts of one event: its data, or each line of data if the lines are not one JSON value.

    Some streams lack the empty line between events, so several events arrive as one.
    """
    data = data_of(event)
    return [data] if LF not in data or _is_json(data) else data.split(LF)


def texts(content: bytes) -> Iterable[bytes]:
    """The texts of all events in ``content``. Events without data are left out."""
    if (usual := ONE_LINE.fullmatch(content)) is not None:
        return (usual[1],)
    return (text for event in split(content) for text in texts_of(event) if text)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def split_backwards(content: bytes) -> Iterator[bytes]:
    """The events of :func:`split`, the last first. As a rule only those are looked for that are
    asked for."""
    if CR in content:
        yield from reversed(list(split(content)))
        return
    end = len(content)
    while end > 0:
        before = content.rfind(EMPTY_LINE, 0, end - 1)
        start = before + len(EMPTY_LINE) if before != -1 else 0
        yield content[start:end]
        end = start
