"""Waits for a future without cancelling it."""

import asyncio
from typing import Any


async def is_done_within(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Wait until the future is done, for ``timeout`` seconds at most, and return whether it is.

    The future goes on, even if the wait is cancelled. ``asyncio.wait`` does the same for any number
    of futures, and takes twice as long for one.
    """
    if future.done():
        return True
    loop = future.get_loop()
    waiter = loop.create_future()

    def wake(_: Any = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, wake)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
    return future.done()
