"""Faults: a PostgreSQL server that can be killed, and a TCP proxy that can lose data."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import struct
import time

from service.database.embedded import Embedded, _works_in

RST = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of zero, so that closing sends a reset instead of a FIN."""


class OwnServer(Embedded):
    """A PostgreSQL server that a test may stop and kill."""

    @property
    def pid(self):
        """The process id of the server."""
        return int(self._pid_lines()[0])

    def stop(self, mode="fast"):
        """Stop the server: ``fast`` closes its connections in an orderly way, ``immediate`` does
        not."""
        if self._pid_lines() and mode != "fast":
            self._pg_ctl("stop", f"--mode={mode}")
        super().stop()

    def kill(self):
        """Kill the server with SIGKILL; return when none of its processes is left."""
        os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _works_in(self.directory):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def restart(self, mode="fast"):
        """Stop, then start."""
        self.stop(mode)
        self.start()


class TcpProxy:
    """A proxy before a database, on ``127.0.0.1:port``, that fails as networks do.

    Use it with ``async with``; clients connect to ``address``. Faults may be set before it is
    entered.
    """

    def __init__(self, target):
        self._target = target
        self._server = None
        self._links = set()
        self._tasks = set()
        self._is_refusing = False
        self._are_new_lost = False
        self._delay_s = 0.0
        self.port = 0
        self.accepted = 0

    @property
    def address(self):
        """The address for clients: the target's database on the proxy's port."""
        return dataclasses.replace(
            self._target, host="127.0.0.1", port=self.port, sslmode="disable"
        )

    async def __aenter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if not self._is_refusing:
            await self._listen()
        return self

    async def __aexit__(self, *_):
        self._stop_listening()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self):
        """Cut every connection, on both sides, with a TCP reset."""
        for link in list(self._links):
            link.reset()

    def blackhole(self, *, existing=True, new=True):
        """Drop all bytes silently: connections are half-open from here on.

        Existing connections stay lost after :meth:`restore`, as behind a firewall that forgot them.
        """
        self._are_new_lost = self._are_new_lost or new
        if existing:
            for link in self._links:
                link.is_lost = True

    def refuse(self):
        """Stop listening, so that new connections are refused. Existing connections continue."""
        self._is_refusing = True
        self._stop_listening()

    async def restore(self):
        """Accept and serve new connections again."""
        self._is_refusing = self._are_new_lost = False
        self._delay_s = 0.0
        if self._server is None:
            await self._listen()

    def delay(self, seconds):
        """Delay each piece of data by so many seconds."""
        self._delay_s = seconds

    async def _listen(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def _stop_listening(self):
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader, writer):
        self._tasks.add(task := asyncio.current_task())
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        link = _Link([writer], is_lost=self._are_new_lost)
        self._links.add(link)
        try:
            # Leaving the proxy cancels its links.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                there = await self._connect()
                link.writers.append(there[1])
                await asyncio.gather(
                    self._pump(link, reader, there[1]), self._pump(link, there[0], writer)
                )
        finally:
            self._links.discard(link)
            for one in link.writers:
                one.close()

    async def _connect(self):
        if self._target.host.startswith("/"):
            path = f"{self._target.host}/.s.PGSQL.{self._target.port}"
            return await asyncio.open_unix_connection(path)
        return await asyncio.open_connection(self._target.host, self._target.port)

    async def _pump(self, link, reader, writer):
        while data := await reader.read(65536):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if not link.is_lost:
                writer.write(data)
                await writer.drain()
        if not link.is_lost:
            writer.close()


class _Link:
    """A client's connection together with its connection to the target."""

    def __init__(self, writers, *, is_lost):
        self.writers = writers
        self.is_lost = is_lost

    def reset(self):
        for writer in self.writers:
            peer = writer.get_extra_info("socket")
            if peer is not None and peer.family == socket.AF_INET:
                with contextlib.suppress(OSError):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            writer.transport.abort()
