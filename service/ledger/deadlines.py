"""One deadline for many futures, with one timer for all of them."""

import asyncio
import weakref
from collections import deque
from typing import Any


class Deadlines:
    """Fails each future that is not done ``after_s`` seconds after it was added, with a
    TimeoutError. It keeps no future alive."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._awaited: deque[tuple[float, weakref.ref[asyncio.Future[Any]]]] = deque()
        """With their deadlines, which come in this order."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Fail the future at its deadline, unless it is done by then."""
        awaited = self._awaited
        while awaited and ((first := awaited[0][1]()) is None or first.done()):
            awaited.popleft()
        deadline = loop.time() + self._after_s
        awaited.append((deadline, weakref.ref(future)))
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire, loop)

    def close(self) -> None:
        """Fail no more futures."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._awaited:
            deadline, reference = self._awaited[0]
            future = reference()
            if future is not None and not future.done():
                if deadline > loop.time():
                    self._timer = loop.call_at(deadline, self._expire, loop)
                    return
                future.set_exception(TimeoutError())
            self._awaited.popleft()
