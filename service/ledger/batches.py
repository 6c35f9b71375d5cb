"""Many callers, one transaction: what arrives while one is under way goes with the next."""

import asyncio
from collections import deque
from collections.abc import Iterable, MutableMapping
from typing import Any, Final
from uuid import UUID

import msgspec

from service.database.database import StickyConnection
from service.errors import Unavailable
from service.ledger.deadlines import Deadlines
from service.ledger.records import Admission, Entry, Hold
from service.ledger.writer import Batch, BatchWriter

MAX_BATCH: Final = 256
PARTS: Final = 3
"""A batch takes at most 1/PARTS of the open calls, so the process has work while PostgreSQL runs
the batch. Otherwise the two take turns idling."""
MIN_BATCH: Final = 8
"""A smaller batch costs more in transactions than it saves in waiting."""
MAX_ORGANIZATIONS: Final = 32
"""A batch keeps the limits of all of its organizations locked until it is committed."""
GROUPS: Final = 3
"""Every process puts an organization into the same group, so batches of different groups never wait
for each other's locks."""
MIN_APART: Final = 96
"""With fewer calls the batches of the groups would be so small that they cost more in transactions
than they save in waiting for locks: with 64 calls in a process, PostgreSQL's CPU time for a call
grew by half."""
LINGER_S: Final = 0.1
"""How long an idle writer keeps its connection."""


class Group(msgspec.Struct, eq=False):
    """The calls of some organizations that wait for a batch. Only one batch at a time has calls of
    a group, so the calls of an organization stay in order."""

    admissions: deque[tuple[Hold, asyncio.Future[Admission]]] = msgspec.field(default_factory=deque)
    settlements: deque[tuple[Entry, asyncio.Future[None]]] = msgspec.field(default_factory=deque)
    """Never more than admitted calls and admissions to undo, which are both bounded."""
    is_idle: bool = True
    """False while the group is in line for a batch, or in one."""
    late: asyncio.Task[None] | None = None
    """Tries settlements again that failed, which the others wait for."""
    batch: "GroupedBatch | None" = None
    """The batch that has calls of the group now."""


class GroupedBatch(Batch):
    """A batch of calls of one or more groups."""

    groups: list[Group] = msgspec.field(default_factory=list)
    organizations: set[UUID] = msgspec.field(default_factory=set)
    undecided: int = 0
    """How many admissions it took from queues, with those that were cancelled."""
    ended: list[asyncio.Future[None]] = msgspec.field(default_factory=list)
    """Done when the batch has ended."""

    def take(self, group: Group, most: int) -> None:
        """Take what waits in the group, settlements before admissions, until the batch has ``most``
        of them or the next would be of one organization too many. An admission that was cancelled
        is dropped; a settlement is written, whoever waits for it."""
        self.groups.append(group)
        group.batch = self
        organizations = self.organizations
        settlements, admissions = group.settlements, group.admissions
        while settlements and len(self.entries) < most and group.late is None:
            entry, settled = settlements[0]
            organizations.add(entry.hold.organization_id)
            if len(organizations) > MAX_ORGANIZATIONS:
                break
            settlements.popleft()
            self.entries.append(entry)
            self.settling.append(settled)
        while admissions and len(self.holds) < most:
            hold, admitted = admissions[0]
            organizations.add(hold.organization_id)
            if len(organizations) > MAX_ORGANIZATIONS:
                break
            admissions.popleft()
            self.undecided += 1
            if not admitted.done():
                self.holds.append(hold)
                self.admitting.append(admitted)


class Batches:
    """Holds to take and entries to write. A batch takes what is queued, without waiting for more,
    up to a third of the ``open_calls``. A call leaves these when it is settled.

    Calls of all groups go together, one batch at a time, until most of many open calls wait for the
    books. Then each batch has one group, and the groups are written at once.

    An admission is tried once, and hears of what went wrong, or a TimeoutError after ``admit_s``
    seconds. A settlement that fails is tried alone until it is written; until then other
    settlements of its group wait, and admissions go without them.
    """

    def __init__(
        self,
        writer: BatchWriter,
        open_calls: MutableMapping[UUID, Any],
        *,
        max_admitting: int,
        admit_s: float,
    ) -> None:
        self._writer = writer
        self._open_calls = open_calls
        self._max_admitting = max_admitting
        self._deadlines = Deadlines(admit_s)
        self._groups = [Group() for _ in range(GROUPS)]
        self._line: deque[Group] = deque()
        """Groups that have work and are in no batch. The first has waited longest."""
        self._undecided = 0
        """How many admissions are queued, or in a batch."""
        self.unsettled: set[asyncio.Future[None]] = set()
        self._are_apart = False
        """Whether each batch has one group."""
        self._writers: set[asyncio.Task[None]] = set()
        self._idle: list[tuple[float, asyncio.Future[bool]]] = []
        """The writers among these that wait for work, with the time since when. The last one is
        woken first."""
        self._idle_timer: asyncio.TimerHandle | None = None

    def admit(self, hold: Hold) -> asyncio.Future[Admission]:
        """Queue the hold. One whose future is cancelled before its batch begins is left out.

        :raises Unavailable: when too many wait already.
        """
        if self._undecided >= self._max_admitting:
            raise Unavailable("Too many calls are waiting for the books.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Admission] = loop.create_future()
        self._deadlines.add(future, loop)
        self._undecided += 1
        self._line_up(hold).admissions.append((hold, future))
        return future

    def settle(self, entry: Entry) -> asyncio.Future[None]:
        """Queue the entry; the future is done when it is written."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unsettled.add(future)
        self._line_up(entry.hold).settlements.append((entry, future))
        return future

    async def end_of_batch(self, hold: Hold | None = None) -> None:
        """Wait for the end of the batch that is under way now in the group of the hold, if any, or
        of all batches: what became of a hold whose future was cancelled is decided then."""
        groups = self._groups if hold is None else [self._group_of(hold)]
        loop = asyncio.get_running_loop()
        ends = []
        for group in groups:
            if group.batch is not None:
                ends.append(loop.create_future())
                group.batch.ended.append(ends[-1])
        if ends:
            await asyncio.wait(ends)

    def close(self) -> None:
        """Stop; what waits is cancelled."""
        self._deadlines.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        late = {group.late for group in self._groups if group.late is not None}
        for task in self._writers | late:
            task.cancel()
        for group in self._groups:
            for queue in (group.admissions, group.settlements):
                for _, future in queue:
                    future.cancel()
                queue.clear()

    def _group_of(self, hold: Hold) -> Group:
        # The hash of a UUID is that of its number, which is the same in every process.
        return self._groups[hash(hold.organization_id) % GROUPS]

    def _line_up(self, hold: Hold) -> Group:
        """Put the hold's group in line for a batch, and wake a writer if one can begin now."""
        group = self._group_of(hold)
        if group.is_idle:
            group.is_idle = False
            self._line.append(group)
            if self._are_apart or len(self._idle) == len(self._writers):
                self._wake()
        return group

    def _wake(self) -> None:
        """Wake a writer, unless all are awake."""
        if self._idle:
            _, woken = self._idle.pop()
            woken.set_result(True)
        elif len(self._writers) < self._writer.max_connections:
            self._writers.add(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        """Write batches, until there was none for a while."""
        connection = self._writer.connect()
        loop = asyncio.get_running_loop()
        try:
            while True:
                while self._line and (batch := self._take()) is not None:
                    try:
                        if batch.entries or batch.holds:
                            await self._writer.write(batch, connection)
                    except Exception as error:  # noqa: BLE001 - it goes to those who wait
                        await self._recover(batch, error, connection)
                    self._end(batch)
                    # Its futures lead to whole calls.
                    del batch
                woken = loop.create_future()
                self._idle.append((loop.time(), woken))
                if self._idle_timer is None:
                    self._idle_timer = loop.call_later(LINGER_S, self._end_idle, loop)
                if not await woken and not self._line:
                    return
        finally:
            self._writers.discard(asyncio.current_task())
            await connection.give_back()

    def _end_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the writers that have been idle for LINGER_S."""
        self._idle_timer = None
        ended = [idle for idle in self._idle if idle[0] + LINGER_S <= loop.time()]
        for idle in ended:
            self._idle.remove(idle)
            idle[1].set_result(False)
        if self._idle:
            self._idle_timer = loop.call_at(self._idle[0][0] + LINGER_S, self._end_idle, loop)

    def _take(self) -> GroupedBatch | None:
        """The next batch of the groups in line; None if they wait for the batch under way."""
        line, is_alone = self._line, len(self._writers) - len(self._idle) == 1
        waiting = self._undecided + len(self.unsettled)
        # Once apart, no group waits for another until each has been written.
        if is_alone or not self._are_apart:
            many = max(MIN_APART, len(self._open_calls) * 2 // 3)
            self._are_apart = waiting > many and self._writer.max_connections > 1
        if not is_alone and not self._are_apart:
            return None
        # What is undone after an outage waits too, and is not among the open calls.
        most = max(len(self._open_calls), waiting) // PARTS
        most = min(max(most, MIN_BATCH), MAX_BATCH)
        batch = GroupedBatch()
        batch.take(line.popleft(), most)
        while line and not self._are_apart:
            batch.take(line.popleft(), most)
        if line:
            self._wake()
        return batch

    def _end(self, batch: GroupedBatch) -> None:
        """Let go of a batch's calls and of its groups."""
        if batch.entries:
            self._let_go(batch)
        self._undecided -= batch.undecided
        # The first may have filled the batch, so the next one begins with another.
        for group in (*batch.groups[1:], batch.groups[0]):
            group.batch = None
            group.is_idle = not (group.admissions or (group.settlements and group.late is None))
            if not group.is_idle:
                self._line.append(group)
        for ended in batch.ended:
            ended.set_result(None)

    def _let_go(self, batch: Batch) -> None:
        """Let go of the calls that the batch has settled."""
        for entry, future in zip(batch.entries, batch.settling, strict=True):
            self.unsettled.discard(future)
            self._open_calls.pop(entry.hold.id, None)
            if not future.done():
                future.set_result(None)

    async def _recover(self, batch: Batch, error: Exception, connection: StickyConnection) -> None:
        """Write the entries of a batch that failed alone, and take its holds without them."""
        late = Batch(entries=batch.entries, settling=batch.settling)
        batch.entries, batch.settling = [], []
        if late.entries:
            groups = {self._group_of(entry.hold) for entry in late.entries}
            settling = asyncio.create_task(self._settle_late(late, groups))
            for group in groups:
                group.late = settling
        if batch.holds:
            await self._admit_apart(error, batch, connection, was_alone=not late.entries)

    async def _admit_apart(
        self, error: Exception, batch: Batch, connection: StickyConnection, *, was_alone: bool
    ) -> None:
        """Take the holds of a batch that failed. One that the books cannot take keeps no other from
        them; but where the holds were not alone in the batch, it may be the fault of an entry."""
        if isinstance(error, Unavailable) or (was_alone and len(batch.holds) == 1):
            for future in batch.admitting:
                if not future.done():
                    future.set_exception(error)
            return
        for part in batch.parts() if was_alone else [batch]:
            try:
                await self._writer.write(part, connection)
            except Exception as its_error:  # noqa: BLE001 - it goes to those who wait
                await self._admit_apart(its_error, part, connection, was_alone=True)

    async def _settle_late(self, batch: Batch, groups: Iterable[Group]) -> None:
        await self._writer.settle(batch)
        self._let_go(batch)
        for group in groups:
            group.late = None
            if group.settlements:
                self._line_up(group.settlements[0][0].hold)
