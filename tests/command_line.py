"""Runs commands as people and programs do: on a terminal, or with their output in a pipe."""

import asyncio
import dataclasses
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios

from process import ROOT
from support import ENCRYPTION_KEY, OPERATOR_KEY

RIALTO = (sys.executable, "-m", "service")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
TIMEOUT_S = 60


def environment_of(environment):
    """Return the environment of a command."""
    every = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OPERATOR_KEY": OPERATOR_KEY,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        **environment,
    }
    return {name: value for name, value in every.items() if value is not None}


async def run(*command, directory, **environment):
    """Run a command; return exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=environment_of(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def rialto(*arguments, directory, **environment):
    """Run ``rialto`` with arguments and its output in a pipe; decode each printed line."""
    status, out, err = await run(*RIALTO, *arguments, directory=directory, **environment)
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


@dataclasses.dataclass
class Shown:
    """What a command showed on a terminal."""

    status: int
    raw: str

    @property
    def text(self):
        """The text without colours and movements of the cursor."""
        return ESCAPES.sub("", self.raw).replace("\r\n", "\n").replace("\r", "\n")

    @property
    def lines(self):
        return self.text.splitlines()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, process, descriptor):
        self.process = process
        self.raw = ""
        self._descriptor = descriptor
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.run_in_executor(None, os.read, self._descriptor, 65536)
            except OSError:
                # Linux reports the end of the last process on the terminal as an error.
                return
            if not data:
                return
            async with self._changed:
                self.raw += data.decode(errors="replace")
                self._changed.notify_all()

    def type(self, text):
        """Type on the keyboard."""
        os.write(self._descriptor, text.encode())

    async def shows(self, text, timeout_s=30):
        """Wait until the terminal shows the text."""
        async with asyncio.timeout(timeout_s), self._changed:
            while text not in ESCAPES.sub("", self.raw):
                await self._changed.wait()

    async def ended(self):
        """Wait until the command ends; return what it showed."""
        async with asyncio.timeout(TIMEOUT_S):
            status = await self.process.wait()
            await self._reading
        os.close(self._descriptor)
        return Shown(status, self.raw)


async def open_terminal(*command, directory, columns=100, **environment):
    """Start a command on a terminal with so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=environment_of({"TERM": "xterm-256color", **environment}),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    return Terminal(process, master)


async def on_terminal(*arguments, directory, columns=100, types="", **environment):
    """Run ``rialto`` with arguments on a terminal; return what it showed. ``types`` is typed at
    once."""
    terminal = await open_terminal(
        *RIALTO, *arguments, directory=directory, columns=columns, **environment
    )
    if types:
        terminal.type(types)
    return await terminal.ended()
