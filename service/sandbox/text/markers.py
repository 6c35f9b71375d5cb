"""Markers in a message, such as ``[tokens=20]``, which determine the sandbox's answer."""

import re
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from service.sandbox.refusals import invalid, issue

ODDITIES: Final = {
    "shared-index": "Parallel tool calls share index 0 and differ by their ids.",
    "no-index": "Pieces of tool calls have no index.",
    "late-name": "The name of a tool call comes after the first piece of its arguments.",
    "empty-texts": "Later pieces of a tool call repeat id, type and name as empty texts.",
    "nulls": "Members without a value are null instead of absent.",
    "interleaved": "The pieces of parallel tool calls alternate.",
    "whole-calls": "Each tool call comes in one piece.",
    "object-arguments": "The arguments of a tool call are an object instead of a text.",
    "partial-arguments": "The arguments of a tool call lack their end.",
    "float-usage": "The counts in usage are floats.",
    "text-usage": "The counts in usage are texts.",
    "encrypted": "A piece of encrypted reasoning comes before the answer.",
    "crlf": "The lines of a stream end with CR LF.",
    "no-done": "A stream ends without [DONE].",
    "no-last-line-break": "A stream ends without a line break.",
}
"""What real streams do now and then, by the name used in ``[odd=NAME,NAME]``."""

_WHOLE: Final = re.compile(r"\d{1,6}")
_SECONDS: Final = re.compile(r"\d{1,3}(?:\.\d{1,6})?")


class Markers(Struct, frozen=True, kw_only=True):
    """The markers of a message. A number or text is None where the marker is absent."""

    tokens: int | None = None
    think: int | None = None
    tools: int | None = None
    cut: int | None = None
    delay: float | None = None
    finish: str | None = None
    refusal: str | None = None
    text: str | None = None
    reply: str | None = None
    fail: str | None = None
    error: str | None = None
    search: bool = False
    odd: frozenset[str] = frozenset()


NO_MARKERS: Final = Markers()


def read(text: str) -> Markers:
    """Read the markers of a text. Of each kind the first counts, and malformed ones are text.

    :raises Refusal: 400 for an oddity that does not exist, because it would test nothing.
    """
    if "[" not in text:
        return NO_MARKERS
    found: dict[str, Any] = {}
    for name, value in _MARKER.findall(text):
        if name not in found:
            parsed = _PARSERS[name](value)
            if parsed is not None:
                found[name] = parsed
    return Markers(**found) if found else NO_MARKERS


def _whole(value: str) -> int | None:
    return int(value) if _WHOLE.fullmatch(value) else None


def _seconds(value: str) -> float | None:
    return float(value) if _SECONDS.fullmatch(value) else None


def _text(default: str) -> Callable[[str], str]:
    return lambda value: value or default


def _oddities(value: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in value.split(","))
    unknown = sorted(names - ODDITIES.keys())
    if unknown:
        text = f"There is no [odd={unknown[0]}]. There are: {', '.join(ODDITIES)}"
        raise invalid(issue(text, "messages"))
    return names


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "tokens": _whole,
    "think": _whole,
    "tools": _whole,
    "cut": _whole,
    "delay": _seconds,
    "finish": _text("stop"),
    "refusal": _text("The simulated model refuses to answer."),
    "text": _text("The simulated model calls tools."),
    "reply": _text("ok"),
    "fail": _text("server_error"),
    "error": _text("server_error"),
    "search": lambda _: True,
    "odd": _oddities,
}
_MARKER: Final = re.compile(rf"\[({'|'.join(_PARSERS)})(?:=([^\]]{{0,2000}}))?\]")
