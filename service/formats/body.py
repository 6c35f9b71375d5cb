"""Reads JSON bodies once, with errors that name the field, and edits them without re-encoding.

Venice reads the same bytes with a parser of its own, and both must read the same. So ``read``
refuses an object that has a member twice, however the name is spelled. It also refuses a body that
takes long to read for its size. Every step over the bytes of a body is compiled code.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from service.errors import ClientError, PayloadTooLarge

T = TypeVar("T")

MAX_NAMED_DUPLICATE_BYTES: Final = 1024 * 1024
"""A duplicate member of a larger body is refused without its name, which is slow to find."""
MAX_FAULT_CHARACTERS: Final = 1000
AT_FIELD: Final = re.compile(
    r"^(?P<rule>.*?)(?: - at (?:`key` in )?`\$\.?(?P<field>.*)`)?$", re.DOTALL
)
FIELD_IN_RULE: Final = re.compile(r"field `(?P<field>[^`]+)`")
NO_BACKSLASH: Final = re.compile(rb"[^\\]", re.DOTALL)
SPACES: Final = b" \t\r\n"
SPACE: Final = re.compile(rb"[ \t\r\n]*")
NAME: Final = re.compile(
    rb'[ \t\r\n]*(?P<name>"(?:[^"\\]++|\\.)*+")[ \t\r\n]*:[ \t\r\n]*', re.DOTALL
)
HIGH_HALF: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
LOW_HALF: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
LONE_HALF: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|(?<!%b\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
    % (LOW_HALF, HIGH_HALF)
)
"""Half of a surrogate pair, which JavaScript writes for a text that was cut within a character.
Both alternatives start with the same bytes, so the engine can search for these."""
REPLACEMENT: Final = rb"\\ufffd"
ESCAPED_BACKSLASH: Final = b"\\\\"
ESCAPED_QUOTE: Final = b'\\"'
DIGITS_AS_ZERO: Final = bytes.maketrans(b"123456789", b"000000000")
MANY_DIGITS: Final = b"0" * 17
"""The digits of the shortest number whose encoding has an exponent, and may be longer for it."""
AS_ROUND: Final = bytes.maketrans(b"[]{}", b"()()")
NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
SLICE_BYTES: Final = 64 * 1024
UNCOUNTED_BYTES: Final = 16 * 1024
"""A body up to this size is read in a few milliseconds, whatever it contains."""
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
NO_JSON: Final = b"\0\0"
"""As long as an escaped backslash, and never part of JSON."""


class Limits(NamedTuple):
    """How much a body may contain. At these limits no single step of reading takes longer than
    about 100 ms, and the decoded values take less than 100 MB."""

    values: int = 250_000
    """Members and items of all objects and lists."""
    members: int = 1_000
    """Members of the body itself."""
    escapes: int = 4_000_000
    """Backslashes in texts."""
    exponents: int = 4_000
    """Numbers with an exponent, each of which takes up to 25 µs near the ends of the range."""
    digits: int = 50
    """Digits of one number in a row. The time to decode them grows with their square."""
    depth: int = 200
    """Objects and lists within each other. Whatever reads or translates the body may recurse, and
    has a stack of about 1,000 frames."""
    half_pairs: int = 200_000
    """Escaped halves of surrogate pairs, in a body with a lone half."""


LIMITS: Final = Limits()


class _Span(NamedTuple):
    """The position of a member, with the white space around it."""

    start: int
    value_start: int
    value_end: int
    end: int


class Document(msgspec.Struct, eq=False):
    """A JSON object as bytes. Its own members can be replaced and removed, and all other bytes stay
    as they are."""

    content: bytes
    names: frozenset[str]
    spans: dict[str, _Span] | None = None
    """The position of each member, once it was asked for."""

    def __repr__(self) -> str:
        return f"<Document of {len(self.content)} bytes>"

    def locate(self) -> dict[str, _Span]:
        """The position of each member. The result is cached."""
        if self.spans is None:
            try:
                self.spans = _spans(self.content)
            except msgspec.DecodeError:
                self.spans = _spans(_without_lone_halves(self.content))
        return self.spans

    def edited(self, changes: Mapping[str, Any]) -> "Document":
        """Return the object with ``changes`` made. A member that exists is replaced in place, or
        removed if its new value is ``UNSET``. A new member goes to the front."""
        added = {}
        is_replaced = False
        for name, value in changes.items():
            if name in self.names:
                is_replaced = True
            elif value is not msgspec.UNSET:
                added[name] = value
        if not is_replaced:
            return self._with_front(added) if added else self
        pieces = _Pieces(self.content)
        spans = self.locate()
        pieces.copy(0, self.content.index(b"{") + 1)
        for name, value in added.items():
            pieces.add_member(name, b"%b:" % msgspec.json.encode(name), value)
        for name, span in spans.items():
            value = changes.get(name, _KEPT)
            if value is _KEPT:
                pieces.keep_member(name, span)
            elif value is not msgspec.UNSET:
                start = self.content[span.start : span.value_start]
                pieces.add_member(name, start, value, self.content[span.value_end : span.end])
        pieces.copy(max((span.end for span in spans.values()), default=pieces.read_to))
        return pieces.document()

    def _with_front(self, added: Mapping[str, Any]) -> "Document":
        """Add new members, which does not need the positions of the others."""
        start = self.content.index(b"{") + 1
        inner = msgspec.json.encode(added)[1:-1] + (b"," if self.names else b"")
        # One join, since copying a large body for each piece is slow.
        content = b"".join([self.content[:start], inner, memoryview(self.content)[start:]])
        return Document(content, self.names | added.keys())


class JsonBody(msgspec.Struct, eq=False):
    """A body that was read: its value and its bytes.

    ``text_bytes`` is its length without escapes and white space, so that a text has the same length
    however it was written.
    """

    document: Document
    value: Any
    text_bytes: int

    def __repr__(self) -> str:
        return f"<JsonBody {self.document!r}>"

    @property
    def members(self) -> dict[str, Any]:
        """The members of the object.

        :raises ClientError: when the body is not an object.
        """
        if isinstance(self.value, dict):
            return self.value
        return convert(self.value, dict[str, Any])

    def edited(self, changes: Mapping[str, Any]) -> "JsonBody":
        """Return the body with ``changes`` made as in :meth:`Document.edited`."""
        document = self.document.edited(changes)
        if document is self.document:
            return self
        value = {**self.value, **changes}
        value = {name: what for name, what in value.items() if what is not msgspec.UNSET}
        return JsonBody(document, value, len(msgspec.json.encode(value)))


def read(content: bytes, limits: Limits = LIMITS) -> JsonBody:
    """Read a JSON body.

    :raises ClientError: when it is not valid JSON, or has a member twice.
    :raises PayloadTooLarge: when it contains more than ``limits`` allow.
    """
    is_counted = len(content) > UNCOUNTED_BYTES
    outside = _outside_strings(content, limits) if is_counted else content
    if is_counted:
        _check_counts(content, outside, limits)
    try:
        value = msgspec.json.decode(content)
    except UNREADABLE:
        value = _decode_repaired(content)
    if outside.count(b"[") + outside.count(b"{") > limits.depth:
        _check_depth(outside if is_counted else _outside_strings(content, limits), limits)
    # The decoder keeps one of two members of the same name, so the value has fewer of them.
    if is_counted:
        if outside.count(b":") != _count_members(value):
            raise _duplicate(content)
        text_bytes = _length_of_text(content, outside, value)
    else:
        canonical = msgspec.json.encode(value)
        text_bytes = len(canonical)
        if content.count(b'"') != canonical.count(b'"') or b"\\" in content:
            _check_strings(content, canonical)
    names = frozenset(value) if isinstance(value, dict) else frozenset()
    if len(names) > limits.members:
        raise PayloadTooLarge(f"The body has more than {limits.members:,} members.")
    return JsonBody(Document(content, names), value, text_bytes)


def decode(content: bytes, shape: type[T], limits: Limits = LIMITS) -> T:
    """Read a JSON body as ``shape``, whose parts may be ``msgspec.Raw``: the bytes as they came.

    :raises ClientError: naming the field and the rule.
    """
    read(content, limits)
    try:
        try:
            return msgspec.json.decode(content, type=shape)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.json.decode(_without_lone_halves(content), type=shape)
    except msgspec.ValidationError as error:
        raise at_fault(str(error)) from None


def convert(value: Any, shape: type[T]) -> T:
    """Convert a decoded value to ``shape``.

    :raises ClientError: naming the field and the rule.
    """
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise at_fault(str(error)) from None


def at_fault(text: str) -> ClientError:
    """Translate msgspec's error ``Expected `str`, got `int` - at `$.model```. Long quotes of the
    body are cut."""
    if len(text) > MAX_FAULT_CHARACTERS:
        half = MAX_FAULT_CHARACTERS // 2
        text = f"{text[:half]}…{text[-half:]}"
    match = AT_FIELD.match(text)
    rule, field = (match["rule"], match["field"]) if match else (text, None)
    if named := FIELD_IN_RULE.search(rule):
        field = f"{field}.{named['field']}" if field else named["field"]
    rule = rule.replace("`", "'")
    return ClientError(f"{field}: {rule}." if field else f"{rule}.", param=field or None)


def _check_counts(content: bytes, outside: bytes, limits: Limits) -> None:
    """:raises PayloadTooLarge: when the body exceeds one of the limits."""
    if len(content) > limits.escapes:
        escapes = sum(piece.count(b"\\") for piece in _slices(content))
        if escapes > limits.escapes:
            raise PayloadTooLarge(f"The body has more than {limits.escapes:,} escaped characters.")
    if _separators(outside) >= limits.values:
        raise _too_many("values", limits.values)
    if _exponents(outside) > limits.exponents:
        raise _too_many("numbers with an exponent", limits.exponents)
    if b"0" * (limits.digits + 1) in outside.translate(DIGITS_AS_ZERO):
        raise PayloadTooLarge(f"A number in the body has more than {limits.digits} digits.")


def _length_of_text(content: bytes, outside: bytes, value: Any) -> int:
    """The length that the body would have if it were encoded again, or a little more.

    A long text is not encoded again if it can be measured faster: without escapes and exponents,
    encoding only drops white space and digits, unless a number has so many digits that it gets an
    exponent.
    """
    if (
        _exponents(outside)
        or MANY_DIGITS in outside.translate(DIGITS_AS_ZERO)
        or any(b"\\" in piece for piece in _slices(content))
    ):
        return len(msgspec.json.encode(value))
    return len(content) - len(outside) + len(outside.translate(None, SPACES))


def _count_members(value: Any) -> int:
    """Count the members of all objects in a decoded value."""
    count = 0
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        items: Iterable[Any] = ()
        if type(inner) is dict:
            count += len(inner)
            items = inner.values()
        elif type(inner) is list:
            items = inner
        waiting += [item for item in items if type(item) is dict or type(item) is list]
    return count


def _too_many(what: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body has more than {limit:,} {what}.")


def _slices(content: bytes) -> Iterator[bytes]:
    """Cut the body into slices, none of which begins within an escape.

    One call of compiled code over a body of 14 MB holds Python's lock, and with it the event loop,
    for milliseconds. Between two slices the lock is free.
    """
    start = 0
    while start < len(content):
        end = start + SLICE_BYTES
        if content[end - 1 : end] == b"\\":
            after_backslashes = NO_BACKSLASH.search(content, end)
            end = after_backslashes.end() if after_backslashes else len(content)
        yield content[start:end]
        start = end


def _outside_strings(content: bytes, limits: Limits) -> bytes:
    """The body without its strings, whose content does not matter.

    Most slices of a long text have no quote that ends a string. To see that takes a tenth of the
    time of splitting them.

    :raises PayloadTooLarge: when it has more strings than values are allowed.
    """
    outside: list[bytes] = []
    is_in_string, quotes = False, 0
    for piece in _slices(content):
        parts = [piece]
        if b"\\" in piece:
            parts = _split_escaped(piece)
        elif b'"' in piece:
            parts = piece.split(b'"')
        outside += parts[is_in_string::2]
        is_in_string ^= len(parts) % 2 == 0
        quotes += len(parts) - 1
        # An item has at most one string, and a member at most two.
        if quotes // 2 > 2 * limits.values:
            raise _too_many("values", limits.values)
    return b"".join(outside)


def _check_strings(content: bytes, canonical: bytes) -> None:
    """:raises ClientError: when the value of a small body has fewer strings than its bytes."""
    stated, kept = (
        text.replace(ESCAPED_BACKSLASH, b"").replace(ESCAPED_QUOTE, b"").count(b'"')
        for text in (content, canonical)
    )
    if stated != kept:
        raise _duplicate(content)


def _split_escaped(piece: bytes) -> list[bytes]:
    """Split a slice at the quotes that are not escaped."""
    if ESCAPED_BACKSLASH + b'"' in piece:
        # A quote after an escaped backslash is not escaped itself.
        piece = piece.replace(ESCAPED_BACKSLASH, b"")
    escaped_quotes = piece.count(ESCAPED_QUOTE)
    if piece.count(b'"') == escaped_quotes:
        return [piece]
    return piece.replace(ESCAPED_QUOTE, b"").split(b'"')


def _check_depth(outside: bytes, limits: Limits) -> None:
    """:raises ClientError: when valid JSON has too many objects and lists within each other."""
    brackets = outside.translate(AS_ROUND, NO_BRACKETS)
    for _ in range(limits.depth):
        if not brackets:
            return
        # Each turn removes the innermost level.
        brackets = brackets.replace(b"()", b"")
    if brackets:
        raise _too_deep()


def _too_deep() -> ClientError:
    return ClientError("The body is nested too deeply.", code="invalid_json")


def _exponents(outside: bytes) -> int:
    """Count the numbers that have an exponent."""
    letters = outside.count(b"e") + outside.count(b"E")
    return letters - outside.count(b"true") - outside.count(b"false")


def _separators(content: bytes) -> int:
    return content.count(b",") + content.count(b"{") + content.count(b"[")


def _decode_repaired(content: bytes) -> Any:
    """The value of JSON in which halves of surrogate pairs stand alone.

    :raises ClientError: when it is not valid JSON, or nested too deeply.
    """
    try:
        return msgspec.json.decode(_without_lone_halves(content))
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClientError(f"The body is not valid JSON: {error}", code="invalid_json") from None


def _without_lone_halves(content: bytes) -> bytes:
    """The body with U+FFFD for each lone half of a surrogate pair. All other bytes keep their
    position."""
    if b"\\u" not in content or b"\0" in content:
        return content
    if content.count(b"\\ud") + content.count(b"\\uD") > LIMITS.half_pairs:
        raise _too_many("halves of surrogate pairs, of which one stands alone", LIMITS.half_pairs)
    # An escaped backslash does not begin an escape.
    marked = content.replace(ESCAPED_BACKSLASH, NO_JSON)
    return LONE_HALF.sub(REPLACEMENT, marked).replace(NO_JSON, ESCAPED_BACKSLASH)


class _DuplicateError(Exception):
    """Carries the name of a member that an object has twice."""


def _duplicate(content: bytes) -> ClientError:
    """The error for a body in which an object has a member twice."""
    if len(content) <= MAX_NAMED_DUPLICATE_BYTES:
        try:
            json.loads(content, object_pairs_hook=_check_pairs)
        except _DuplicateError as error:
            (name,) = error.args
            return ClientError(f"{name}: is there twice in one object.", param=name)
        except (ValueError, RecursionError):
            pass
    return ClientError("An object in the body has a member twice.")


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise _DuplicateError(name[:100].encode(errors="replace").decode())
        names.add(name)


_KEPT: Final = object()


class _Pieces:
    """Builds an object, mostly from pieces of another."""

    def __init__(self, source: bytes) -> None:
        self.read_to = 0
        self._source = memoryview(source)
        self._pieces: list[bytes | memoryview] = []
        self._length = 0
        self._spans: dict[str, _Span] = {}

    def copy(self, start: int, end: int | None = None) -> None:
        """Add bytes of the source, up to its end unless ``end`` is given."""
        self._add(self._source[start:end])
        self.read_to = start if end is None else end

    def keep_member(self, name: str, span: _Span) -> None:
        """Add a member of the source unchanged."""
        self._separate()
        offset = self._length - span.start
        self._spans[name] = _Span(*[at + offset for at in span])
        self._add(self._source[span.start : span.end])

    def add_member(self, name: str, head: bytes, value: Any, tail: bytes = b"") -> None:
        """Add a member: the bytes before its value, the value, the bytes after it."""
        self._separate()
        start = self._length
        self._add(head)
        value_start = self._length
        self._add(msgspec.json.encode(value))
        value_end = self._length
        self._add(tail)
        self._spans[name] = _Span(start, value_start, value_end, self._length)

    def document(self) -> Document:
        """Join the pieces, which copies them once."""
        return Document(b"".join(self._pieces), frozenset(self._spans), self._spans)

    def _separate(self) -> None:
        if self._spans:
            self._add(b",")

    def _add(self, piece: bytes | memoryview) -> None:
        self._pieces.append(piece)
        self._length += len(piece)


def _spans(content: bytes) -> dict[str, _Span]:
    """The positions of the members of a valid JSON object, in their order."""
    values = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    spans: dict[str, _Span] = {}
    at = content.index(b"{") + 1
    for name, value in values.items():
        match = NAME.match(content, at)
        assert match is not None  # noqa: S101 - the JSON is valid
        value_end = match.end() + len(memoryview(value))
        space = SPACE.match(content, value_end)
        assert space is not None  # noqa: S101 - it matches anything
        spans[name] = _Span(at, match.end(), value_end, space.end())
        at = space.end() + 1
    return spans
