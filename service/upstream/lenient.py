"""Decodes Venice's JSON member by member, so that one malformed member is ignored and the others
are read."""

import contextlib
import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from service.formats.sse import BYTE_ORDER_MARK

T = TypeVar("T", bound=msgspec.Struct)

ABSENT: Final = msgspec.Raw(b"null")
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Any half of a surrogate pair. Only numbers and names are read, so the texts do not matter. The
# replacement keeps an escaped backslash before it valid.
SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
REPLACEMENT: Final = rb"\\ufffd"
MAX_TOKENS: Final = 100_000
"""JSON that the decoder refuses is read token by token, up to this many."""
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+|[:,]', re.DOTALL)


class _Value:
    """Decodes a value of a plain type. A whole number may be written with a zero fraction."""

    def __init__(self, shape: Any) -> None:
        self._decoder = msgspec.json.Decoder(shape)
        self._number_decoder = msgspec.json.Decoder(shape, strict=False)

    def decode(self, content: msgspec.Raw) -> Any:
        is_text = bytes(memoryview(content)[:1]) == b'"'
        return (self._decoder if is_text else self._number_decoder).decode(content)


class Lenient(Generic[T]):
    """Decodes JSON objects into structs whose fields all have a default."""

    def __init__(self, shape: type[T]) -> None:
        self._shape = shape
        self._decoder = msgspec.json.Decoder(shape)
        self._readers: dict[str, Any] = {}
        for field in msgspec.structs.fields(shape):
            parts = getattr(field.type, "__args__", ())
            structs = [p for p in parts if isinstance(p, type) and issubclass(p, msgspec.Struct)]
            if structs == [shape]:
                self._readers[field.name] = self
            elif structs:
                self._readers[field.name] = Lenient(structs[0])
            else:
                self._readers[field.name] = _Value(field.type)
        self._members: Any = msgspec.json.Decoder(
            msgspec.defstruct("Members", [(name, msgspec.Raw, ABSENT) for name in self._readers])
        )

    def decode(self, content: bytes | msgspec.Raw) -> T:
        """Decode the object.

        :raises msgspec.DecodeError, UnicodeDecodeError, RecursionError: when it is not an object.
        """
        try:
            return self._decoder.decode(content)
        except UNREADABLE:
            members = self._raw_members(bytes(content))
        return self._read(members)

    def _read(self, members: dict[str, Any]) -> T:
        read = self._shape()
        for name, raw in members.items():
            if raw is not ABSENT and bytes(raw) != b"null":
                with contextlib.suppress(*UNREADABLE):
                    setattr(read, name, self._readers[name].decode(raw))
        return read

    def _raw_members(self, content: bytes) -> dict[str, Any]:
        content = content.removeprefix(BYTE_ORDER_MARK)
        if b"\\u" in content:
            content = SURROGATE.sub(REPLACEMENT, content)
        try:
            members: dict[str, Any] = msgspec.structs.asdict(self._members.decode(content))
        except RecursionError:
            members, end = _first_object(content, self._readers)
            if content[end:].strip():
                raise
        return members

    def decode_first(self, content: bytes) -> T:
        """Decode the object at the start of the content, whatever follows it.

        :raises msgspec.DecodeError: when the content does not start with an object.
        """
        members, _ = _first_object(content, self._readers)
        return self._read(members)


def raw_members(content: bytes, names: Sequence[str]) -> list[bytes]:
    """Return the members of a JSON object by these names, byte for byte; ``null`` for each that is
    missing.

    :raises msgspec.DecodeError: when there is no object, or it has more than ``MAX_TOKENS``.
    """
    members, _ = _first_object(content, names)
    return [members.get(name, b"null") for name in names]


def _first_object(content: bytes, names: Collection[str]) -> tuple[dict[str, bytes], int]:
    """Return the top-level members of these names, byte for byte, and where the object ends.

    :raises msgspec.DecodeError: when there is no object, or it has more than ``MAX_TOKENS``.
    """
    if not content.lstrip().startswith(b"{"):
        raise msgspec.DecodeError("no JSON object")
    members: dict[str, bytes] = {}
    depth, start, text = 0, 0, b""
    name = None
    for token in itertools.islice(TOKEN.finditer(content), MAX_TOKENS):
        before, text = text, token.group()
        first = text[:1]
        is_closing = first in (b"}", b"]")
        is_end = is_closing and len(text) >= depth
        if name is not None and (is_end or (depth == 1 and first == b",")):
            # If several brackets close at once, the last is the object's own.
            members[name] = content[start : token.start() + is_end * (depth - 1)].strip()
            name = None
        if is_end:
            return {n: raw for n, raw in members.items() if n in names}, token.start() + depth
        if first in (b"{", b"["):
            depth += len(text)
        elif is_closing:
            depth -= len(text)
        elif depth == 1 and text == b":" and before.startswith(b'"'):
            name, start = before[1:-1].decode("utf-8", "replace"), token.end()
    raise msgspec.DecodeError("the JSON object does not end")
