"""What can go wrong, as one tree. Each class is a status and a stable code.

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
        UpstreamRejected          400 upstream_rejected
        UpstreamExhausted         503 upstream_exhausted
        UpstreamBusy              503 upstream_busy
        UpstreamTimeout           504 upstream_timeout
      Unavailable                 503 unavailable

``str(error)`` is safe to show to the caller: no secrets, no internals, no text of the database.
The cause goes to the log by ``raise … from cause``. Raise where it is known, translate a foreign
library's errors once at its border (``db``, ``upstream``), render once (``api.middleware``).
"""

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


class ServiceError(Exception):
    """Anything the service answers with an error body.

    ``message`` is for people, ``code`` and ``param`` (the field at fault) are for programs,
    ``retry_after_s`` becomes the Retry-After header. A refusal by a limit says in ``limit`` which,
    with the numbers that prove it, and in ``rates`` what is left of the caller's.
    """

    status: int = 500
    code: str = "internal_error"
    reasons: tuple[str, ...] = ()
    """The codes that stand in its place where the reason is known."""

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
    def is_final(self) -> bool:
        """Whether the same request would fail again, so that a client should not repeat it."""
        return self.status < 500 and self.status != RequestTimeout.status and not self.retry_after_s

    def advise(self, text: str) -> None:
        """Add to the message what the caller can do."""
        self.message = f"{self.message} {text}"
        self.args = (self.message,)

    @classmethod
    def codes(cls) -> tuple[str, ...]:
        """Every code that an error of this very class has."""
        return (cls.code, *vars(cls).get("reasons", ()))


class ClientError(ServiceError):
    """The request is at fault and will fail again as it is."""

    status = 400
    code = "invalid_request"
    reasons: tuple[str, ...] = ("invalid_json", "malformed_request")


class Unauthenticated(ClientError):
    """No key, or one that is not in force."""

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
    """A money limit has no room for this call, and waiting makes none before it resets."""

    status = 402
    code = "limit_exceeded"
    reasons = ("price_unknown",)


class Forbidden(ClientError):
    """The key is in force but may not do this."""

    status = 403
    code = "forbidden"
    reasons = ("organization_inactive", "model_not_allowed")


class NotFound(ClientError):
    """Nothing by that name is visible to this caller."""

    status = 404
    code = "not_found"
    reasons = ("model_not_found", "model_retired")


class MethodNotAllowed(ClientError):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(ClientError):
    """The request's body did not arrive in time."""

    status = 408
    code = "request_timeout"


class Conflict(ClientError):
    """The request contradicts what is stored."""

    status = 409
    code = "conflict"
    reasons = ("books_disagree",)


class PayloadTooLarge(ClientError):
    """The body is larger than the service accepts."""

    status = 413
    code = "payload_too_large"


class UnsupportedEncoding(ClientError):
    """The body has a Content-Encoding that the service does not unpack."""

    status = 415
    code = "unsupported_encoding"


class HeadTooLarge(ClientError):
    """The URL or the headers are longer than the service accepts."""

    status = 431
    code = "head_too_large"


class RateLimited(ClientError):
    """A limit on requests, tokens or concurrency has no room for this call now; or one on money has
    none only because of what other calls hold (``limit_held``)."""

    status = 429
    code = "rate_limited"
    reasons: tuple[str, ...] = ("limit_held",)


class CallTooLarge(RateLimited):
    """The call needs more than a limit on requests, tokens or concurrency ever has room for."""

    status = 400
    code = "call_too_large"
    reasons = ()


class Evidence(enum.Enum):
    """What a failed attempt proves about what callers share: the operator's key, the model."""

    NONE = enum.auto()
    """Nothing: there was no connection, or something before Venice refused this very request."""
    REQUEST_REFUSED = enum.auto()
    """Venice read the request and refused it, so key and model are well."""
    CALLER_REFUSED = enum.auto()
    """Venice refused the call in a way that may be about its caller alone."""
    KEY_REFUSED = enum.auto()
    """Venice refused the key, or what this call asked of it."""
    MODEL_FORBIDDEN = enum.auto()
    """Venice states that the key may not use the model, perhaps because of what this call asked."""
    RATE_SPENT = enum.auto()
    """Venice states that the key has used up its rate of the model."""
    FAILED = enum.auto()
    """Venice failed, perhaps because of this request."""
    EDGE_FAILED = enum.auto()
    """Something before Venice failed, perhaps because of this request."""


class UpstreamError(ServiceError):
    """Venice failed, or answered what cannot be understood.

    ``evidence`` is what that proves beyond this call. ``upstream_status`` is Venice's own,
    ``named_retry_after_s`` the time it named, ``rate_reset_s`` that until a used up rate is there
    again; ``cost_usd`` is what Venice states that the failure costs; ``is_refunded`` means that
    Venice gave back what the job had cost that it was asked for, ``is_charge_kept`` that it gives
    nothing back; ``attempts`` are the codes of all that was tried.
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
    """No connection to Venice was made, so nothing was sent and nothing is charged."""

    code = "upstream_unreachable"
    evidence = Evidence.NONE


class UpstreamCut(UpstreamError):
    """Venice closed the connection before its answer was complete."""

    code = "upstream_cut"


class UpstreamRejected(UpstreamError):
    """Venice refused the request itself; its text and its 4xx status are kept."""

    status = 400
    code = "upstream_rejected"
    evidence = Evidence.REQUEST_REFUSED


class UpstreamExhausted(UpstreamError):
    """The operator's Venice key or balance is spent: nothing the caller can mend."""

    status = 503
    code = "upstream_exhausted"
    evidence = Evidence.NONE


class UpstreamBusy(UpstreamError):
    """Venice is overloaded or limits the operator's rate; Retry-After is kept."""

    status = 503
    code = "upstream_busy"
    evidence = Evidence.NONE


class UpstreamTimeout(UpstreamError):
    """Venice did not answer within the deadline."""

    status = 504
    code = "upstream_timeout"


class Unavailable(ServiceError):
    """The service cannot do this now: database trouble, or it is shutting down."""

    status = 503
    code = "unavailable"


class SettingsError(Exception):
    """The environment does not make a valid configuration. One line a mistake, no secrets."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class StartupError(Exception):
    """The service cannot start. ``hint`` says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
