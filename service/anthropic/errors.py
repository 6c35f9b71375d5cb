"""Errors in the format of Anthropic's API."""

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
        message=error.message,
        code=error.code,
        param=error.param,
        limit=UNSET if error.limit is None else dict(error.limit),
    )
    return AnthropicError(error=detail, request_id=request_id)
