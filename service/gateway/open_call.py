"""The hold, the outcome and the timings of a paid call, which become its one ledger entry."""

import asyncio
import time
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from service.errors import ClientError, ServiceError, UpstreamError
from service.gateway.call import Cost
from service.gateway.route import Route
from service.ledger import Entry, Hold, Outcome
from service.telemetry import metrics
from service.upstream import Metered


class OpenCall(msgspec.Struct, eq=False):
    """What is known of a call from its start to its ledger entry. The first outcome counts."""

    route: Route
    task: asyncio.Task[Any] | None = msgspec.field(default_factory=asyncio.current_task)
    """The task that ends the call when it is cancelled."""
    started_at: float = msgspec.field(default_factory=time.monotonic)
    first_byte_at: float | None = None
    is_ended_by_shutdown: bool = False
    outcome: Outcome | None = None
    status: int | None = None
    stated_usd: Decimal | None = None
    """The cost that Venice stated with its failure."""
    has_failed: bool = False
    """Whether Venice answered that the call failed."""

    def __repr__(self) -> str:
        return f"<OpenCall {self.route.call!r}>"

    def end(self, outcome: Outcome, status: int | None) -> None:
        """Record the outcome and the status, unless they are known already."""
        self.outcome = self.outcome or outcome
        self.status = self.status or status

    def forget_end(self) -> None:
        """Drop the outcome and the status, since the caller gets another response."""
        self.outcome = self.status = None

    def record_failure(self, error: BaseException) -> None:
        """Record the cost and the status that Venice stated with a failure."""
        if isinstance(error, UpstreamError):
            self.has_failed = self.has_failed or error.upstream_status is not None
            self.stated_usd = self.stated_usd or error.cost_usd

    def fail(self, error: BaseException) -> None:
        """Record how the call failed, unless its outcome is known already."""
        self.record_failure(error)
        if isinstance(error, ServiceError) and self.status is None:
            self.status = error.status
        if self.is_ended_by_shutdown:
            self.end(Outcome.SHUTDOWN, None)
        elif isinstance(error, UpstreamError):
            self.end(Outcome(error.outcome), None)
        elif has_left(error):
            self.end(Outcome.CLIENT_CLOSED, None)
        else:
            self.end(Outcome.INTERNAL_ERROR, None)

    def early_outcome(self) -> Outcome:
        """The outcome of a call that has none yet, if it ends now."""
        return Outcome.SHUTDOWN if self.is_ended_by_shutdown else Outcome.CLIENT_CLOSED

    def entry(
        self, hold: Hold, metered: Metered, cost: Cost, upstream_key_id: UUID | None
    ) -> Entry:
        """The ledger entry of an admitted call."""
        usage, started_at, first_byte_ms = cost.usage, self.started_at, None
        if self.first_byte_at is not None:
            first_byte_ms = round((self.first_byte_at - started_at) * 1000)
        nanos, bound_nanos, max_nanos = cost.nanos, self.route.bound.nanos, None
        # The bound is for one attempt, and there may have been two.
        if nanos is not None and bound_nanos is not None and nanos > 2 * bound_nanos:
            max_nanos = self._exceeded_maximum(nanos)
        return Entry(
            hold=hold,
            model=metered.model or self.route.model_name,
            outcome=self.outcome or self.early_outcome(),
            status=self.status,
            input_tokens=usage.input_tokens if usage else None,
            cached_input_tokens=usage.cached_input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cost_nanos=cost.nanos,
            cost_source=cost.source,
            max_nanos=max_nanos,
            upstream_key_id=upstream_key_id,
            upstream_request_id=metered.upstream_request_id,
            first_byte_ms=first_byte_ms,
            duration_ms=round((time.monotonic() - started_at) * 1000),
        )

    def _exceeded_maximum(self, nanos: int) -> int | None:
        """The most that any call of the model costs, if Venice stated more for this call."""
        call = self.route.call
        maximum = call.endpoint.max_nanos(call, self.route.bound, self.route.catalog)
        if maximum is None or nanos <= maximum:
            return None
        metrics.note(metrics.IMPLAUSIBLE, 1, "cost")
        return maximum


def has_left(error: BaseException) -> bool:
    """Whether the error means that the caller went away. After admission a mistake of the caller's
    is the end of its upload."""
    return isinstance(error, asyncio.CancelledError | ConnectionError | ClientError)
