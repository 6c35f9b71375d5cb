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

    ``active_at`` is the time of the last activity, infinite while no activity is expected.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, silence_s: float, on_passed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._silence_s = silence_s
        self._on_passed = on_passed
        self._timer: asyncio.TimerHandle | None = None
        self.now = loop.time
        self.active_at = math.inf
        self.due_at = math.inf

    def begin(self, timeout_s: float) -> None:
        """Start to watch an exchange whose head must come within ``timeout_s``.

        Nothing ends the watch: a connection without an exchange ignores its deadline, so the timer
        stays for the next exchange."""
        self.active_at = now = self.now()
        self.due_at = now + timeout_s
        due_at = now + min(timeout_s, self._silence_s)
        timer = self._timer
        if timer is None or timer.when() > due_at:
            self._set_timer(due_at)

    def pause(self) -> None:
        """Expect no activity until :meth:`resume`."""
        self.active_at = math.inf

    def resume(self) -> None:
        """Expect activity again from now on."""
        self.active_at = self.now()
        if self._timer is None:
            self._set_timer(self.active_at + self._silence_s)

    def cancel(self) -> None:
        """Remove the timer."""
        self.active_at = self.due_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._check)

    def _check(self) -> None:
        self._timer = None
        due_at = min(self.due_at, self.active_at + self._silence_s)
        if due_at <= self.now() + TOLERANCE_S:
            self._on_passed()
        elif due_at < math.inf:
            self._set_timer(due_at)
