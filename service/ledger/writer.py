"""Writes batches of entries and holds to the database, and reads what became of them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service.database.database import Database
from service.errors import Forbidden, ServiceError, Unauthenticated, Unavailable
from service.ledger.condition import Condition, is_schema_error
from service.ledger.records import Admission, Entry, Hold, Rates
from service.ledger.refusals import refusal
from service.telemetry import metrics

log = structlog.get_logger()

LEASE_S: Final = 60
RETRY_FIRST_S: Final = 0.2
MAX_RETRY_S: Final = 5.0

SETTLE_AND_ADMIT: Final = """
    SELECT *
    FROM public.settle_and_admit(
        $1::text::jsonb, false, $2::text::jsonb, $3, make_interval(secs => $4), $5
    )
"""


class BatchWriter:
    """Writes the batches of one process.

    ``undo`` is called for a refused hold whose statement may have run twice: what was refused may
    then be admitted after all.
    """

    def __init__(
        self,
        database: Database,
        process_id: UUID,
        max_end_users: int,
        undo: Callable[[Hold], None],
    ) -> None:
        self._database = database
        self._sticky = database.sticky()
        self._process_id = process_id
        self._max_end_users = max_end_users
        self._undo = undo
        self.condition = Condition()
        self.alerts_are_due = asyncio.Event()
        """Set when a settlement has brought a limit to the next of its thresholds."""

    async def write(
        self,
        entries: Sequence[Entry],
        holds: Sequence[Hold],
        database: Database | None = None,
    ) -> Sequence[Admission | ServiceError]:
        """Write the entries, then take the holds, both or nothing; returns a verdict for each
        hold. Without a ``database`` the connection is the one that is kept for batches."""
        if entries:
            metrics.note(metrics.BATCH_SIZE, len(entries), "settlement")
        if holds:
            metrics.note(metrics.BATCH_SIZE, len(holds), "admission")
        losses = self._database.losses
        statement = self.fetch(database or self._sticky, entries, holds)
        try:
            rows = await statement
        except Exception as error:
            self.condition.failed(error)
            if is_schema_error(error):
                # No other call fares better, and settlements wait until it is mended.
                raise Unavailable("The books cannot be written.", retry_after_s=5) from error
            raise
        self.condition.succeeded()
        verdicts, settled_nanos = [], 0
        for row in rows:
            if row["number"] is None:
                settled_nanos += self._note_written(row)
            else:
                verdicts.append(verdict_of(row))
        if settled_nanos:
            metrics.SETTLED_USD.inc(settled_nanos / 1e9)
        if self._database.losses != losses:
            self._undo_refused(holds, verdicts)
        return verdicts

    def _undo_refused(
        self, holds: Sequence[Hold], verdicts: Sequence[Admission | ServiceError]
    ) -> None:
        """End what may become of refused holds. Their statement may have been a repetition, and the
        first one may run yet: what was refused now may then be admitted."""
        for hold, verdict in zip(holds, verdicts, strict=True):
            if isinstance(verdict, ServiceError) and not hold.is_moved:
                self._undo(hold)

    async def settle(self, entries: Sequence[Entry]) -> None:
        """Write the entries, however long it takes. Never raises."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self.write(entries, (), self._database)
            except Unavailable:
                metrics.SETTLEMENT_RETRIES.inc()
                log.warning(
                    "settlements wait for the database", count=len(entries), retry_s=pause_s
                )
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_RETRY_S)
            except Exception:
                if len(entries) > 1:
                    # One that cannot be written keeps no other from it.
                    for entry in entries:
                        await self.settle([entry])
                else:
                    # What could not be written must be in the log.
                    metrics.UNWRITTEN.inc()
                    log.exception("settlement failed", **_facts(entries[0]))
                return
            else:
                return

    async def give_back(self) -> None:
        """Return the connection that is kept from one batch to the next."""
        await self._sticky.give_back()

    def fetch(
        self, conn: Any, entries: Sequence[Entry], holds: Sequence[Hold]
    ) -> Awaitable[list[Any]]:
        """Settle, then admit, in one statement; returns its rows.

        What cannot be encoded raises here, before anything is awaited.
        """
        settled = calls = None
        if entries:
            settled = msgspec.json.encode(list(map(Entry.row, entries))).decode()
        if holds:
            calls = msgspec.json.encode(holds).decode()
        rows: Awaitable[list[Any]] = conn.fetch(
            SETTLE_AND_ADMIT, settled, calls, self._process_id, LEASE_S, self._max_end_users
        )
        return rows

    def _note_written(self, written: Any) -> int:
        """Returns the nano-dollars that a call was settled with now."""
        if written["kind"] == "alert":
            self.alerts_are_due.set()
            return 0
        if written["kind"] == "correction":
            metrics.CORRECTIONS.inc()
            log.warning("late settlement corrects the sweeper's", entry_id=str(written["id"]))
        cost_nanos, bound_nanos = written["cost_nanos"], written["bound_nanos"]
        if None not in (cost_nanos, bound_nanos) and cost_nanos > bound_nanos:
            metrics.ABOVE_BOUND.inc()
            log.warning(
                "cost above the bound",
                entry_id=str(written["id"]),
                cost_nanos=cost_nanos,
                bound_nanos=bound_nanos,
            )
        return (cost_nanos or 0) if written["kind"] == "call" else 0


def verdict_of(row: Any) -> Admission | ServiceError:
    """What a row of ``public.settle_and_admit`` decides for its call."""
    verdict = row["verdict"]
    if verdict == "admitted":
        return Admission(
            bound_nanos=row["granted_nanos"],
            bound_tokens=row["granted_tokens"],
            rates=Rates.of(row),
        )
    if verdict == "organization_inactive":
        return Forbidden("The organization is not active.", code=verdict)
    if verdict == "not_held":
        return Unavailable("The hold of the call has run out.")
    if verdict.endswith("_api_key"):
        return Unauthenticated("The API key is no longer in force.", code=verdict)
    return refusal(row)


def _facts(entry: Entry) -> dict[str, object]:
    return {
        "organization_id": str(entry.hold.organization_id),
        "entry_id": str(entry.hold.id),
        "outcome": entry.outcome.value,
        "cost_nanos": entry.cost_nanos,
        "cost_source": entry.cost_source.value,
        "input_tokens": entry.input_tokens,
        "output_tokens": entry.output_tokens,
    }
