"""Several processes on one port: what starts them, passes signals on to them, and ends with them.

Each child is the whole service, as a replica is. What there must be one of is here: the port, the
directory of the metrics, and in development the sandbox that plays Venice. (The embedded PostgreSQL
is shared by all that use its directory anyway.) The parent serves nothing, and imports nothing that
only serving needs: it would be as large as a child.

Each child listens on a socket of its own, over which the kernel spreads connections by their
addresses. Of one that they share, the first to wake takes all that wait: of 64 connections that
come at once up to 61 (measured), and clients keep their connections.

The first child starts alone and the others when it listens, so migrations are applied by one and
what keeps the service from starting is said once. A child that ends by itself ends them all: the
platform then starts the service anew, as it does when a single process ends.
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
"""Of each process to the database, beside its pool."""
GOOD_ENDS: Final = (0, -signal.SIGTERM, -signal.SIGINT)
"""How a child ends that was told to; by the signal itself before it could heed it."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Child:
    """A process that serves. ``line`` leads to it."""

    number: int
    process: asyncio.subprocess.Process
    line: socket.socket
    listens: bool = False

    async def until_it_listens(self) -> bool:
        """False when it ended instead."""
        said = await asyncio.get_running_loop().sock_recv(self.line, 1)
        self.listens = said == lifecycle.LISTENS
        return self.listens


async def serve(settings: Settings) -> int:
    """Run ``settings.processes`` processes until told to stop; returns the exit status."""
    family = Family(settings)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await family.prepare(stack)
            status = await family.live()
    except Exception as error:  # noqa: BLE001 - logged with its traceback
        lifecycle.say_why(error)
        return lifecycle.EX_FAILED
    if status == 0:
        log.info("all processes have stopped")
    return status


class Family:
    """The children, from the first one's start to the last one's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals = lifecycle.StopSignals(self._pass_on)
        self._children: list[Child] = []
        self._watching: list[asyncio.Task[bool]] = []
        self._sockets: list[list[socket.socket]] = []
        self._arguments: list[str] = []

    async def prepare(self, stack: contextlib.AsyncExitStack) -> None:
        """Make what the children share; ``stack`` takes it away again.

        :raises StartupError: when the port cannot be bound, or no temporary directory be made.
        """
        settings = self._settings
        # First as a single process binds, since sockets that share a port share it with another
        # service, too.
        alone = await lifecycle.bind(settings)
        self._sockets = [[_beside(one) for one in alone] for _ in range(settings.processes)]
        for one in itertools.chain(*self._sockets):
            stack.callback(one.close)
        for one in alone:
            one.close()
        try:
            self._directory = Path(tempfile.mkdtemp(prefix="rialto-metrics-"))
            stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
            check_room_for_metrics(self._directory, settings.processes)
        except OSError as error:
            raise StartupError(
                f"No directory for the metrics of several processes: {error.strerror or error}.",
                "Set TMPDIR to a directory that can be written and has room, or WEB_CONCURRENCY to"
                " 1.",
            ) from None
        self._arguments = [f"--metrics={self._directory}"]
        if settings.venice_api_key is None:
            # Imports the service, which this process does without in production.
            from service.app import sandbox  # noqa: PLC0415

            url = await stack.enter_async_context(sandbox(settings))
            self._arguments.append(f"--sandbox={url}")

    async def live(self) -> int:
        """Start the children and wait for their ends; the exit status."""
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
            ends = await asyncio.gather(*self._watching)
        return 0 if all(ends) else lifecycle.EX_FAILED

    async def _start_all(self, count: int) -> None:
        started_at = time.perf_counter()
        await self._start(1)
        if not all([await child.until_it_listens() for child in self._children]):
            return
        for number in range(2, count + 1):
            await self._start(number)
        listen = [await child.until_it_listens() for child in self._children[1:]]
        if listen.count(True) == count - 1:
            duration_ms = round((time.perf_counter() - started_at) * 1000, 1)
            log.info("all processes listen", processes=count, duration_ms=duration_ms)

    async def _start(self, number: int) -> None:
        """Start a child, unless all are to stop."""
        if self._signals.stop.is_set():
            return
        ours, its = socket.socketpair()
        ours.setblocking(False)
        sockets = self._sockets[number - 1]
        # Kept here, they would take connections that nobody serves when the child has closed them.
        with contextlib.ExitStack() as given:
            for one in (its, *sockets):
                given.enter_context(one)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "service",
                "process",
                str(number),
                f"--line={its.fileno()}",
                *(f"--socket={one.fileno()}" for one in sockets),
                *self._arguments,
                env=inherited(PROMETHEUS_MULTIPROC_DIR=str(self._directory)),
                pass_fds=[one.fileno() for one in (its, *sockets)],
                # Ctrl-C reaches the parent only, which passes it on once.
                start_new_session=True,
            )
        child = Child(number=number, process=process, line=ours)
        self._children.append(child)
        self._watching.append(asyncio.create_task(self._watch(child)))
        log.info("process started", process=number, pid=process.pid)
        if self._signals.stop.is_set():
            self._send(child, signal.SIGTERM)

    async def _watch(self, child: Child) -> bool:
        """Wait for a child's end; whether it ended when and as it should."""
        status = await child.process.wait()
        if self._signals.stop.is_set() and status in GOOD_ENDS:
            return True
        # A first start that failed has said why itself, and no other child is there to be stopped.
        if child.number > 1 or child.listens or status != lifecycle.EX_FAILED:
            log.critical(
                "process ended", process=child.number, pid=child.process.pid, status=status
            )
        self._stop()
        return False

    def _stop(self) -> None:
        if not self._signals.stop.is_set():
            self._signals.stop.set()
            self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        for child in self._children:
            self._send(child, number)

    def _send(self, child: Child, number: int) -> None:
        if child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)


def _beside(one: socket.socket) -> socket.socket:
    """Another socket at the address of one that does not listen."""
    other = socket.socket(one.family, one.type)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if one.family == socket.AF_INET6:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    other.bind(one.getsockname())
    return other
