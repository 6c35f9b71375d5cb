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
from service.database.database import Database
from service.errors import LimitExceeded, ServiceError, Unavailable
from service.ids import uuid7
from service.ledger.batches import Batches
from service.ledger.condition import Condition
from service.ledger.implausible import ImplausibleCost, ImplausibleCosts
from service.ledger.limits import Limit, list_binding
from service.ledger.records import NOT_SENT, Admission, Entry, Hold, Sent, not_sent
from service.ledger.refusals import has_room_within
from service.ledger.writer import LEASE_S, SETTLE_AND_ADMIT, BatchWriter, verdict_of
from service.telemetry import metrics

log = structlog.get_logger()

ADMIT_TIMEOUT_S: Final = 5.0
MAX_END_USERS: Final = 100_000
MAX_ADMITTING: Final = 10_000
MAX_UNDOING: Final = 10_000
MAX_WAIT_S: Final = 1.0
"""How long a refused call waits for a rate of a minute that has room by then."""
MAX_WAITING: Final = 200
UNDO_AGAIN_S: Final = 30.0
"""Later than the server lets any statement run."""

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
    SET lease_until = now() + make_interval(secs => $5),
        upstream_key_id = k.upstream_key_id,
        upstream_request_id = k.upstream_request_id
    FROM free
    JOIN unnest($2::uuid[], $3::uuid[], $4::text[]) AS k (id, upstream_key_id, upstream_request_id)
        USING (id)
    WHERE h.organization_id = free.organization_id
      AND h.id = free.id
"""


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that a call would meet, and the verdict of admission."""

    limits: Sequence[Limit]
    outcome: Admission | ServiceError


class _TakenBack(Exception):
    """Ends a transaction without a trace."""


class Ledger:
    """Admits and settles the calls of one process."""

    def __init__(
        self, database: Database, process_id: UUID, max_end_users: int = MAX_END_USERS
    ) -> None:
        self._database = database
        self._writer = BatchWriter(database, process_id, max_end_users, self._undo)
        self._implausible = ImplausibleCosts(database)
        self._open: dict[UUID, tuple[Hold, Sent]] = {}
        self._batches = Batches(
            self._writer,
            self._open,
            max_admitting=MAX_ADMITTING,
            admit_s=ADMIT_TIMEOUT_S,
        )
        # One at a time, since it locks limits that calls wait for.
        self._trying = asyncio.Semaphore(1)
        self._moving: set[UUID] = set()
        """Holds whose move is under way, or whose end nobody has waited for."""
        self._undoing: set[asyncio.Task[None]] = set()
        self._waiting = asyncio.Semaphore(MAX_WAITING)

    @property
    def condition(self) -> Condition:
        """Whether the books can be written."""
        return self._writer.condition

    @property
    def alerts_are_due(self) -> asyncio.Event:
        """Set when a settlement has brought a limit to the next of its thresholds."""
        return self._writer.alerts_are_due

    async def admit(self, hold: Hold, sent: Sent = NOT_SENT) -> Admission:
        """Take the hold on every limit that applies to the call, or on none. What becomes known of
        the call at Venice is ``sent``, which is stored when the lease of the hold is renewed.

        :raises LimitExceeded, RateLimited: naming the limit that has no room.
        :raises Unauthenticated, Forbidden: when key or organization are no longer in force.
        :raises Unavailable: when the database is unavailable: no new calls without books.
        """
        future = self._batches.admit(hold)
        self._open[hold.id] = hold, sent
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
            if isinstance(error, LimitExceeded):
                await self._implausible.explain(error, hold.organization_id)
            raise
        except BaseException:
            self._open.pop(hold.id, None)
            raise
        finally:
            waited_s = time.perf_counter() - submitted_at
            metrics.noted.append((metrics.ADMISSION_SECONDS, waited_s, ()))

    def count_refusal(self, refusal: ServiceError) -> None:
        """Count a call that is not admitted after all, if a limit refused it."""
        if (limit := refusal.limit) is not None:
            metrics.REFUSALS.labels(refusal.code, limit["unit"], limit["scope"]).inc()

    async def wait_for_room(self, refusal: ServiceError) -> bool:
        """Wait where a rate of a minute has room within a second; returns whether to ask again,
        with a hold of another id.

        Such a rate counts a call for up to a second longer than a minute, and its refusals name 60
        seconds at most: a call that comes then may be early by that second.
        """
        if not has_room_within(refusal, MAX_WAIT_S) or self._waiting.locked():
            return False
        async with self._waiting:
            await asyncio.sleep(MAX_WAIT_S)
        return True

    async def move(self, hold: Hold) -> Admission:
        """Swap the hold of this id for another, in one step: what it holds is room for that one. If
        it cannot be, it stays what it is.

        :raises LimitExceeded, RateLimited, Unauthenticated, Forbidden: as :meth:`admit`.
        :raises Unavailable: when the hold has run out, or the database is unavailable; then either
            of the two is held, and settling ends it.
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

    def _undo(self, hold: Hold) -> None:
        """Nobody waits for this admission any more, and whether it was made is not known: end what
        may have become of it, at once and once more when no statement can be under way.

        In an outage every call that is refused comes here. Beyond the bound a hold, should there be
        one, is left to run out."""
        if len(self._undoing) >= MAX_UNDOING:
            self._open.pop(hold.id, None)
            return
        entry = not_sent(hold)

        async def undo() -> None:
            await self._batches.end_of_batch(hold)
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

    async def would_admit(self, hold: Hold) -> DryRun:
        """Return the verdict that :meth:`admit` would give now. The call is admitted in a
        transaction that is rolled back, so this is the verdict that the call itself would get.

        :raises Unavailable: when the database is unavailable, or too many ask.
        """
        end_user = bytes.fromhex(hold.end_user or "")
        try:
            async with (
                asyncio.timeout(ADMIT_TIMEOUT_S),
                self._trying,
                self._database.transaction() as conn,
            ):
                limits = await list_binding(
                    conn, hold.organization_id, hold.api_key_id, end_user, hold.model
                )
                (row,) = await conn.fetch(SETTLE_AND_ADMIT, *self._writer.arguments((), [hold]))
                raise _TakenBack
        except _TakenBack:
            return DryRun(limits=limits, outcome=verdict_of(row))
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
        for entries, holds in (((), [hold]), ([not_sent(hold)], ())):
            rows = await conn.fetch(SETTLE_AND_ADMIT, *self._writer.arguments(entries, holds))
            if len(rows) != 1 or rows[0]["verdict"] not in (None, "admitted"):
                raise Unavailable("The books refuse a call without a limit.")

    def settle(self, entry: Entry) -> asyncio.Future[None]:
        """Write the entry; the future is done when it is in the books.

        It is tried until it is written, whoever waits for it. If the process ends first, the hold
        is what remains of the call, and the sweeper settles that. Where there is no hold (the call
        was never admitted, or is settled) nothing is written.
        """
        if entry.hold.id in self._moving:
            moved = asyncio.create_task(self._settle_moved(entry))
            self._undoing.add(moved)
            moved.add_done_callback(self._undoing.discard)
            return moved
        future = self._batches.settle(entry)
        if entry.max_nanos is not None:
            future.add_done_callback(functools.partial(self._report, entry))
        return future

    async def _settle_moved(self, entry: Entry) -> None:
        """Settle a call whose move was not waited for, when it can no longer come in between."""
        await self._batches.end_of_batch(entry.hold)
        self._moving.discard(entry.hold.id)
        await self.settle(entry)

    def _report(self, entry: Entry, _: asyncio.Future[None]) -> None:
        """Have the operator hear of a settled cost that no call of the model can have."""
        hold = entry.hold
        if entry.max_nanos is not None and entry.cost_nanos is not None:
            self._implausible.add(
                ImplausibleCost(
                    hold.organization_id, hold.id, entry.model, entry.cost_nanos, entry.max_nanos
                )
            )
            self.alerts_are_due.set()

    async def report_implausible(self) -> None:
        """Report to the operator costs that no call of their model can have.

        :raises Unavailable: when the database cannot take it.
        """
        await self._implausible.record()

    async def renew_leases(self) -> None:
        """Keep what this process has in flight from the sweeper."""
        calls = list(self._open.values())
        if calls:
            await self._database.fetch(
                RENEW_LEASES,
                list({hold.organization_id for hold, _ in calls}),
                [hold.id for hold, _ in calls],
                [sent.upstream_key_id for _, sent in calls],
                [sent.upstream_request_id for _, sent in calls],
                LEASE_S,
            )

    async def flush(self, timeout: float) -> int:
        """Wait for the settlements under way; returns how many were not written in time."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._batches.end_of_batch()
                # What is to be undone of that batch is among the settlements after this turn.
                await asyncio.sleep(0)
        unsettled = self._batches.unsettled
        while unsettled and (left_s := deadline - time.monotonic()) > 0:
            await asyncio.wait(set(unsettled), timeout=left_s)
        left = len(unsettled)
        if left:
            log.error("settlements not written; their holds remain", count=left)
        for task in self._undoing:
            task.cancel()
        self._batches.close()
        return left
