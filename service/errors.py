"""The tree of errors. Each class has a status and a stable code.

::

    ServiceError                  500 internal_error
      ClientError                 400 invalid_request
        Unauthenticated           401 unauthenticated      and one code for each reason
        LimitExceeded             402 limit_exceeded       or price_unknown
        Forbidden                 403 forbidden
        NotFound                  404 not_found
        MethodNotAllowed          405 method_not_allowed
        RequestTimeout            408 request_timeout
        Conflict                  409 conflict
        PayloadTooLarge           413 payload_too_large
        UnsupportedEncoding       415 unsupported_encoding
        HeadTooLarge              431 head_too_large
        RateLimited               429 rate_limited         or limit_held
          CallTooLarge            400 call_too_large
      UpstreamError               502 upstream_error
        UpstreamUnreachable       502 upstream_unreachable
        UpstreamCut               502 upstream_cut
        UpstreamRejected          400 upstream_rejected    or context_length_exceeded
        UpstreamExhausted         503 upstream_exhausted
        UpstreamBusy              503 upstream_busy
        UpstreamTimeout           504 upstream_timeout
      Unavailable                 503 unavailable

``str(error)`` is safe to show to callers: it has no secrets, internals or database text. The cause
goes to the log with ``raise … from cause``. Raise an error where it is known, translate a library's
errors once at its boundary (``database``, ``upstream``), and render once (``api.middleware``).
"""

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

MAX_RETRY_AFTER_S: Final = 60
"""Clients ignore a longer Retry-After: SDKs repeat the request within seconds, Claude Code gives
up."""


class Advice(NamedTuple):
    """Whether a client should send a refused request again by itself, and after how many seconds.

    ``should_retry`` is None where the client has to decide, because a second request may be charged
    again. In the table ``wait_s`` is the wait of an error that states none.
    """

    should_retry: bool | None
    wait_s: int | None = None


FINAL: Final = Advice(should_retry=False)
ADVICE: Final[Mapping[str, Advice]] = {
    **dict.fromkeys(
        (
            "invalid_request",
            "invalid_json",
            "malformed_request",
            "unauthenticated",
            "missing_api_key",
            "malformed_api_key",
            "invalid_api_key",
            "expired_api_key",
            "revoked_api_key",
            "limit_exceeded",
            "price_unknown",
            "forbidden",
            "organization_inactive",
            "address_not_allowed",
            "endpoint_not_allowed",
            "model_not_allowed",
            "not_found",
            "model_not_found",
            "model_retired",
            "method_not_allowed",
            "conflict",
            "books_disagree",
            "payload_too_large",
            "unsupported_encoding",
            "head_too_large",
            "call_too_large",
            "upstream_rejected",
            "context_length_exceeded",
        ),
        FINAL,
    ),
    "request_timeout": Advice(should_retry=True, wait_s=1),
    # Without a wait a lifetime limit is used up.
    "rate_limited": Advice(should_retry=True),
    "limit_held": Advice(should_retry=True, wait_s=1),
    "upstream_unreachable": Advice(should_retry=True, wait_s=5),
    "upstream_exhausted": Advice(should_retry=True, wait_s=60),
    "upstream_busy": Advice(should_retry=True, wait_s=5),
    "unavailable": Advice(should_retry=True, wait_s=5),
    # Venice may have charged for the call.
    "upstream_error": Advice(should_retry=None),
    "upstream_cut": Advice(should_retry=None),
    "upstream_timeout": Advice(should_retry=None),
    "internal_error": Advice(should_retry=None),
}
"""By code. An error that states a wait above ``MAX_RETRY_AFTER_S`` is final for a client."""


class ServiceError(Exception):
    """An error that the service returns with an error body.

    ``message`` is for people; ``code`` and ``param`` (the invalid field) are for programs.
    ``retry_after_s`` becomes the Retry-After header. A refusal by a limit has in ``limit`` the
    limit with the numbers that prove it, and in ``rates`` what the caller has left. ``model`` is
    the caller's name for a model that it cannot use.
    """

    status: int = 500
    code: str = "internal_error"
    reasons: tuple[str, ...] = ()
    """More specific codes that replace ``code`` where the reason is known."""
    model: str | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        limit: Mapping[str, object] | None = None,
        rates: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.rates = rates
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    @property
    def advice(self) -> Advice:
        """Whether a client should repeat the request by itself, and after how many seconds."""
        should_retry, wait_s = ADVICE.get(self.code) or ADVICE[type(self).code]
        if self.retry_after_s is not None:
            wait_s = self.retry_after_s
        if should_retry is False or (should_retry is None and wait_s is None):
            return Advice(should_retry, wait_s)
        return Advice(wait_s is not None and wait_s <= MAX_RETRY_AFTER_S, wait_s)

    @property
    def is_final(self) -> bool:
        """True if a client should not repeat the request by itself."""
        return self.advice.should_retry is False

    @property
    def outcome(self) -> str:
        """The code of the class, by which the failure is recorded, whatever its own code is."""
        return type(self).code

    def advise(self, text: str) -> None:
        """Append advice for the caller to the message."""
        self.message = f"{self.message} {text}"
        self.args = (self.message,)

    @classmethod
    def codes(cls) -> tuple[str, ...]:
        """Return every code that an error of exactly this class can have."""
        return (cls.code, *vars(cls).get("reasons", ()))


class ClientError(ServiceError):
    """The request is invalid and will fail again unchanged."""

    status = 400
    code = "invalid_request"
    reasons: tuple[str, ...] = ("invalid_json", "malformed_request")


class Unauthenticated(ClientError):
    """The API key is missing, unknown or no longer valid."""

    status = 401
    code = "unauthenticated"
    reasons = (
        "missing_api_key",
        "malformed_api_key",
        "invalid_api_key",
        "expired_api_key",
        "revoked_api_key",
    )


class LimitExceeded(ClientError):
    """A money limit has no room for this call and will have none before it resets."""

    status = 402
    code = "limit_exceeded"
    reasons = ("price_unknown",)


class Forbidden(ClientError):
    """The key is valid but may not do this."""

    status = 403
    code = "forbidden"
    reasons = (
        "organization_inactive",
        "address_not_allowed",
        "endpoint_not_allowed",
        "model_not_allowed",
    )


class NotFound(ClientError):
    """The caller can see nothing by that name."""

    status = 404
    code = "not_found"
    reasons = ("model_not_found", "model_retired")


class MethodNotAllowed(ClientError):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ClientError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class Conflict(ClientError):
    """The request conflicts with the stored state."""

    status = 409
    code = "conflict"
    reasons = ("books_disagree",)


class PayloadTooLarge(ClientError):
    """The body is larger than the service accepts."""

    status = 413
    code = "payload_too_large"


class UnsupportedEncoding(ClientError):
    """The body has a Content-Encoding that the service does not support."""

    status = 415
    code = "unsupported_encoding"


class HeadTooLarge(ClientError):
    """The URL or the headers are longer than the service accepts."""

    status = 431
    code = "head_too_large"


class RateLimited(ClientError):
    """A limit has no room for this call now.

    Limits on requests, tokens or concurrency use ``rate_limited``. A money limit uses
    ``limit_held`` when only the holds of other calls are in the way. ``room_in_s`` is the time
    until the limit has room, which may differ from Retry-After; None if unknown or never.
    """

    status = 429
    room_in_s: int | None = None
    code = "rate_limited"
    reasons: tuple[str, ...] = ("limit_held",)


class CallTooLarge(RateLimited):
    """The call needs more requests, tokens or concurrency than the limit's ceiling."""

    status = 400
    code = "call_too_large"
    reasons = ()


class Evidence(enum.Enum):
    """What a failed attempt proves about state shared by callers: the operator's key and the
    model."""

    NONE = enum.auto()
    """Nothing. There was no connection, or a proxy before Venice refused this request."""
    REQUEST_REFUSED = enum.auto()
    """Venice parsed the request and refused it, so key and model work."""
    CALLER_REFUSED = enum.auto()
    """Venice refused the call for a reason that may concern only its caller."""
    KEY_REFUSED = enum.auto()
    """Venice refused the key, or this call's use of it."""
    MODEL_FORBIDDEN = enum.auto()
    """Venice states that the key may not use the model, perhaps only in this call."""
    RATE_SPENT = enum.auto()
    """Venice states that the key has used up its rate limit for the model."""
    FAILED = enum.auto()
    """Venice failed, perhaps because of this request."""
    EDGE_FAILED = enum.auto()
    """A proxy before Venice failed, perhaps because of this request."""


class UpstreamError(ServiceError):
    """Venice failed, or its response cannot be parsed.

    ``evidence`` is what the failure proves beyond this call. ``upstream_status`` and
    ``named_retry_after_s`` are Venice's own status and retry time, and ``rate_reset_s`` is the time
    until a used-up rate limit resets. ``cost_usd`` is what Venice charged for the failure.
    ``is_refunded`` means that Venice refunded the job in question, ``is_charge_kept`` that it
    refunds nothing. ``attempts`` holds the codes of all attempts.
    """

    status = 502
    code = "upstream_error"
    evidence: Evidence = Evidence.FAILED
    upstream_status: int | None = None
    named_retry_after_s: int | None = None
    rate_reset_s: float | None = None
    cost_usd: Decimal | None = None
    is_refunded: bool = False
    is_charge_kept: bool = False
    attempts: tuple[str, ...] = ()


class UpstreamUnreachable(UpstreamError):
    """No connection to Venice was established, so nothing was sent or charged."""

    code = "upstream_unreachable"
    evidence = Evidence.NONE


class UpstreamCut(UpstreamError):
    """Venice closed the connection before its response was complete."""

    code = "upstream_cut"


class UpstreamRejected(UpstreamError):
    """Venice refused the request itself. Its text and 4xx status are kept, and so is a code that
    clients act on."""

    status = 400
    code = "upstream_rejected"
    reasons = ("context_length_exceeded",)
    evidence = Evidence.REQUEST_REFUSED


class UpstreamExhausted(UpstreamError):
    """The operator's Venice key or balance is used up. The caller cannot fix this."""

    status = 503
    code = "upstream_exhausted"
    evidence = Evidence.NONE


class UpstreamBusy(UpstreamError):
    """Venice is overloaded or limits the operator's rate. Retry-After is kept."""

    status = 503
    code = "upstream_busy"
    evidence = Evidence.NONE


class UpstreamTimeout(UpstreamError):
    """Venice did not answer within the deadline."""

    status = 504
    code = "upstream_timeout"


class Unavailable(ServiceError):
    """The service is temporarily unable to do this: database trouble, or a shutdown."""

    status = 503
    code = "unavailable"


class SettingsError(Exception):
    """The environment is not a valid configuration. Has one line per mistake, without secrets."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class StartupError(Exception):
    """The service cannot start. ``hint`` describes the fix."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
