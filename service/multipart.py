"""Bodies of type ``multipart/form-data``: what their fields are called and how long they are."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from service.errors import ClientError

BOUNDARY: Final = re.compile(
    r'boundary=(?:"([ !#-~]{1,70})"|([!#-:<-~]{1,70}))(?:[\s;]|$)', re.IGNORECASE
)
NAME: Final = re.compile(rb'[;\s]name="([^"\r\n]*)"', re.IGNORECASE)
FILENAME: Final = re.compile(rb"[;\s]filename\*?=", re.IGNORECASE)
MOST_PARTS: Final = 100
TEXT_BYTES: Final = 65_536


class Part(NamedTuple):
    """A field. ``text`` is its value; None for a file, or for what is too long for a text."""

    name: str
    length_bytes: int
    text: str | None
    start: int
    """Where its value begins in the body."""
    head: bytes
    """Its headers, without the empty line after them."""


def is_multipart(content_type: str) -> bool:
    """Whether a body of this type has parts."""
    return content_type.strip().lower().startswith("multipart/form-data")


def parse(content: bytes, content_type: str) -> list[Part]:
    """The parts in the order they stand (RFC 7578); nothing of a file is copied.

    :raises ClientError: when it is no such body, or has too many parts.
    """
    delimiter = _delimiter(content_type)
    parts: list[Part] = []
    start = content.find(delimiter)
    while start != -1:
        start += len(delimiter)
        if content[start : start + 2] == b"--":
            return parts
        end = content.find(b"\r\n" + delimiter, start)
        head_end = content.find(b"\r\n\r\n", start)
        if end == -1 or not 0 <= head_end <= end:
            break
        parts.append(_part(content, content[start:head_end], head_end + 4, end))
        if len(parts) > MOST_PARTS:
            raise ClientError(f"The body has more than {MOST_PARTS} parts.")
        start = end + 2
    raise ClientError("The multipart body ends before its last boundary.")


def set_texts(content: bytes, content_type: str, texts: Mapping[str, str]) -> bytes:
    """The body with other values for the fields of these names, every other byte as it was."""
    pieces, kept_from = [], 0
    for part in parse(content, content_type):
        if part.text is not None and part.name in texts:
            pieces += [content[kept_from : part.start], texts[part.name].encode()]
            kept_from = part.start + part.length_bytes
    return b"".join([*pieces, content[kept_from:]])


def write(
    content: bytes, content_type: str, texts: Mapping[str, str], files: Iterable[tuple[str, Part]]
) -> bytes:
    """Another body of the same type: texts, and files of this one under the names that are given.
    The texts may hold nothing that this one could not."""
    delimiter, view = _delimiter(content_type), memoryview(content)
    pieces: list[bytes | memoryview] = []
    for name, text in texts.items():
        head = b'Content-Disposition: form-data; name="%b"' % name.encode()
        pieces += [delimiter, b"\r\n", head, b"\r\n\r\n", text.encode(), b"\r\n"]
    for name, part in files:
        value = view[part.start : part.start + part.length_bytes]
        pieces += [delimiter, b"\r\n", _renamed(part.head, name), b"\r\n\r\n", value, b"\r\n"]
    return b"".join([*pieces, delimiter, b"--\r\n"])


def _renamed(head: bytes, name: str) -> bytes:
    match = NAME.search(head)
    assert match is not None  # noqa: S101 - it was found when the part was read
    return head[: match.start(1)] + name.encode() + head[match.end(1) :]


def _delimiter(content_type: str) -> bytes:
    match = BOUNDARY.search(content_type)
    if match is None or not match[0].isascii():
        raise ClientError("Content-Type: multipart/form-data needs a boundary, in ASCII.")
    return b"--" + (match[1] or match[2]).encode()


def _part(content: bytes, head: bytes, start: int, end: int) -> Part:
    name = NAME.search(head)
    if name is None:
        raise ClientError("A part of the multipart body has no name.")
    # A body that has nothing begins where its head ends.
    length_bytes = max(0, end - start)
    text = None
    if not FILENAME.search(head) and length_bytes <= TEXT_BYTES:
        text = content[start:end].decode(errors="replace")
    return Part(name[1].decode(errors="replace"), length_bytes, text, start, head.lstrip())
