"""Writes batches of entries and holds to the database, and reads what became of them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service.database.database import Database, StickyConnection
from service.errors import Forbidden, ServiceError, Unauthenticated, Unavailable
from service.ledger.condition import Condition, is_schema_error
from service.ledger.records import Admission, Entry, Hold, Rates
from service.ledger.refusals import refusal
from service.telemetry import metrics

log = structlog.get_logger()

LEASE_S: Final = 60
MAX_CONNECTIONS: Final = 3
OTHER_CONNECTIONS: Final = 2
"""How many connections of the pool stay for health, reports and everything else."""
RETRY_FIRST_S: Final = 0.2
MAX_RETRY_S: Final = 5.0

SETTLE_AND_ADMIT: Final = """
    SELECT *
    FROM public.settle_and_admit(
        $1::text::jsonb, false, $2::text::jsonb, $3, make_interval(secs => $4), $5
    )
"""


class Batch(msgspec.Struct, eq=False):
    """Entries to write and holds to take in one transaction, with the futures of those who wait
    for them, in the same order."""

    entries: list[Entry] = []
    settling: list[asyncio.Future[None]] = []
    holds: list[Hold] = []
    admitting: list[asyncio.Future[Admission]] = []

    def parts(self) -> "list[Batch]":
        """A batch for each of the entries and holds."""
        settlements = zip(self.entries, self.settling, strict=True)
        admissions = zip(self.holds, self.admitting, strict=True)
        return [
            *(Batch(entries=[entry], settling=[future]) for entry, future in settlements),
            *(Batch(holds=[hold], admitting=[future]) for hold, future in admissions),
        ]


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
        self._process_id = process_id
        self._max_end_users = max_end_users
        self._undo = undo
        self.max_connections = max(1, min(MAX_CONNECTIONS, database.size - OTHER_CONNECTIONS))
        """How many batches may be written at once."""
        self.condition = Condition()
        self.alerts_are_due = asyncio.Event()
        """Set when a settlement has brought a limit to the next of its thresholds."""

    def connect(self) -> StickyConnection:
        """A connection for consecutive batches."""
        return self._database.sticky()

    async def write(self, batch: Batch, connection: Database | StickyConnection) -> None:
        """Write the entries, then take the holds, both or nothing, and resolve the futures of the
        holds.

        :raises Exception: when nothing is written. The futures are left as they are.
        """
        entries, holds = batch.entries, batch.holds
        if entries:
            metrics.noted.append((metrics.BATCH_SIZE, len(entries), ("settlement",)))
        if holds:
            metrics.noted.append((metrics.BATCH_SIZE, len(holds), ("admission",)))
        losses = self._database.losses
        try:
            rows = await connection.fetch(SETTLE_AND_ADMIT, *self.arguments(entries, holds))
        except Exception as error:
            self.condition.failed(error)
            if is_schema_error(error):
                # No other call fares better, and settlements wait until it is mended.
                raise Unavailable("The books cannot be written.", retry_after_s=5) from error
            raise
        self.condition.succeeded()
        was_repeated = self._database.losses != losses
        settled_nanos = 0
        for row in rows:
            if (number := row["number"]) is None:
                settled_nanos += self._note_written(row)
            elif row["verdict"] == "admitted":
                if not batch.admitting[number - 1].done():
                    batch.admitting[number - 1].set_result(_admission(row))
            else:
                self._refuse(batch, number - 1, _refusal(row), was_repeated=was_repeated)
        if settled_nanos:
            metrics.SETTLED_USD.inc(settled_nanos / 1e9)

    def _refuse(self, batch: Batch, place: int, error: ServiceError, *, was_repeated: bool) -> None:
        if was_repeated and not batch.holds[place].is_moved:
            # The first statement may run yet: what was refused now may then be admitted.
            self._undo(batch.holds[place])
        if not batch.admitting[place].done():
            batch.admitting[place].set_exception(error)

    async def settle(self, batch: Batch) -> None:
        """Write the entries of the batch, however long it takes. Never raises, and leaves the
        futures to the caller."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self.write(batch, self._database)
            except Unavailable:
                metrics.SETTLEMENT_RETRIES.inc()
                log.warning(
                    "settlements wait for the database", count=len(batch.entries), retry_s=pause_s
                )
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_RETRY_S)
            except Exception:
                parts = batch.parts()
                if len(parts) > 1:
                    # One that cannot be written keeps no other from it.
                    for part in parts:
                        await self.settle(part)
                    return
                # What could not be written must be in the log.
                metrics.UNWRITTEN.inc()
                log.exception("settlement failed", **_facts(batch.entries[0]))
                return
            else:
                return

    def arguments(self, entries: Sequence[Entry], holds: Sequence[Hold]) -> tuple[Any, ...]:
        """The arguments of ``SETTLE_AND_ADMIT``.

        :raises Exception: when something cannot be encoded.
        """
        encode = msgspec.json.encode
        settled = encode(list(map(Entry.row, entries))).decode() if entries else None
        calls = encode(holds).decode() if holds else None
        return settled, calls, self._process_id, LEASE_S, self._max_end_users

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
    return _admission(row) if row["verdict"] == "admitted" else _refusal(row)


def _admission(row: Any) -> Admission:
    return Admission(
        bound_nanos=row["granted_nanos"],
        bound_tokens=row["granted_tokens"],
        rates=Rates.of(row),
    )


def _refusal(row: Any) -> ServiceError:
    verdict = row["verdict"]
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
