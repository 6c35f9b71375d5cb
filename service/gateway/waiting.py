"""Waiting for one thing, for a while."""

import asyncio
from typing import Any


async def is_done_within(future: asyncio.Future[Any], timeout: float | None) -> bool:
    """Whether the future is done after so many seconds at most; without a number, when it is. What
    it stands for goes on, even if this is cancelled: ``asyncio.wait`` for one future alone, for
    which that takes twice as long."""
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
