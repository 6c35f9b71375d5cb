"""The connections to one origin, kept between exchanges."""

import asyncio
from collections import deque
from typing import Final

from service.upstream.http.connection import Connection, Limits
from service.upstream.http.dial import Dialer, Origin
from service.upstream.http.errors import unreachable

MAX_IDLE_S: Final = 10.0
"""Shorter than the edge's own timeout, so that no request is sent on a connection being closed."""
MAX_AGE_S: Final = 600.0
"""Connections end with the first exchange after this, so that they follow changes of DNS."""
MAX_WAITING: Final = 1000
STOPPING: Final = "The service is stopping, so the request was not sent to Venice."


class Pool:
    """Keeps idle connections, newest first, and bounds the number of all.

    When all places are taken, requests wait in order of arrival. A freed connection goes to the
    first of them, and so does the place of a closed one.
    """

    def __init__(self, origin: Origin, dialer: Dialer, limits: Limits) -> None:
        self._origin = origin
        self._dialer = dialer
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Connection, float] = {}
        """When each idle connection became idle, oldest first."""
        self._connections: set[Connection] = set()
        self._dialing = 0
        """Places that are taken by connections being made."""
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        """Requests that wait for a connection, or with None for the place to make one."""
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take(self) -> Connection | None:
        """Return an idle connection; None if there is none."""
        while self._idle:
            connection, idle_since = self._idle.popitem()
            is_fresh = self._loop.time() - idle_since < MAX_IDLE_S
            if is_fresh and not connection.transport.is_closing():
                return connection
            connection.close()
        return None

    async def connect(self) -> Connection:
        """Return a new connection, or one that another request has freed.

        :raises UpstreamUnreachable: when there is none within ``connect_s``.
        """
        try:
            async with asyncio.timeout(self.limits.connect_s):
                while (freed := await self._wait_for_turn()) is not None:
                    if not freed.transport.is_closing():
                        return freed
                    self.forget(freed)
                return await self._dial()
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            # uvloop raises RuntimeError for some addresses, and names can be invalid.
            raise unreachable() from error

    async def _wait_for_turn(self) -> Connection | None:
        """Return a connection that was freed; None once there is a place to make one, which is then
        taken."""
        if self._is_closed:
            raise unreachable(STOPPING)
        if len(self._connections) + self._dialing < self.limits.max_connections:
            self._dialing += 1
            return None
        if len(self._waiting) >= MAX_WAITING:
            raise unreachable("Too many requests wait for a connection to Venice.")
        turn: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except BaseException:
            if turn.cancelled() or not turn.done():
                self._waiting = deque(one for one in self._waiting if one is not turn)
            elif turn.exception() is not None:
                pass
            elif (connection := turn.result()) is None:
                self._free_place()
            elif connection in self._connections:
                self.give_back(connection)
            raise

    async def _dial(self) -> Connection:
        try:
            connection = await self._dialer.connect(
                self._origin, lambda: Connection(self, self._loop), self.limits.connect_s
            )
            if self._is_closed:
                connection.abort()
                raise unreachable(STOPPING)
            if connection.transport.is_closing():
                raise ConnectionResetError("The server closed the connection at once.")
        except BaseException:
            self._free_place()
            raise
        self._dialing -= 1
        self._connections.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Take a connection whose exchange is complete. An old one is closed."""
        now = self._loop.time()
        if now - connection.opened_at >= MAX_AGE_S:
            connection.close()
            return
        if self._waiting and (turn := self._next_turn()) is not None:
            turn.set_result(connection)
            return
        self._idle[connection] = now
        if self._sweep is None:
            self._sweep = self._loop.call_later(MAX_IDLE_S, self._close_expired)

    def forget(self, connection: Connection) -> None:
        """Count a connection as closed. May be called again."""
        self._idle.pop(connection, None)
        if connection in self._connections:
            self._connections.remove(connection)
            self._dialing += 1
            self._free_place()

    async def close(self) -> None:
        """Close every connection, and fail the requests that use one or wait for one."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while (turn := self._next_turn()) is not None:
            turn.set_exception(unreachable(STOPPING))
        for connection in list(self._connections):
            connection.cut()
        # Transports are closed by the event loop's next iteration.
        await asyncio.sleep(0)

    def _free_place(self) -> None:
        """Give a place to the first request that waits for one."""
        if (turn := self._next_turn()) is not None:
            turn.set_result(None)
        else:
            self._dialing -= 1

    def _next_turn(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                return turn
        return None

    def _close_expired(self) -> None:
        self._sweep = None
        now = self._loop.time()
        for connection, idle_since in list(self._idle.items()):
            if now - idle_since < MAX_IDLE_S:
                self._sweep = self._loop.call_at(idle_since + MAX_IDLE_S, self._close_expired)
                break
            connection.close()
