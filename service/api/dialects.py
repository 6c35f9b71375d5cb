"""Errors in the formats of the APIs that callers use."""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from service import anthropic
from service.errors import ServiceError

ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ErrorDetail(msgspec.Struct, kw_only=True):
    """An error. ``param`` is the field at fault; ``request_id`` finds the error in the log.

    In a refusal by a limit ``limit`` has the limit and the numbers that prove the refusal."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str | None
    limit: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Error(msgspec.Struct, kw_only=True):
    """The body of an error in OpenAI's shape."""

    error: ErrorDetail


def error_object(error: ServiceError, request_id: str | None) -> Error:
    """The body of ``error`` in OpenAI's shape."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    detail = ErrorDetail(
        message=error.message,
        type=ERROR_TYPES.get(error.status, kind),
        param=error.param,
        code=error.code,
        request_id=request_id,
        limit=msgspec.UNSET if error.limit is None else dict(error.limit),
    )
    return Error(error=detail)


Dialect = Callable[[ServiceError, str | None], Error | anthropic.AnthropicError]
"""Makes the body of an error, with the request's id, in the format of the caller's API."""
OPENAI: Final[Dialect] = error_object
ANTHROPIC: Final[Dialect] = anthropic.error_object
ID_HEADERS: Final = {OPENAI: ("x-request-id",), ANTHROPIC: ("x-request-id", "request-id")}
"""The headers in which the clients of each API look for the id of a request."""
MESSAGES_PATH: Final = re.compile(r"/+(?:api/+)?v1/+messages(?:/.*)?")


def dialect_of(path: str) -> Dialect:
    """The dialect of the callers of a path, whether or not the path exists."""
    return ANTHROPIC if MESSAGES_PATH.fullmatch(path) else OPENAI
