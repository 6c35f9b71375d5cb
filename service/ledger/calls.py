"""Admission and settlement of calls."""

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service.audit import OPERATOR_ORGANIZATION_ID
from service.database.database import Database, Kept
from service.errors import (
    Forbidden,
    LimitExceeded,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from service.ids import uuid7
from service.ledger.batches import Batches
from service.ledger.condition import Condition, is_schema_error
from service.ledger.implausible import ImplausibleCost, ImplausibleCosts
from service.ledger.limits import Limit, list_binding
from service.ledger.records import NOT_SENT, Admission, Entry, Hold, Sent, not_sent
from service.ledger.refusals import Rates, has_room_within_a_second, refusal
from service.telemetry import metrics

log = structlog.get_logger()

LEASE_S: Final = 60
ADMIT_TIMEOUT_S: Final = 5.0
RETRY_FIRST_S: Final = 0.2
RETRY_MOST_S: Final = 5.0
MOST_END_USERS: Final = 100_000
MOST_ADMITTING: Final = 10_000
MOST_UNDOING: Final = 10_000
MAX_WAIT_S: Final = 1.0
MAX_WAITING: Final = 200
UNDO_AGAIN_S: Final = 30.0
"""Later than the server lets any statement run."""

SETTLE_AND_ADMIT: Final = """
    SELECT *
    FROM public.settle_and_admit(
        $1::text::jsonb, false, $2::text::jsonb, $3, make_interval(secs => $4), $5
    )
"""
# What is being settled needs no lease, and is not waited for.
RENEW_LEASES: Final = """
    WITH free AS (
        SELECT organization_id, id
        FROM public.holds
        WHERE organization_id = ANY ($1)
          AND id = ANY ($2)
        FOR UPDATE SKIP LOCKED
    )
    UPDATE public.holds h
    SET lease_until = clock_timestamp() + make_interval(secs => $5),
        upstream_key_id = k.upstream_key_id,
        upstream_request_id = k.upstream_request_id
    FROM free
    JOIN unnest($2::uuid[], $3::uuid[], $4::text[]) AS k (id, upstream_key_id, upstream_request_id)
        USING (id)
    WHERE h.organization_id = free.organization_id
      AND h.id = free.id
"""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a call would meet, and what admission would say to it."""

    limits: Sequence[Limit]
    outcome: Admission | ServiceError


class _TakenBack(Exception):
    """Ends a transaction without a trace."""


class Ledger:
    """Admits and settles the calls of one process."""

    def __init__(
        self, database: Database, process_id: UUID, most_end_users: int = MOST_END_USERS
    ) -> None:
        self._database = database
        self._kept = database.kept()
        self._process_id = process_id
        self._most_end_users = most_end_users
        self.alerts_are_due = asyncio.Event()
        """Set when a settlement has brought a limit to the next of its thresholds."""
        self.condition = Condition()
        self._implausible = ImplausibleCosts(database)
        self._batches: Batches[Hold, Admission, Entry] = Batches(
            self._write_next,
            self._settle,
            self._kept.give_back,
            lambda: len(self._open),
            MOST_ADMITTING,
            ADMIT_TIMEOUT_S,
        )
        # One at a time, since it locks limits that calls wait for.
        self._trying = asyncio.Semaphore(1)
        self._open: dict[UUID, Hold] = {}
        self._sent: dict[UUID, Sent] = {}
        self._moving: set[UUID] = set()
        """Holds whose move is under way, or whose end nobody has waited for."""
        self._settling: set[asyncio.Future[None]] = set()
        self._undoing: set[asyncio.Task[None]] = set()
        self._waiting = asyncio.Semaphore(MAX_WAITING)

    async def admit(self, hold: Hold) -> Admission:
        """Take the hold on every limit that applies to the call, or on none.

        :raises LimitExceeded, RateLimited: naming the limit that has no room.
        :raises Unauthenticated, Forbidden: when key or organization are no longer in force.
        :raises Unavailable: when the database cannot say: no new calls without books.
        """
        future = self._batches.admit(hold)
        self._open[hold.id] = hold
        submitted_at = time.perf_counter()
        try:
            return await future
        except TimeoutError as error:
            self._undo(hold)
            raise Unavailable("The books do not answer.", retry_after_s=1) from error
        except (Unavailable, asyncio.CancelledError):
            self._undo(hold)
            raise
        except ServiceError as error:
            self._open.pop(hold.id, None)
            if error.limit is not None:
                limit = error.limit
                metrics.REFUSALS.labels(error.code, limit["unit"], limit["scope"]).inc()
            if isinstance(error, LimitExceeded):
                await self._implausible.explain(error, hold.organization_id)
            raise
        except BaseException:
            self._open.pop(hold.id, None)
            raise
        finally:
            metrics.note(metrics.ADMISSION_SECONDS, time.perf_counter() - submitted_at)

    async def wait_for_room(self, refusal: ServiceError) -> bool:
        """Wait where a rate of a minute has room within a second; returns whether to ask again,
        with a hold of another id.

        Such a rate counts a call for up to a second longer than a minute, and its refusals name 60
        seconds at most: a call that comes then may be early by that second.
        """
        if not has_room_within_a_second(refusal) or self._waiting.locked():
            return False
        async with self._waiting:
            await asyncio.sleep(MAX_WAIT_S)
        return True

    async def move(self, hold: Hold) -> Admission:
        """Swap the hold of this id for another, in one step: what it holds is room for that one. If
        it cannot be, it stays what it is.

        :raises LimitExceeded, RateLimited, Unauthenticated, Forbidden: as :meth:`admit`.
        :raises Unavailable: when the hold has run out, or the database cannot say; then either of
            the two is held, and settling ends it.
        """
        future = self._batches.admit(msgspec.structs.replace(hold, is_moved=True))
        self._moving.add(hold.id)
        try:
            admission = await future
        except TimeoutError as error:
            raise Unavailable("The books do not answer.", retry_after_s=1) from error
        except ServiceError:
            self._moving.discard(hold.id)
            raise
        self._moving.discard(hold.id)
        return admission

    async def _write_next(
        self, entries: Sequence[Entry], holds: Sequence[Hold]
    ) -> Sequence[Admission | ServiceError]:
        return await self._write(entries, holds, self._kept)

    async def _write(
        self, entries: Sequence[Entry], holds: Sequence[Hold], database: Database | Kept
    ) -> Sequence[Admission | ServiceError]:
        """Settle, then admit, in one transaction; a verdict for each hold."""
        settled = calls = None
        if entries:
            metrics.note(metrics.BATCH_SIZE, len(entries), "settlement")
            settled = msgspec.json.encode([entry.row() for entry in entries]).decode()
        if holds:
            metrics.note(metrics.BATCH_SIZE, len(holds), "admission")
            calls = msgspec.json.encode(holds).decode()
        losses = self._database.losses
        rows = await self._run(database, settled, calls)
        verdicts, settled_nanos = [], 0
        for row in rows:
            if row["number"] is None:
                settled_nanos += self._note_written(row)
            else:
                verdicts.append(_verdict(row))
        if settled_nanos:
            metrics.SETTLED_USD.inc(settled_nanos / 1e9)
        if self._database.losses != losses:
            # This may have been a repetition, and the first statement may run yet: what was refused
            # now may then be admitted.
            for hold, verdict in zip(holds, verdicts, strict=True):
                if isinstance(verdict, ServiceError) and not hold.is_moved:
                    self._undo(hold)
        return verdicts

    async def _run(
        self, database: Database | Kept, settled: str | None, calls: str | None
    ) -> Sequence[Any]:
        try:
            rows = await database.fetch(
                SETTLE_AND_ADMIT, settled, calls, self._process_id, LEASE_S, self._most_end_users
            )
        except Exception as error:
            self.condition.failed(error)
            if is_schema_error(error):
                # No other call fares better, and settlements wait until it is mended.
                raise Unavailable("The books cannot be written.", retry_after_s=5) from error
            raise
        self.condition.succeeded()
        return rows

    def _undo(self, hold: Hold) -> None:
        """Nobody waits for this admission any more, and whether it was made is not known: end what
        may have become of it, at once and once more when no statement can be under way.

        In an outage every call that is refused comes here. Beyond the bound a hold, should there be
        one, is left to run out."""
        if len(self._undoing) >= MOST_UNDOING:
            self._open.pop(hold.id, None)
            return
        entry = not_sent(hold)

        async def undo() -> None:
            await self._batches.end_of_batch()
            await asyncio.wait({self.settle(entry)})
            await asyncio.sleep(UNDO_AGAIN_S)
            await asyncio.wait({self.settle(entry)})

        task = asyncio.create_task(undo())
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def limits_of(self, hold: Hold) -> Sequence[Limit]:
        """The limits that the call meets, as they stand.

        :raises Unavailable: when the database does not answer.
        """
        end_user = bytes.fromhex(hold.end_user or "")
        return await list_binding(
            self._database, hold.organization_id, hold.api_key_id, end_user, hold.model
        )

    async def would_admit(self, hold: Hold) -> Standing:
        """What :meth:`admit` would say now. The call is admitted, and that is taken back before
        anybody sees it: so the answer is what the call itself would get.

        :raises Unavailable: when the database cannot say, or too many ask.
        """
        end_user = bytes.fromhex(hold.end_user or "")
        calls = msgspec.json.encode([hold]).decode()
        arguments = (calls, self._process_id, LEASE_S, self._most_end_users)
        try:
            async with (
                asyncio.timeout(ADMIT_TIMEOUT_S),
                self._trying,
                self._database.transaction() as conn,
            ):
                limits = await list_binding(
                    conn, hold.organization_id, hold.api_key_id, end_user, hold.model
                )
                row = await conn.fetchrow(SETTLE_AND_ADMIT, None, *arguments)
                raise _TakenBack
        except _TakenBack:
            return Standing(limits=limits, outcome=_verdict(row))
        except TimeoutError as error:
            raise Unavailable("The books do not answer.", retry_after_s=1) from error

    async def rehearse(self, conn: Any, api_key_id: UUID, ballast_bytes: int) -> None:
        """Admit and settle a call of the operator's organization, in a transaction that is taken
        back. With ballast it needs pages that the tables do not have yet, so it fails while the
        disk is full, although a small row may still find room.

        :raises Exception: whatever stands in the way of any call.
        """
        hold = Hold(
            organization_id=OPERATOR_ORGANIZATION_ID,
            id=uuid7(),
            api_key_id=api_key_id,
            request_id="rehearsal",
            endpoint="rehearsal",
            model="rehearsal",
            is_stream=False,
            bound_nanos=0,
            bound_tokens=0,
            tags={"ballast": secrets.token_hex(ballast_bytes // 2)} if ballast_bytes else None,
        )
        entry = not_sent(hold)
        for settled, calls in ((None, [hold]), ([entry.row()], None)):
            rows = await conn.fetch(
                SETTLE_AND_ADMIT,
                settled and msgspec.json.encode(settled).decode(),
                calls and msgspec.json.encode(calls).decode(),
                self._process_id,
                LEASE_S,
                self._most_end_users,
            )
            if len(rows) != 1 or rows[0]["verdict"] not in (None, "admitted"):
                raise Unavailable("The books refuse a call without a limit.")

    def settle(self, entry: Entry) -> asyncio.Future[None]:
        """Write the entry; the future is done when it is in the books.

        It is tried until it is written, whoever waits for it. If the process ends first, the hold
        is what remains of the call, and the sweeper settles that. Where there is no hold (the call
        was never admitted, or is settled) nothing is written.
        """
        future: asyncio.Future[None]
        if entry.hold.id in self._moving:
            future = asyncio.ensure_future(self._settle_moved(entry))
        else:
            future = self._batches.settle(entry)
        self._settling.add(future)
        future.add_done_callback(functools.partial(self._end, entry))
        return future

    async def _settle_moved(self, entry: Entry) -> None:
        """Settle a call whose move was not waited for, when it can no longer come in between."""
        await self._batches.end_of_batch()
        await self._batches.settle(entry)

    def _end(self, entry: Entry, settling: asyncio.Future[None]) -> None:
        hold = entry.hold
        if entry.max_nanos is not None and entry.cost_nanos is not None:
            self._implausible.add(
                ImplausibleCost(
                    hold.organization_id, hold.id, entry.model, entry.cost_nanos, entry.max_nanos
                )
            )
            self.alerts_are_due.set()
        self._settling.discard(settling)
        self._open.pop(hold.id, None)
        self._sent.pop(hold.id, None)
        self._moving.discard(hold.id)

    async def _settle(self, entries: Sequence[Entry]) -> None:
        """Write the entries, however long it takes."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._write(entries, (), self._database)
            except Unavailable:
                metrics.SETTLEMENT_RETRIES.inc()
                log.warning(
                    "settlements wait for the database", count=len(entries), retry_s=pause_s
                )
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RETRY_MOST_S)
            except Exception:
                if len(entries) > 1:
                    # One that cannot be written keeps no other from it.
                    for entry in entries:
                        await self._settle([entry])
                else:
                    # The books must say what they could not take.
                    metrics.UNWRITTEN.inc()
                    log.exception("settlement failed", **_facts(entries[0]))
                return
            else:
                return

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

    async def report_implausible(self) -> None:
        """Report to the operator costs that no call of their model can have.

        :raises Unavailable: when the database cannot take it.
        """
        await self._implausible.record()

    async def renew_leases(self) -> None:
        """Keep what this process has in flight from the sweeper."""
        holds = list(self._open.values())
        if holds:
            sent = [self._sent.get(hold.id, NOT_SENT) for hold in holds]
            await self._database.fetch(
                RENEW_LEASES,
                list({hold.organization_id for hold in holds}),
                [hold.id for hold in holds],
                [known.upstream_key_id for known in sent],
                [known.upstream_request_id for known in sent],
                LEASE_S,
            )

    def note_sent(self, hold: Hold, sent: Sent) -> None:
        """What is known of the call at Venice; kept with its hold when its lease is renewed."""
        if hold.id in self._open:
            self._sent[hold.id] = sent

    async def flush(self, timeout: float) -> int:
        """Wait for the settlements under way; returns how many were not written in time."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._batches.end_of_batch()
                # What is to be undone of that batch is among the settlements after this turn.
                await asyncio.sleep(0)
        while self._settling and time.monotonic() < deadline:
            await asyncio.wait(set(self._settling), timeout=deadline - time.monotonic())
        left = len(self._settling)
        if left:
            log.error("settlements not written; their holds remain", count=left)
        for task in self._undoing:
            task.cancel()
        self._batches.close()
        return left


def _verdict(row: Any) -> Admission | ServiceError:
    said = row["verdict"]
    if said == "admitted":
        return Admission(
            bound_nanos=row["granted_nanos"],
            bound_tokens=row["granted_tokens"],
            rates=Rates.of(row),
        )
    if said == "organization_inactive":
        return Forbidden("The organization is not active.", code=said)
    if said == "not_held":
        return Unavailable("The hold of the call has run out.")
    if said.endswith("_api_key"):
        return Unauthenticated("The API key is no longer in force.", code=said)
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
