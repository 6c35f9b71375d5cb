"""The service as a separate process, as the platform runs it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
from support import ENCRYPTION_KEY, OPERATOR_KEY, Service

ROOT = Path(__file__).resolve().parent.parent
MIGRATIONS = [path for path in (ROOT / "migrations").glob("*.sql") if ".rollback" not in path.name]


def database_url(address):
    """Return the URL of a DatabaseAddress, for an environment variable."""
    if address.host.startswith("/"):
        return f"postgresql://{address.user}@/{address.database}?host={address.host}"
    return f"postgresql://{address.user}@{address.host}:{address.port}/{address.database}"


class ServiceProcess:
    """A ``python -m service`` process; collects its log lines."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.raw = []
        self._new_line = asyncio.Condition()
        self._reading = [
            asyncio.create_task(self._read(process.stderr)),
            asyncio.create_task(self._read(process.stdout)),
        ]

    async def _read(self, stream):
        while raw := await stream.readline():
            self.raw.append(raw.decode())
            with contextlib.suppress(ValueError):
                line = json.loads(raw)
                if isinstance(line, dict):
                    self.lines.append(line)
            async with self._new_line:
                self._new_line.notify_all()

    def lines_with(self, message):
        """Return the log lines with this message so far."""
        return [line for line in self.lines if line["message"] == message]

    async def wait_for_line(self, message, timeout=30):
        """Wait for a log line with this message; return the first one."""
        async with asyncio.timeout(timeout), self._new_line:
            while not self.lines_with(message):
                await self._new_line.wait()
        return self.lines_with(message)[0]

    async def listening(self, timeout=30):
        """Wait until the service listens; return its port."""
        listening = asyncio.create_task(self.wait_for_line("listening", timeout))
        ended = asyncio.create_task(self.process.wait())
        await asyncio.wait({listening, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not listening.done():
            listening.cancel()
            await asyncio.gather(*self._reading)
            raise AssertionError("it ended instead of listening:\n" + "".join(self.raw))
        return (await listening)["port"]

    def send(self, number=signal.SIGTERM):
        """Send a signal."""
        self.process.send_signal(number)

    async def ended(self, timeout=30):
        """Wait until the process ends; return its exit status."""
        async with asyncio.timeout(timeout):
            status = await self.process.wait()
            await asyncio.gather(*self._reading)
        return status

    @property
    def is_running(self):
        return self.process.returncode is None


def variables(directory, **environment):
    """Return the environment of a service process in ``directory``. A variable that is None is not
    set."""
    every = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(directory),
        "PORT": "0",
        "LOG_FORMAT": "json",
        "OPERATOR_KEY": OPERATOR_KEY,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        **environment,
    }
    return {name: value for name, value in every.items() if value is not None}


@contextlib.asynccontextmanager
async def started(directory, **environment):
    """Run a service process in ``directory`` and kill it at the end of the block if it still runs.
    A variable that is None is not set."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        cwd=directory,
        env=variables(directory, **environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    service = ServiceProcess(process)
    try:
        yield service
    finally:
        if service.is_running:
            process.kill()
        await service.ended()


@contextlib.asynccontextmanager
async def client_of(service):
    """Wait until the process listens; yield a client for its operator and callers."""
    port = await service.listening()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        yield Service(None, http)
