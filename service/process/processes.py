"""The parent of several processes on one port: starts them, forwards signals and ends with them.

Each child is the whole service, like a replica. The parent holds what exists once: the port, the
metrics directory and, in development, the sandbox. (Processes with the same data directory share
the embedded PostgreSQL anyway.) It serves nothing and does not import the service, which would make
it as large as a child.

Each child listens on its own socket, and the kernel spreads connections over them by address. On a
shared socket, the first process to wake takes all waiting connections: up to 61 of 64 simultaneous
ones were measured, and clients keep their connections.

The first child starts alone, and the others once it listens. So one process applies the migrations,
and a problem that prevents the start is reported once. A child that exits by itself stops all of
them: the platform then restarts the service, as it does for a single process.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import structlog

from service.errors import StartupError
from service.process import lifecycle
from service.settings import Settings, inherited
from service.telemetry.disk_space import check_room_for_metrics

log = structlog.get_logger()

LISTEN_CONNECTIONS: Final = 1
"""Connections of each process to the database besides its pool."""
EXPECTED_STATUSES: Final = (0, -signal.SIGTERM, -signal.SIGINT)
"""The exit statuses of a child that was asked to stop. The signals occur before it handles them."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Child:
    """A serving process. ``channel`` is the parent's end of a socket pair with it."""

    number: int
    process: asyncio.subprocess.Process
    channel: socket.socket
    is_listening: bool = False

    async def wait_until_listening(self) -> bool:
        """Wait until the child listens. Returns False if it exits first."""
        received = await asyncio.get_running_loop().sock_recv(self.channel, 1)
        self.is_listening = received == lifecycle.READY
        return self.is_listening


async def serve(settings: Settings) -> int:
    """Run ``settings.processes`` processes until asked to stop. Returns the exit status."""
    group = ProcessGroup(settings)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await group.prepare(stack)
            status = await group.run()
    except Exception as error:  # noqa: BLE001 - logged with its traceback
        lifecycle.log_failed_start(error)
        return lifecycle.EX_FAILED
    if status == 0:
        log.info("all processes stopped")
    return status


class ProcessGroup:
    """The child processes, from the first start to the last exit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals = lifecycle.StopSignals(self._forward)
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[bool]] = []
        self._sockets: list[list[socket.socket]] = []
        self._arguments: list[str] = []

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Create what the children share; ``stack`` removes it again.

        :raises StartupError: when the port cannot be bound or no temporary directory can be
            created.
        """
        settings = self._settings
        # Bind as a single process would first. Sockets with SO_REUSEPORT would also share the port
        # with another service.
        probes = await lifecycle.bind(settings)
        self._sockets = [[_bind_beside(one) for one in probes] for _ in range(settings.processes)]
        for one in itertools.chain(*self._sockets):
            stack.callback(one.close)
        for one in probes:
            one.close()
        try:
            self._directory = Path(tempfile.mkdtemp(prefix="rialto-metrics-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            check_room_for_metrics(self._directory, settings.processes)
        except OSError as error:
            raise StartupError(
                f"Cannot create the metrics directory: {error.strerror or error}.",
                "Set TMPDIR to a writable directory with free space, or WEB_CONCURRENCY to 1.",
            ) from None
        self._arguments = [f"--metrics={self._directory}"]
        if settings.venice_api_key is None:
            # This imports the service, which the parent avoids in production.
            from service.app import sandbox  # noqa: PLC0415

            url = await stack.enter_async_context(sandbox(settings))
            self._arguments.append(f"--sandbox={url}")

    async def run(self) -> int:
        """Start the children and wait until all have exited. Returns the exit status."""
        count = self._settings.processes
        log.info(
            "processes",
            processes=count,
            database_connections=self._settings.database_pool_max_size * count,
            listen_connections=LISTEN_CONNECTIONS * count,
        )
        try:
            await self._start_all(count)
        except BaseException:
            self._stop()
            raise
        finally:
            ends = await asyncio.gather(*self._watchers)
        return 0 if all(ends) else lifecycle.EX_FAILED

    async def _start_all(self, count: int) -> None:
        started_at = time.perf_counter()
        await self._start(1)
        if not all([await child.wait_until_listening() for child in self._children]):
            return
        for number in range(2, count + 1):
            await self._start(number)
        listen = [await child.wait_until_listening() for child in self._children[1:]]
        if listen.count(True) == count - 1:
            duration_ms = round((time.perf_counter() - started_at) * 1000, 1)
            log.info("all processes listening", processes=count, duration_ms=duration_ms)

    async def _start(self, number: int) -> None:
        """Start a child, unless the service is stopping."""
        if self._signals.stop.is_set():
            return
        ours, its = socket.socketpair()
        ours.setblocking(False)
        sockets = self._sockets[number - 1]
        # The parent closes its copies. They would keep taking connections after the child has
        # closed its own, and nobody would serve them.
        with contextlib.ExitStack() as given:
            for one in (its, *sockets):
                given.enter_context(one)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service",
                "process",
                str(number),
                f"--channel={its.fileno()}",
                *(f"--socket={one.fileno()}" for one in sockets),
                *self._arguments,
                env=inherited(PROMETHEUS_MULTIPROC_DIR=str(self._directory)),
                pass_fds=[one.fileno() for one in (its, *sockets)],
                # Only the parent gets Ctrl-C, and forwards it once.
                start_new_session=True,
            )
        child = Child(number=number, process=process, channel=ours)
        self._children.append(child)
        self._watchers.append(asyncio.create_task(self._watch(child)))
        log.info("process started", process=number, pid=process.pid)
        if self._signals.stop.is_set():
            self._send(child, signal.SIGTERM)

    async def _watch(self, child: Child) -> bool:
        """Wait for a child's exit. Returns whether it was expected."""
        status = await child.process.wait()
        if self._signals.stop.is_set() and status in EXPECTED_STATUSES:
            return True
        # A first child that failed to start has logged the reason itself, and no other child is
        # running.
        if child.number > 1 or child.is_listening or status != lifecycle.EX_FAILED:
            log.critical(
                "process ended", process=child.number, pid=child.process.pid, status=status
            )
        self._stop()
        return False

    def _stop(self) -> None:
        if not self._signals.stop.is_set():
            self._signals.stop.set()
            self._forward(signal.SIGTERM)

    def _forward(self, number: int) -> None:
        for child in self._children:
            self._send(child, number)

    def _send(self, child: Child, number: int) -> None:
        if child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)


def _bind_beside(one: socket.socket) -> socket.socket:
    """Create another socket at the address of a socket that does not listen."""
    other = socket.socket(one.family, one.type)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if one.family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    other.bind(one.getsockname())
    return other
