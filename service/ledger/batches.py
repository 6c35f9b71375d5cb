"""Many callers, one transaction: what arrives while one is under way goes with the next."""

import asyncio
from collections import deque
from collections.abc import Sequence, Sized
from typing import Final, TypeVar

from service.errors import Unavailable
from service.ledger.records import Admission, Entry, Hold
from service.ledger.writer import BatchWriter

I = TypeVar("I")  # noqa: E741 - what goes in
O = TypeVar("O")  # noqa: E741 - what comes out

MAX_BATCH: Final = 256
PARTS: Final = 3
"""A batch takes at most 1/PARTS of the open calls, so the process has work while PostgreSQL runs
the batch. Otherwise the two take turns idling."""
MIN_BATCH: Final = 8
"""A smaller batch costs more in transactions than it saves in waiting."""
LINGER_S: Final = 0.1
"""How long the idle worker keeps its connection."""


class Batches:
    """Holds to take and entries to write. One loop writes whatever is queued, without waiting for
    more: up to a third of the ``open_calls`` together, one batch at a time.

    An admission is tried once, and hears of what went wrong, or a TimeoutError after ``admit_s``
    seconds. A settlement that fails is tried alone until it is written; until then other
    settlements wait, and admissions go without them.
    """

    def __init__(
        self, writer: BatchWriter, open_calls: Sized, *, max_admitting: int, admit_s: float
    ) -> None:
        self._writer = writer
        self._open_calls = open_calls
        self._max_admitting = max_admitting
        self._admit_s = admit_s
        self._admissions: deque[tuple[Hold, asyncio.Future[Admission]]] = deque()
        self._settlements: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        """Never more than admitted calls and admissions to undo, which are both bounded."""
        self._awaited: deque[tuple[float, asyncio.Future[Admission]]] = deque()
        """Admissions that are not decided, with their deadlines, in order; one timer is for all."""
        self._next_deadline: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None
        self._late: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def admit(self, hold: Hold) -> asyncio.Future[Admission]:
        """Queue the hold. One whose future is cancelled before its batch begins is left out.

        :raises Unavailable: when too many wait already.
        """
        if len(self._admissions) >= self._max_admitting:
            raise Unavailable("Too many calls are waiting for the books.", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Admission] = loop.create_future()
        self._admissions.append((hold, future))
        self._awaited.append((loop.time() + self._admit_s, future))
        if self._next_deadline is None:
            self._set_deadline(loop)
        self._wake()
        return future

    def settle(self, entry: Entry) -> asyncio.Future[None]:
        """Queue the entry; the future is done when it is written."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlements.append((entry, future))
        self._wake()
        return future

    async def end_of_batch(self) -> None:
        """Wait for the end of the batch that is under way now, if any: what became of a hold whose
        future was cancelled is decided then."""
        await self._at_rest.wait()

    def close(self) -> None:
        """Stop; what waits is cancelled."""
        for task in (self._working, self._late):
            if task is not None:
                task.cancel()
        if self._next_deadline is not None:
            self._next_deadline.cancel()
        for queue in (self._admissions, self._settlements):
            for _, future in queue:
                future.cancel()
            queue.clear()

    def _set_deadline(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline, _ = self._awaited[0]
        self._next_deadline = loop.call_at(deadline, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next_deadline = None
        while self._awaited:
            deadline, future = self._awaited[0]
            if not future.done():
                if deadline > loop.time():
                    self._set_deadline(loop)
                    return
                future.set_exception(TimeoutError())
            self._awaited.popleft()

    def _wake(self) -> None:
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        else:
            self._woken.set()

    async def _work(self) -> None:
        has_waited = False
        try:
            while True:
                if self._admissions or (self._settlements and self._late is None):
                    # What arrives in this turn of the loop goes along.
                    await asyncio.sleep(0)
                    await self._run_next()
                    has_waited = False
                elif not has_waited:
                    self._woken.clear()
                    timer = asyncio.get_running_loop().call_later(LINGER_S, self._woken.set)
                    try:
                        await self._woken.wait()
                    finally:
                        timer.cancel()
                    has_waited = True
                else:
                    break
        finally:
            # Since the last look at the queues there was no await, so nothing can have arrived that
            # nobody would wake up for.
            self._working = None
            await self._writer.give_back()

    async def _run_next(self) -> None:
        # What is undone after an outage waits too, and is under way no more.
        waiting = len(self._admissions) + len(self._settlements)
        part = max(len(self._open_calls), waiting) // PARTS
        most = min(max(part, MIN_BATCH), MAX_BATCH)
        holds, admitting = _take(self._admissions, most) if self._admissions else ([], [])
        entries: Sequence[Entry] = ()
        settling: Sequence[asyncio.Future[None]] = ()
        if self._settlements and self._late is None:
            entries, settling = _take(self._settlements, most)
        if not holds and not entries:
            return
        self._at_rest.clear()
        verdicts: Sequence[Admission | Exception]
        try:
            verdicts = await self._writer.write(entries, holds)
        except Exception as error:  # noqa: BLE001 - it goes to those who wait
            if entries:
                self._late = asyncio.create_task(self._settle_late(entries, settling))
            verdicts = await self._admit_apart(error, holds, was_alone=not entries)
        else:
            if settling:
                _settled(settling)
        finally:
            self._at_rest.set()
        if admitting:
            _decided(admitting, verdicts)
        # A refusal leads to the whole of its call, which would stay until its deadline.
        while self._awaited and self._awaited[0][1].done():
            self._awaited.popleft()

    async def _admit_apart(
        self, error: Exception, holds: Sequence[Hold], *, was_alone: bool
    ) -> Sequence[Admission | Exception]:
        """The verdicts for holds whose batch failed. One that the books cannot take keeps no other
        from them; but where the holds were not alone in the batch, it may be the fault of an entry.
        """
        if isinstance(error, Unavailable) or not holds or (was_alone and len(holds) == 1):
            return [error] * len(holds)
        verdicts: list[Admission | Exception] = []
        for part in [[hold] for hold in holds] if was_alone else [holds]:
            try:
                verdicts += await self._writer.write((), part)
            except Exception as its_error:  # noqa: BLE001 - it goes to those who wait
                verdicts += await self._admit_apart(its_error, part, was_alone=True)
        return verdicts

    async def _settle_late(
        self, entries: Sequence[Entry], settling: Sequence[asyncio.Future[None]]
    ) -> None:
        try:
            await self._writer.settle(entries)
            _settled(settling)
        finally:
            self._late = None
        if self._settlements:
            self._wake()


def _take(
    queue: deque[tuple[I, asyncio.Future[O]]], most: int
) -> tuple[list[I], list[asyncio.Future[O]]]:
    """The next batch of so many at most, without what was cancelled while it waited."""
    items: list[I] = []
    futures: list[asyncio.Future[O]] = []
    while queue and len(items) < most:
        item, future = queue.popleft()
        if not future.done():
            items.append(item)
            futures.append(future)
    return items, futures


def _settled(settling: Sequence[asyncio.Future[None]]) -> None:
    for future in settling:
        if not future.done():
            future.set_result(None)


def _decided(
    admitting: Sequence[asyncio.Future[Admission]], verdicts: Sequence[Admission | Exception]
) -> None:
    for future, verdict in zip(admitting, verdicts, strict=True):
        if future.done():
            continue
        if isinstance(verdict, Exception):
            future.set_exception(verdict)
        else:
            future.set_result(verdict)
