"""Listens to notifications of the database."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import asyncpg
import structlog

from service.database.connections import (
    PING,
    PING_TIMEOUT_S,
    connect_arguments,
    keep_alive,
)
from service.database.errors import BUSY, HOPELESS, LOST, POOLED, POOLER_HINT
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

CHECK_S: Final = 20.0
"""How long the connection may be silent before it is checked."""


async def listen(address: DatabaseAddress, channel: str, on_notify: Callable[[str], None]) -> None:
    """Listen on a connection apart from the pool, for ever; reconnects with backoff.

    ``on_notify`` gets each payload, and an empty one after every (re)connection, because
    notifications sent in between are lost.
    """
    pause_s = 0.2
    while True:
        try:
            connection = await asyncpg.connect(**connect_arguments(address), command_timeout=5)
            try:
                keep_alive(connection)
                ended = asyncio.Event()
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                await connection.add_listener(
                    channel, lambda *arguments: on_notify(str(arguments[-1]))
                )
                on_notify("")
                pause_s = 0.2
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(CHECK_S):
                            await ended.wait()
                        break
                    await connection.fetchval(PING, timeout=PING_TIMEOUT_S)
                raise ConnectionResetError("the server ended the connection")
            finally:
                connection.terminate()
        except (*POOLED, *LOST, *BUSY, *HOPELESS) as error:
            hint = {"hint": POOLER_HINT} if isinstance(error, POOLED) else {}
            log.warning(
                "listen connection lost", error=type(error).__name__, retry_s=pause_s, **hint
            )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)
