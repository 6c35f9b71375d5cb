"""Errors in the shape that Anthropic's clients read."""

from typing import Any, Final

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


def error_object(error: ServiceError, request_id: str | None) -> dict[str, Any]:
    """The body of an error; ``code``, ``param`` and ``limit`` stand beside Anthropic's members."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    content: dict[str, Any] = {
        "type": TYPES.get(error.status, kind),
        "message": error.message,
        "code": error.code,
        "param": error.param,
    }
    if error.limit is not None:
        content["limit"] = error.limit
    return {"type": "error", "error": content, "request_id": request_id}
