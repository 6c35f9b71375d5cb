"""The ledger's records of a call: its hold, its admission and its entry."""

import enum
from typing import Any, Final
from uuid import UUID

import msgspec

from service.ids import uuid7


class Outcome(enum.StrEnum):
    """How a call ended."""

    OK = "ok"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_EXHAUSTED = "upstream_exhausted"
    UPSTREAM_BUSY = "upstream_busy"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_CUT = "upstream_cut"
    CLIENT_CLOSED = "client_closed"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"
    NOT_SENT = "not_sent"
    """The caller had left, or had received a 503 or a refusal, before the call was admitted."""
    INTERRUPTED = "interrupted"
    """The process ended without settling the call, and the sweeper settled it."""


class CostSource(enum.StrEnum):
    """The source of an entry's cost, most reliable first."""

    REPORTED = "reported"
    """Venice reported the cost."""
    COMPUTED = "computed"
    """Venice's usage times the catalogue's price."""
    ESTIMATED = "estimated"
    """The price of the counted part and the bound of the rest; never above the call's bound."""
    BOUND = "bound"
    """The most that the call could have cost, because nothing better is known."""
    NOT_CHARGED = "not_charged"
    """Venice certainly charged nothing."""
    UNKNOWN = "unknown"
    """There is no price. The cost is null, never zero."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks for admission, and the hold it has while in flight.

    ``bound_nanos`` and ``bound_tokens`` are the most it can use; ``bound_nanos`` is None without a
    price. If the limits cannot afford them, the call may be cut down to ``least_nanos`` and
    ``least_tokens``, or is refused where these are None. ``end_user`` is the hex digest of the end
    user's name.
    """

    organization_id: UUID
    id: UUID
    api_key_id: UUID
    request_id: str
    endpoint: str
    model: str
    is_stream: bool
    bound_nanos: int | None
    bound_tokens: int
    least_nanos: int | None = None
    least_tokens: int | None = None
    end_user: str | None = None
    tags: dict[str, str] | None = None
    requested_model: str | None = None
    """The name that the caller used for the model, if not the model's own."""
    price_version: int | None = None
    is_moved: bool = False
    """True if it replaces the hold with the same id."""
    key_digest: bytes | None = None
    """The digest of the secret that the caller showed, which has to work when the call is admitted.
    None leaves that out."""


class Sent(msgspec.Struct, kw_only=True):
    """What is known of a call at Venice in flight, stored in case the process dies."""

    upstream_key_id: UUID | None = None
    upstream_request_id: str | None = None


NOT_SENT: Final = Sent()


class Rate(msgspec.Struct, frozen=True):
    """The tightest of a caller's limits on one unit."""

    ceiling: int
    left: int
    reset_s: int | None


class Rates(msgspec.Struct, frozen=True):
    """What a caller has left after a call. None where it is unlimited."""

    requests: Rate | None
    tokens: Rate | None

    @classmethod
    def of(cls, row: Any) -> "Rates | None":
        """Build the rates from a row of ``public.settle_and_admit``; None where there are none."""
        if row["requests_left"] is None and row["tokens_left"] is None:
            return None
        return cls(_rate(row, "requests"), _rate(row, "tokens"))


def _rate(row: Any, unit: str) -> Rate | None:
    left = row[f"{unit}_left"]
    return None if left is None else Rate(row[f"{unit}_ceiling"], left, row[f"{unit}_reset_s"])


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """The granted bounds, which are lower than requested if the call was cut down, and the
    caller's rates; None without limits on them."""

    bound_nanos: int | None
    bound_tokens: int
    rates: Rates | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a call. ``status`` is the status sent to the caller, if any."""

    hold: Hold
    model: str
    outcome: Outcome
    status: int | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    cost_nanos: int | None
    cost_source: CostSource
    upstream_request_id: str | None
    first_byte_ms: int | None
    duration_ms: int
    upstream_key_id: UUID | None = None
    max_nanos: int | None = None
    """The most that any call of the model can cost, set only if the cost is above it."""
    correction_id: UUID = msgspec.field(default_factory=uuid7)
    """The id of the correction that is written if the sweeper settled the call first."""

    def row(self) -> dict[str, Any]:
        """Return the row that ``public.settle_and_admit`` reads."""
        row: dict[str, Any] = msgspec.structs.asdict(self)
        hold: Hold = row.pop("hold")
        del row["max_nanos"]
        return {**row, "organization_id": hold.organization_id, "id": hold.id}


def not_sent(hold: Hold) -> Entry:
    """Build the entry of a call that was never sent."""
    return Entry(
        hold=hold,
        model=hold.model,
        outcome=Outcome.NOT_SENT,
        status=None,
        input_tokens=None,
        cached_input_tokens=None,
        output_tokens=None,
        cost_nanos=0,
        cost_source=CostSource.NOT_CHARGED,
        upstream_request_id=None,
        first_byte_ms=None,
        duration_ms=0,
    )
