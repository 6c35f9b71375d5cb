"""JSON bodies: read with errors that name the field, and changed without being re-encoded."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from service.errors import ClientError

T = TypeVar("T")

AT_FIELD: Final = re.compile(
    r"^(?P<rule>.*?)(?: - at (?:`key` in )?`\$\.?(?P<field>.*)`)?$", re.DOTALL
)
FIELD_IN_RULE: Final = re.compile(r"field `(?P<field>[^`]+)`")
# Strings and punctuation; what lies between them (numbers, true, null, space) does not matter.
EMPTY: Final = re.compile(rb"\s*}")
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)


def decode(body: bytes, shape: type[T]) -> T:
    """The body as ``shape``.

    :raises ClientError: naming the field and the rule, when it is not JSON of that shape.
    """
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise at_fault(str(error)) from None
    except RecursionError:
        raise ClientError("The body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ClientError(f"The body is not valid JSON: {error}", code="invalid_json") from None


def at_fault(text: str) -> ClientError:
    """Our error for msgspec's ``Expected `str`, got `int` - at `$.model```."""
    match = AT_FIELD.match(text)
    rule, field = (match["rule"], match["field"]) if match else (text, None)
    if named := FIELD_IN_RULE.search(rule):
        field = f"{field}.{named['field']}" if field else named["field"]
    rule = rule.replace("`", "'")
    return ClientError(f"{field}: {rule}." if field else f"{rule}.", param=field or None)


def text_bytes(body: bytes) -> int:
    """At least as many bytes as the JSON body would have with each character as itself in UTF-8,
    and not many more: ``\\u1234`` stands for three at most."""
    if b"\\" not in body:
        return len(body)
    if b"\\\\" in body:
        body = body.replace(b"\\\\", b"/")
    return len(body) - 3 * body.count(b"\\u")


def set_members(body: bytes, members: Mapping[str, Any], present: Collection[str]) -> bytes:
    """The JSON object ``body`` with top-level ``members`` set, every other byte as it was.

    ``present`` says which of them the object has already. Those are replaced where they stand,
    however often they are repeated; the others go to the front.
    """
    replaced = {name: value for name, value in members.items() if name in present}
    if replaced:
        body = _replace(body, replaced)
    added = {name: value for name, value in members.items() if name not in present}
    if not added:
        return body
    start = body.index(b"{") + 1
    separator = b"" if EMPTY.match(body, start) else b","
    # In one go: the body may be large, and is not to be copied for each piece.
    inner = msgspec.json.encode(added)[1:-1]
    return b"".join([body[:start], inner, separator, memoryview(body)[start:]])


def without_members(body: bytes, names: Collection[str]) -> bytes:
    """The JSON object ``body`` without the top-level members of these names; the bytes of every
    other member are as they were."""
    members = _top_level_members(body)
    if not any(member.name in names for member in members):
        return body
    kept = [body[m.start : m.end] for m in members if m.name not in names]
    return body[: members[0].start] + b",".join(kept) + body[members[-1].end :]


class _Member(NamedTuple):
    name: str
    start: int
    value_start: int
    end: int


def _replace(body: bytes, members: Mapping[str, Any]) -> bytes:
    parts, kept_from = [], 0
    for member in _top_level_members(body):
        if member.name in members:
            parts += [body[kept_from : member.value_start]]
            parts += [msgspec.json.encode(members[member.name])]
            kept_from = member.end
    return b"".join([*parts, body[kept_from:]])


def _top_level_members(body: bytes) -> list[_Member]:
    """Where each member of a valid JSON object stands, in order."""
    members: list[_Member] = []
    depth, name, name_start, start = 0, None, 0, 0
    for token in TOKEN.finditer(body):
        text = token.group()
        if depth == 1 and text in (b",", b"}") and name is not None:
            value = body[start : token.start()]
            start += len(value) - len(value.lstrip())
            members.append(_Member(name, name_start, start, start + len(value.strip())))
            name = None
        if text in (b"{", b"["):
            depth += 1
        elif text in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and text == b":":
            start = token.end()
        elif depth == 1 and name is None and text.startswith(b'"'):
            name, name_start = msgspec.json.decode(text, type=str), token.start()
    return members
