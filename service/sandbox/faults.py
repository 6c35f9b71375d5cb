"""Simulated failures of Venice and of the network in front of it."""

import asyncio
import random
import time
from enum import Enum
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from service.sandbox.refusals import Refusal, context_exceeded, issue, unauthenticated, unknown_key

EVERY_PATH: Final = "*"
MAX_HOLD_S: Final = 600.0
MAX_PENDING: Final = 1000
# Only needed for servers that do not cancel a handler when its client leaves.
_POLL_S: Final = 0.25


class FaultKind(Enum):
    """A kind of failure. ``doc`` describes its visible effect."""

    _value_: str
    doc: str

    RATE_LIMITED = "rate_limited", "429 with code RATE_LIMIT_EXCEEDED."
    MODEL_OVERLOADED = "model_overloaded", "429 with a Retry-After of retry_after seconds (30)."
    ERROR_BUDGET = (
        "error_budget",
        "429 with x-ratelimit-remaining and -resets (ms), without a code.",
    )
    INSUFFICIENT_BALANCE = "insufficient_balance", "402 with code INSUFFICIENT_BALANCE."
    KEY_SPEND_LIMIT = (
        "key_spend_limit",
        "402 for the key's own ceiling, with a message and no code.",
    )
    INVALID_KEY = "invalid_key", "401 Authentication failed."
    INFERENCE_FAILED = "inference_failed", "500 with code INFERENCE_FAILED."
    BAD_GATEWAY = "bad_gateway", "502 with a request_id."
    AT_CAPACITY = "at_capacity", "503 with code MODEL_AT_CAPACITY."
    TIMEOUT = "timeout", "504 with code REQUEST_TIMEOUT."
    HANG = "hang", "No response until release or seconds (600), then drops the connection."
    BARRIER = "barrier", "Holds every call until release, then responds. Release removes it."
    SLOW_HEADERS = "slow_headers", "Waits seconds (1) before responding."
    DISCONNECT = "disconnect", "Closes the connection without a response."
    GARBAGE = "garbage", "200 with a body that is not JSON."
    STALL = "stall", "The body pauses after `after` chunks (1) until release."
    CUT = "cut", "The connection is closed after `after` chunks (1) of the body."
    IN_BAND_ERROR = "in_band_error", "An error event after `after` chunks (1); 500 when plain."
    SLOW_BYTES = "slow_bytes", "The body arrives in pieces of 7 bytes, seconds (0.001) apart."
    MISSING_USAGE = "missing_usage", "The response has neither usage nor cost."
    MISSING_COST = "missing_cost", "The response has usage but no cost."
    RATE_SPENT = "rate_spent", "Responds and reports the rate used up for seconds (60)."
    CONTENT_VIOLATION = "content_violation", "Images: a free black image, marked by a header."
    JOB_FAILED = "job_failed", "Queues: retrieving fails with a refund."
    CONTENT_POLICY = "content_policy", "422 with a suggested_prompt."
    NEEDS_CONSENT = "needs_consent", "409 whose error is an object, with consent_flow."
    CONTEXT_LENGTH = "context_length", "400 in OpenAI's shape."
    DETAILED = "detailed", "400 with a text as details and issues."
    TOO_LARGE = "too_large", "413 with code PAYLOAD_TOO_LARGE."
    PRIVACY_RESTRICTED = "privacy_restricted", "403 with code MODEL_PRIVACY_RESTRICTED."
    RETIRED = "retired", "410 for a retired model."
    EDGE_PAGE = "edge_page", "A page of the network in front of Venice, with `status` (403)."
    WALLET_REQUIRED = "wallet_required", "402 that offers payment by wallet, as without a key."

    def __new__(cls, value: str, doc: str) -> "FaultKind":
        """Attach the description to the value."""
        member = object.__new__(cls)
        member._value_ = value
        member.doc = doc
        return member


Path = Annotated[str, Meta(pattern=r"^(\*|/.*)$", max_length=200)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_HOLD_S)]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A fault for calls to a path, for ``times`` calls or, without it, for all."""

    kind: FaultKind
    path: Path = EVERY_PATH
    times: Annotated[int, Meta(ge=1)] | None = None
    after: Annotated[int, Meta(ge=0)] = 1
    seconds: Seconds | None = None
    retry_after: Annotated[int, Meta(ge=0)] = 30
    status: Annotated[int, Meta(ge=400, le=599)] = 403
    message: Annotated[str, Meta(max_length=1000)] | None = None
    key: Annotated[str, Meta(max_length=200)] | None = None
    """Restricts the fault to calls with this key."""
    chance: Annotated[float, Meta(gt=0, le=1)] = 1
    """The probability that a call has the fault."""

    def __post_init__(self) -> None:
        # Paths are Venice's own. The prefix is removed because people copy it from logs.
        self.path = self.path.removeprefix("/api/v1") or EVERY_PATH


class Faults:
    """The pending faults, in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._released = asyncio.Event()
        self._arrived = asyncio.Event()
        # Seeded, so that calls in the same order get the same faults.
        self._random = random.Random(1)
        self.held = 0
        """The number of calls held by a barrier, hang or stall."""

    def push(self, path: str, kind: FaultKind | str, **options: object) -> Fault:
        """Add a fault. ``options`` are fields of :class:`Fault`.

        :raises msgspec.ValidationError: when a field is invalid; the error names it.
        """
        name = kind.value if isinstance(kind, FaultKind) else kind
        fault = msgspec.convert({"path": path, "kind": name, **options}, Fault)
        self.add(fault)
        return fault

    def add(self, fault: Fault) -> None:
        """Add a valid fault."""
        if len(self._faults) >= MAX_PENDING:
            raise ValueError(f"at most {MAX_PENDING} faults can be pending")
        self._faults.append(fault)

    def pending(self) -> list[Fault]:
        """Return the pending faults with their remaining times."""
        return list(self._faults)

    def clear(self) -> None:
        """Remove all faults and release every held call."""
        self._faults.clear()
        self.release()

    def release(self) -> int:
        """Release every held call and remove the barriers. Returns the number of held calls."""
        self._faults = [fault for fault in self._faults if fault.kind is not FaultKind.BARRIER]
        self._released.set()
        self._released = asyncio.Event()
        return self.held

    async def wait_held(self, count: int, timeout: float = 10.0) -> None:
        """Wait until that many calls are held.

        :raises TimeoutError: when they are not held in time.
        """
        async with asyncio.timeout(timeout):
            while self.held < count:
                self._arrived.clear()
                await self._arrived.wait()

    def take(self, path: str, key: str = "") -> Fault | None:
        """Take the fault for the next call to a path with a key. Reduces its remaining times."""
        for fault in self._faults:
            matches = fault.path in (path, EVERY_PATH) and fault.key in (key, None)
            if matches and (fault.chance == 1 or self._random.random() < fault.chance):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return None

    async def hold(self, request: web.Request, seconds: float | None) -> bool:
        """Hold a call until the release. False if the client leaves or the time passes first."""
        released = self._released
        ends_at = time.monotonic() + (MAX_HOLD_S if seconds is None else seconds)
        self.held += 1
        self._arrived.set()
        try:
            while (remaining_s := ends_at - time.monotonic()) > 0 and request.transport is not None:
                try:
                    async with asyncio.timeout(min(remaining_s, _POLL_S)):
                        return await released.wait()
                except TimeoutError:
                    continue
            return False
        finally:
            self.held -= 1


FAULTS: Final = web.AppKey("FAULTS", Faults)


def refusal(fault: Fault) -> Refusal | None:
    """Return the refusal that a fault simulates, or None."""
    match fault.kind:
        case FaultKind.INVALID_KEY:
            return unknown_key()
        case FaultKind.WALLET_REQUIRED:
            return unauthenticated()
        case FaultKind.CONTEXT_LENGTH:
            return context_exceeded(200_000, 131_072)
        case _:
            pass
    known = _REFUSALS.get(fault.kind)
    if known is None:
        return None
    status, text, more = known
    headers = {}
    if fault.kind is FaultKind.MODEL_OVERLOADED:
        headers["Retry-After"] = str(fault.retry_after)
    elif fault.kind is FaultKind.ERROR_BUDGET:
        reset_ms = int(time.time() * 1000) + 30_000
        headers = {"x-ratelimit-remaining": "0", "x-ratelimit-resets": str(reset_ms)}
    elif fault.kind is FaultKind.RATE_LIMITED:
        headers["x-ratelimit-remaining-requests"] = "0"
    return Refusal(status, {"error": fault.message or text, **more}, headers)


def spent_rate(fault: Fault) -> dict[str, str]:
    """Return the headers of a response that used up the request rate."""
    reset_s = time.time() + (60 if fault.seconds is None else fault.seconds)
    return {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": str(int(reset_s * 1000)),
    }


_REFUSALS: Final[dict[FaultKind, tuple[int, Any, dict[str, Any]]]] = {
    FaultKind.RATE_LIMITED: (429, "Rate limit exceeded", {"code": "RATE_LIMIT_EXCEEDED"}),
    FaultKind.MODEL_OVERLOADED: (
        429,
        "The model is currently overloaded. Please try again later.",
        {"code": "MODEL_OVERLOADED"},
    ),
    FaultKind.ERROR_BUDGET: (429, "Too many failed requests. Please try again later.", {}),
    FaultKind.INSUFFICIENT_BALANCE: (
        402,
        "Insufficient USD or Diem balance to complete request.",
        {"code": "INSUFFICIENT_BALANCE"},
    ),
    FaultKind.KEY_SPEND_LIMIT: (402, "API key USD spend limit exceeded.", {}),
    FaultKind.INFERENCE_FAILED: (500, "Inference processing failed", {"code": "INFERENCE_FAILED"}),
    FaultKind.BAD_GATEWAY: (
        502,
        "The upstream provider rejected the request.",
        {"request_id": "sandbox-bad-gateway"},
    ),
    FaultKind.AT_CAPACITY: (
        503,
        "The model is at capacity. Please try again later.",
        {"code": "MODEL_AT_CAPACITY"},
    ),
    FaultKind.CONTENT_POLICY: (
        422,
        "Your prompt violates the content policy of the model.",
        {"suggested_prompt": "A simulated landscape"},
    ),
    FaultKind.NEEDS_CONSENT: (409, {"code": "needs_consent"}, {"consent_flow": "simulated"}),
    FaultKind.DETAILED: (
        400,
        "Invalid request parameters",
        {"details": "A text and no object", "issues": [issue("Not this", "model")]},
    ),
    FaultKind.TOO_LARGE: (413, "Request body too large", {"code": "PAYLOAD_TOO_LARGE"}),
    FaultKind.PRIVACY_RESTRICTED: (
        403,
        "This key may not use the model.",
        {"code": "MODEL_PRIVACY_RESTRICTED"},
    ),
    FaultKind.RETIRED: (410, "This model was retired. Use llama-3.3-70b instead.", {}),
    FaultKind.TIMEOUT: (
        504,
        "The request timed out. Use stream=true for long answers.",
        {"code": "REQUEST_TIMEOUT"},
    ),
}
