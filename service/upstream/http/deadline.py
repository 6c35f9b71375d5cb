"""The deadline of a connection's current exchange.

Chunks only note the time. One timer per connection looks at that time when it fires and is set
again, so neither a request nor a chunk costs a timer of its own.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final

TOLERANCE_S: Final = 0.002
"""Event loops round times to milliseconds, so a timer may fire a little early."""


class Deadline:
    """Calls ``on_passed`` after ``silence_s`` without activity, or at ``due_at``.

    ``active_at`` is the time of the last activity, infinite while no activity is expected. Whoever
    sets either time calls :meth:`watch` if there is no ``timer``; a timer that runs already fires
    early enough, because no exchange has a deadline sooner than ``silence_s``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, silence_s: float, on_passed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._silence_s = silence_s
        self._on_passed = on_passed
        self.timer: asyncio.TimerHandle | None = None
        self.now = loop.time
        self.active_at = math.inf
        self.due_at = math.inf

    def watch(self) -> None:
        """Set the timer. Nothing stops it but :meth:`cancel`: a connection without an exchange
        ignores its deadline, and the next exchange finds the timer running."""
        at = min(self.due_at, self.active_at + self._silence_s)
        if at < math.inf:
            self.timer = self._loop.call_at(at, self._check)

    def note_activity(self) -> None:
        """Count the silence from now on, if activity is expected."""
        if self.active_at < math.inf:
            self.active_at = self.now()

    def pause(self) -> None:
        """Expect no activity until :meth:`resume`."""
        self.active_at = math.inf

    def resume(self) -> None:
        """Expect activity again from now on."""
        self.active_at = self.now()
        if self.timer is None:
            self.watch()

    def cancel(self) -> None:
        """Remove the timer."""
        self.active_at = self.due_at = math.inf
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _check(self) -> None:
        self.timer = None
        due_at = min(self.due_at, self.active_at + self._silence_s)
        if due_at <= self.now() + TOLERANCE_S:
            self._on_passed()
        else:
            self.watch()
