"""Many callers, one statement: what arrives while a batch is under way goes with the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from service.errors import Unavailable

I = TypeVar("I")  # noqa: E741 - what goes in
O = TypeVar("O")  # noqa: E741 - what comes out

MOST_A_BATCH: Final = 256


class Batches(Generic[I, O]):
    """A queue whose items are worked off in batches, one batch at a time and without a timer.

    ``run`` takes a batch and returns one outcome an item, in their order: a value, or an exception
    for that item alone. What ``run`` raises, every item of the batch gets. More than
    ``most_waiting`` items are refused; None is for a queue whose items are counted elsewhere.
    """

    def __init__(
        self,
        run: Callable[[Sequence[I]], Awaitable[Sequence[O | Exception]]],
        most_waiting: int | None,
    ) -> None:
        self._run = run
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[I, asyncio.Future[O]]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def submit(self, item: I) -> asyncio.Future[O]:
        """Queue the item. One whose future is cancelled before its batch begins is left out.

        :raises Unavailable: when too many wait already.
        """
        if self._most_waiting is not None and len(self._waiting) >= self._most_waiting:
            raise Unavailable("Too many calls are waiting for the books.", retry_after_s=1)
        future: asyncio.Future[O] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return future

    async def _work(self) -> None:
        # From the last look at the queue to the end there is no await, so no item can arrive that
        # nobody would wake up for.
        try:
            while self._waiting:
                # What arrives in this turn of the loop goes along.
                await asyncio.sleep(0)
                await self._run_next()
        finally:
            self._working = None

    async def _run_next(self) -> None:
        batch: list[tuple[I, asyncio.Future[O]]] = []
        while self._waiting and len(batch) < MOST_A_BATCH:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        if not batch:
            return
        self._at_rest.clear()
        try:
            outcomes = await self._run([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it goes to those who wait
            outcomes = [error] * len(batch)
        finally:
            self._at_rest.set()
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def end_of_batch(self) -> None:
        """Wait for the end of the batch that is under way now, if any: what became of an item whose
        future was cancelled is decided then."""
        await self._at_rest.wait()

    def close(self) -> None:
        """Stop; what waits is cancelled."""
        if self._working is not None:
            self._working.cancel()
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
