"""Things that break: a server to be killed, and a proxy that loses what it is given."""

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
"""SO_LINGER of no time at all: closing sends a reset, not an end."""


class OwnServer(Embedded):
    """A PostgreSQL of a test's own, to be stopped and killed at will."""

    @property
    def pid(self):
        """The process id of the server."""
        return int(self._pid_lines()[0])

    def stop(self, mode="fast"):
        """End it: ``fast`` says goodbye, ``immediate`` does not."""
        if self._pid_lines() and mode != "fast":
            self._pg_ctl("stop", f"--mode={mode}")
        super().stop()

    def kill(self):
        """kill -9; returns when none of its processes is left."""
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
    """Stands before a database, on ``127.0.0.1:port``, and fails as networks do.

    Used with ``async with``; ``address`` is what a client connects to. It can be told to fail
    before it is entered.
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
        """The target's address, by way of the proxy."""
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
        """Pass no more bytes, and tell nobody: connections are half-open from here on.

        The ones that exist stay lost after :meth:`restore`, as behind a firewall that forgot them.
        """
        self._are_new_lost = self._are_new_lost or new
        if existing:
            for link in self._links:
                link.is_lost = True

    def refuse(self):
        """Listen no more: connecting is refused. Existing connections go on."""
        self._is_refusing = True
        self._stop_listening()

    async def restore(self):
        """New connections work again, at once."""
        self._is_refusing = self._are_new_lost = False
        self._delay_s = 0.0
        if self._server is None:
            await self._listen()

    def delay(self, seconds):
        """Pass each piece on after so many seconds."""
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
            # Cancelled is how a link ends with its proxy.
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
    """One connection of a client and the one to the target that belongs to it."""

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
