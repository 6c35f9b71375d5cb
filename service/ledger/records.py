"""What the books know of a call: its hold, its admission and its entry."""

import enum
from typing import Any, Final
from uuid import UUID

import msgspec

from service.ids import uuid7
from service.ledger.refusals import Rates


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
    """Its caller had gone, or had been told 503 or a refusal, by the time it was admitted."""
    INTERRUPTED = "interrupted"
    """Its process ended without settling it; the sweeper did."""


class CostSource(enum.StrEnum):
    """Where the cost of an entry comes from, best first."""

    REPORTED = "reported"
    """Venice stated it."""
    COMPUTED = "computed"
    """Venice's usage times the catalogue's price."""
    ESTIMATED = "estimated"
    """The catalogue's price of what was counted, and of the bound of what was not; never above the
    call's bound."""
    BOUND = "bound"
    """What the call could have cost at most: nothing better is known."""
    NOT_CHARGED = "not_charged"
    """Venice surely charged nothing."""
    UNKNOWN = "unknown"
    """There is no price; the cost is null, never zero."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks to be admitted, and then is in flight.

    ``bound_nanos`` and ``bound_tokens`` are the most it can use; the first is None without a price.
    Where that is too much it may be cut down to ``least_nanos`` and ``least_tokens``; without these
    it is refused. ``end_user`` is the hex of the digest of the end user's name.
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
    """By which name the caller asked for the model, where that is not its own."""
    price_version: int | None = None
    is_moved: bool = False
    """Whether it takes the place of the hold of its id."""


class Sent(msgspec.Struct, kw_only=True):
    """What is known of a call at Venice while it is under way, should its process die."""

    upstream_key_id: UUID | None = None
    upstream_request_id: str | None = None


NOT_SENT: Final = Sent()


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What was granted: the hold's bounds, which are less than asked for where the call was cut
    down; and what its caller has left."""

    bound_nanos: int | None
    bound_tokens: int
    rates: Rates


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a hold. ``status`` is what the caller was answered, if anything."""

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
    most_nanos: int | None = None
    """The most that any call of its model costs, where its own cost is above that."""
    correction_id: UUID = msgspec.field(default_factory=uuid7)
    """Should the sweeper have been faster, the entry that corrects it has this id."""

    def row(self) -> dict[str, Any]:
        """As ``public.settle_and_admit`` reads it."""
        row: dict[str, Any] = msgspec.structs.asdict(self)
        hold: Hold = row.pop("hold")
        del row["most_nanos"]
        return {**row, "organization_id": hold.organization_id, "id": hold.id}


def not_sent(hold: Hold) -> Entry:
    """The entry of a call that never left."""
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
