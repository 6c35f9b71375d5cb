"""Reads Venice's JSON member by member, so that one malformed member is ignored and the others are
read.

A member that a caller of this module cannot do without is marked :data:`NEEDED`. If it is
malformed, the error has its path.
"""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Generic, TypeVar, get_args, get_origin

import msgspec

from service.formats import surrogates
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
NEEDED: Final = msgspec.Meta(extra={"is_needed": True})
"""Marks a field of a struct as one that must be readable if it is there."""


def read_by(function: Callable[[Any], Any]) -> msgspec.Meta:
    """Mark a field as needed, and as one that ``function`` reads from a decoded value. It raises
    :class:`TypeError` with the rule."""
    return msgspec.Meta(extra={"is_needed": True, "read": function})


class MemberError(msgspec.ValidationError):
    """A needed member is malformed."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path} {rule}")
        self.path = path
        self.rule = rule

    def within(self, path: str) -> "MemberError":
        """The same error, seen from the object that has the member in ``path``."""
        separator = "" if self.path[:1] in ("", "[") else "."
        return MemberError(f"{path}{separator}{self.path}", self.rule)


def _with_path(error: Exception) -> MemberError:
    if isinstance(error, MemberError):
        return error
    rule = "is nested too deeply" if isinstance(error, RecursionError) else "has the wrong type"
    return MemberError("", rule)


def _unmarked(kind: Any) -> tuple[Any, dict[str, Any]]:
    """Return a field's type without its outer marks, and the marks."""
    marks: dict[str, Any] = {}
    for mark in getattr(kind, "__metadata__", ()):
        marks |= getattr(mark, "extra", None) or {}
    return (kind.__origin__ if marks else kind), marks


class _Value:
    """Reads a value of a plain type. A number may have a zero fraction. ``convert``, which
    translations use, takes a text for a number too; ``decode``, which the meter uses, does not."""

    def __init__(self, shape: Any) -> None:
        self._shape = shape
        self._decoder = msgspec.json.Decoder(shape)
        self._number_decoder = msgspec.json.Decoder(shape, strict=False)

    def decode(self, content: msgspec.Raw) -> Any:
        is_text = bytes(memoryview(content)[:1]) == b'"'
        return (self._decoder if is_text else self._number_decoder).decode(content)

    def convert(self, value: Any) -> Any:
        try:
            return surrogates.convert(value, self._shape)
        except msgspec.ValidationError:
            return surrogates.convert(value, self._shape, strict=False)


class _Custom:
    """Reads a value by a function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def decode(self, content: msgspec.Raw) -> Any:
        return self.convert(msgspec.json.decode(content))

    def convert(self, value: Any) -> Any:
        try:
            return self._function(value)
        except TypeError as error:
            raise MemberError("", str(error)) from None


class _Items:
    """Reads a list of structs. Nulls in it are left out. Any other item is needed."""

    def __init__(self, item: "Lenient[Any]") -> None:
        self._item = item

    def decode(self, content: msgspec.Raw) -> list[Any]:
        return self.convert(msgspec.json.decode(content))

    def convert(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise msgspec.ValidationError("has the wrong type")
        items = []
        for index, item in enumerate(value):
            if item is None:
                continue
            try:
                items.append(self._item.convert(item))
            except msgspec.ValidationError as error:
                raise _with_path(error).within(f"[{index}]") from None
        return items


class Lenient(Generic[T]):
    """Reads JSON objects into structs whose fields all have a default."""

    def __init__(self, shape: type[T]) -> None:
        self._shape = shape
        self._decoder = msgspec.json.Decoder(shape)
        self._readers: dict[str, Any] = {}
        self._needed: set[str] = set()
        for field in msgspec.structs.fields(shape):
            kind, marks = _unmarked(field.type)
            if marks.get("is_needed"):
                self._needed.add(field.name)
            read = marks.get("read")
            self._readers[field.name] = _Custom(read) if read else self._reader(kind)
        self._members: Any = msgspec.json.Decoder(
            msgspec.defstruct("Members", [(name, msgspec.Raw, ABSENT) for name in self._readers])
        )

    def _reader(self, kind: Any) -> Any:
        for part in (kind, *get_args(kind)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                return self if part is self._shape else Lenient(part)
            if get_origin(part) is list:
                (item,) = get_args(part)
                if isinstance(item, type) and issubclass(item, msgspec.Struct):
                    return _Items(Lenient(item))
        return _Value(kind)

    def decode(self, content: bytes | msgspec.Raw) -> T:
        """Decode the object.

        :raises msgspec.DecodeError, UnicodeDecodeError, RecursionError: when it is not an object.
        """
        try:
            return self._decoder.decode(content)
        except UNREADABLE:
            members = self._raw_members(bytes(content))
        return self._read(members)

    def convert(self, value: Any) -> T:
        """Read a decoded JSON value.

        :raises msgspec.ValidationError: when it is not an object.
        :raises MemberError: when a needed member is malformed.
        """
        try:
            return surrogates.convert(value, self._shape)
        except (msgspec.ValidationError, RecursionError):
            if not isinstance(value, dict):
                raise msgspec.ValidationError("has the wrong type") from None
        read = self._shape()
        for name, reader in self._readers.items():
            if (member := value.get(name)) is None:
                continue
            self._set(read, name, reader.convert, member)
        return read

    def _read(self, members: dict[str, Any]) -> T:
        read = self._shape()
        for name, raw in members.items():
            if raw is not ABSENT and bytes(raw) != b"null":
                self._set(read, name, self._readers[name].decode, raw)
        return read

    def _set(self, read: T, name: str, reader: Callable[[Any], Any], member: Any) -> None:
        try:
            setattr(read, name, reader(member))
        except UNREADABLE as error:
            if name in self._needed or isinstance(error, MemberError):
                raise _with_path(error).within(name) from None

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
