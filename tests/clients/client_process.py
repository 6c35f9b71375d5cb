"""A client's program, which the tests run with nothing but the service in reach."""

import asyncio
import contextlib
import functools
import json
import os
from pathlib import Path

import installed
import pytest

PROGRAMS = installed.DIRECTORY / "programs"
START_TIMEOUT_S = 180
"""A machine that has just installed a large library compiles it as it is loaded."""
ANSWER_TIMEOUT_S = 90
MAX_LINE_BYTES = 4 * 1024 * 1024


class Elsewhere:
    """A proxy that every program is configured with, for all hosts but the service's. It records
    who asks for another host, and refuses."""

    def __init__(self):
        self.asked = []
        self.url = None

    async def _refuse(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            self.asked.append((await reader.readline()).decode(errors="replace").strip())
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
        writer.close()

    @contextlib.asynccontextmanager
    async def running(self):
        """Listen for the length of the block."""
        async with await asyncio.start_server(self._refuse, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self


def environment(home, proxy_url):
    """Return the variables of a program: a home of its own, and no host but this one in reach."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    return {
        "PATH": f"{installed.node().parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "NODE_USE_ENV_PROXY": "1",
        "NO_PROXY": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **dict.fromkeys(proxies, proxy_url),
        **{name.lower(): proxy_url for name in proxies},
    }


class ClientProcess:
    """A running program; see ``programs/lines.py`` for what it reads and writes."""

    def __init__(self, process):
        self._process = process

    async def ask(self, **task):
        """Return the program's answer to a task."""
        assert self._process.returncode is None, "the program has ended"
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        return await self._read(ANSWER_TIMEOUT_S)

    async def wait_until_loaded(self):
        """Wait until the program has loaded its libraries."""
        assert await self._read(START_TIMEOUT_S) == {}

    async def _read(self, timeout_s):
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            # A late answer would be taken for that of the next task.
            self._process.kill()
            raise
        assert line, "the program has ended"
        return json.loads(line)


@functools.cache
def missing():
    """Install the clients; return None, or why this is not possible here."""
    try:
        installed.install()
    except installed.CannotInstallError as error:
        return str(error)
    return None


@contextlib.asynccontextmanager
async def running_client(program, home):
    """Run a program of ``programs/`` for the length of the block; yield its ClientProcess, and
    assert that it asked no other host for anything. Without the clients' registries the test is
    skipped.
    """
    if (reason := await asyncio.to_thread(missing)) is not None:
        pytest.skip(f"the clients cannot be installed: {reason}")
    path = Path("programs", program)
    if path.suffix == ".mjs":
        command = [installed.node(), "--preserve-symlinks", "--preserve-symlinks-main", path]
    else:
        command = [installed.PYTHON, path]
    async with Elsewhere().running() as elsewhere:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=installed.DIRECTORY,
            env=environment(home, elsewhere.url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        try:
            client = ClientProcess(process)
            await client.wait_until_loaded()
            yield client
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
        assert not elsewhere.asked, f"the client asked other hosts: {elsewhere.asked}"
