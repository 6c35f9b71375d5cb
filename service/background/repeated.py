"""Background work: how it is started, repeated and ended, and what happens when it fails."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Final

import structlog

from service.errors import Unavailable, UpstreamError

log = structlog.get_logger()

MIN_RETRY_S: Final = 1.0
"""Nothing wakes work that failed before this, so that it does not fail in a tight loop."""
MAX_RETRY_S: Final = 900.0
END_TIMEOUT_S: Final = 5.0


def every(
    interval_s: float,
    work: Callable[[], Awaitable[object]],
    name: str,
    *,
    waits_first: bool = False,
    wake: asyncio.Event | None = None,
    retry_s: float | None = None,
    jitter: float = 0.0,
) -> asyncio.Task[None]:
    """Start a task that does the work, waits for the interval, and does it again until it is
    cancelled.

    An exception is logged and the work is repeated. So is work that returns False because
    something kept it from finishing. With ``retry_s`` these repetitions come after that pause,
    which doubles up to ``MAX_RETRY_S``; without it they come after the interval. ``wake`` ends a
    pause early. ``jitter`` is the part of each pause by which it is made longer or shorter, so that
    replicas do not work at the same moment.
    """
    return start(name, _repeat(interval_s, work, name, waits_first, wake, retry_s, jitter))


async def _repeat(
    interval_s: float,
    work: Callable[[], Awaitable[object]],
    name: str,
    waits_first: bool,
    wake: asyncio.Event | None,
    retry_s: float | None,
    jitter: float,
) -> None:
    first_retry_s = interval_s if retry_s is None else retry_s
    next_retry_s = first_retry_s
    if waits_first:
        await _pause(interval_s, wake, jitter)
    while True:
        if wake is not None:
            wake.clear()
        if await _is_done(work, name, next_retry_s):
            pause_s = interval_s
            next_retry_s = first_retry_s
        else:
            await asyncio.sleep(min(MIN_RETRY_S, next_retry_s))
            pause_s = max(0.0, next_retry_s - MIN_RETRY_S)
            if retry_s is not None:
                next_retry_s = min(next_retry_s * 2, MAX_RETRY_S)
        await _pause(pause_s, wake, jitter)


async def _is_done(work: Callable[[], Awaitable[object]], name: str, retry_s: float) -> bool:
    try:
        return await work() is not False
    except (Unavailable, UpstreamError) as error:
        # The database or Venice is away, which needs no traceback. The cause is the driver's error.
        log.warning(
            "background work failed",
            work=name,
            error=str(error),
            cause=type(error.__cause__).__name__ if error.__cause__ else None,
            retry_s=retry_s,
        )
    except Exception:
        log.exception("background work failed", work=name, retry_s=retry_s)
    return False


async def _pause(seconds: float, wake: asyncio.Event | None, jitter: float) -> None:
    seconds *= random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - not a secret
    if wake is None:
        await asyncio.sleep(seconds)
        return
    # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes together with
    # the event, and then the task never ends.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()


def start(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start work that repeats itself. If it ever ends by itself, that is logged as critical."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_end)
    return task


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("background work ended", work=task.get_name(), exc_info=task.exception())


async def end(running: Collection[asyncio.Task[None]]) -> None:
    """Cancel the tasks and wait for their end. A task that does not end within ``END_TIMEOUT_S`` is
    logged and left, so that it cannot hold up the end of the process."""
    for task in running:
        task.cancel()
    _, left = await asyncio.wait(running, timeout=END_TIMEOUT_S)
    for task in left:
        log.error("background work does not end", work=task.get_name())
