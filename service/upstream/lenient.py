"""Reading JSON of Venice's member by member: a member that is not what it should be says nothing,
and takes no other along."""

import contextlib
import re
from collections.abc import Collection
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

ABSENT: Final = msgspec.Raw(b"null")
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Of a pair or alone: what stands in the texts does not matter where only numbers and names are
# read. An escaped backslash before it stays one.
SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
REPLACEMENT: Final = rb"\\ufffd"
MAX_DEEP_BYTES: Final = 256 * 1024
"""Of JSON that is nested too deeply for the decoder, more is not read: it is gone through token by
token."""
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]+|[\]}]+|[:,]', re.DOTALL)


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
                self._readers[field.name] = msgspec.json.Decoder(field.type)
        self._members: Any = msgspec.json.Decoder(
            msgspec.defstruct("Members", [(name, msgspec.Raw, ABSENT) for name in self._readers])
        )

    def decode(self, content: bytes | msgspec.Raw) -> T:
        """What the object says.

        :raises msgspec.DecodeError, UnicodeDecodeError, RecursionError: when it is no JSON object.
        """
        try:
            return self._decoder.decode(content)
        except UNREADABLE:
            members = self._raw_members(bytes(content))
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
            if len(content) > MAX_DEEP_BYTES:
                raise
            members = _deep_members(content, self._readers)
        return members


def _deep_members(content: bytes, names: Collection[str]) -> dict[str, bytes]:
    """The top-level members of these names, as they stand.

    :raises msgspec.DecodeError: when it is no object that ends.
    """
    members: dict[str, bytes] = {}
    depth, start, text = 0, 0, b""
    name = None
    for token in TOKEN.finditer(content):
        before, text = text, token.group()
        first = text[:1]
        is_closing = first in (b"}", b"]")
        is_end = (depth == 1 and first == b",") or (is_closing and len(text) >= depth)
        if is_end and name is not None:
            # Of several that close at once, the last is the object's own.
            members[name] = content[
                start : token.start() + (depth - 1 if is_closing else 0)
            ].strip()
            name = None
        if first in (b"{", b"["):
            depth += len(text)
        elif is_closing:
            depth -= len(text)
        elif depth == 1 and text == b":" and before.startswith(b'"'):
            name, start = before[1:-1].decode("utf-8", "replace"), token.end()
    if depth or not content.lstrip().startswith(b"{"):
        raise msgspec.DecodeError("no JSON object")
    return {name: raw for name, raw in members.items() if name in names}
