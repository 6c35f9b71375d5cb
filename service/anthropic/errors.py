"""Errors in the format of Anthropic's API."""

import re
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from service.errors import ServiceError

TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
TOO_LONG: Final = "context_length_exceeded"
NUMBER: Final = r"(\d[\d,]*)"
LIMIT: Final = re.compile(
    r"(?:maximum context length|context (?:length|window|limit|holds)|limit|maximum)\D{0,40}"
    + NUMBER,
    re.IGNORECASE,
)
OUTPUT: Final = re.compile(
    rf"{NUMBER} (?:tokens )?(?:in|for|of) the completion|{NUMBER} (?:output|completion) tokens"
    rf"|max_(?:completion_|output_)?tokens\D{{0,60}}{NUMBER}",
    re.IGNORECASE,
)
INPUT: Final = re.compile(
    rf"{NUMBER} (?:tokens )?(?:in|from|of) the (?:messages|prompt|input)"
    rf"|{NUMBER} (?:input|prompt) tokens|(?:prompt|messages|input)\D{{0,30}}{NUMBER}",
    re.IGNORECASE,
)
"""How makers of models state the numbers of a prompt that is too long."""
OWN_WORDS: Final = re.compile(
    r"prompt is too long: \d+ tokens > \d+ maximum"
    r"|input length and `max_tokens` exceed context limit: \d+ \+ \d+ > \d+"
)
"""How Anthropic states them, and Claude Code reads them."""


class AnthropicErrorDetail(Struct, kw_only=True):
    """Anthropic's members, and ``code``, ``param`` and ``limit`` of our own."""

    type: str
    message: str
    code: str
    param: str | None
    limit: dict[str, Any] | UnsetType = UNSET


class AnthropicError(Struct, kw_only=True):
    """The body of an error."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail
    request_id: str | None


def error_object(error: ServiceError, request_id: str | None) -> AnthropicError:
    """Return the body of a response for ``error``."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    detail = AnthropicErrorDetail(
        type=TYPES.get(error.status, kind),
        message=_too_long(error.message) if error.code == TOO_LONG else error.message,
        code=error.code,
        param=error.param,
        limit=UNSET if error.limit is None else dict(error.limit),
    )
    return AnthropicError(error=detail, request_id=request_id)


def _too_long(text: str) -> str:
    """Return the error of a prompt that is too long in Anthropic's own words. Claude Code acts on
    them: it lowers ``max_tokens`` or shortens the conversation, and tries again."""
    if OWN_WORDS.search(text):
        return text
    limit, prompt, output = (_number(pattern, text) for pattern in (LIMIT, INPUT, OUTPUT))
    if limit and prompt and output and prompt <= limit < prompt + output:
        return f"input length and `max_tokens` exceed context limit: {prompt} + {output} > {limit}"
    if limit and prompt and prompt > limit:
        return f"prompt is too long: {prompt} tokens > {limit} maximum"
    return f"prompt is too long: {text}"


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    stated = next(filter(None, match.groups()), None) if match else None
    return int(stated.replace(",", "")) if stated else None
