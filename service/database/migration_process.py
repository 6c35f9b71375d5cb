"""Migrations at a start, in a process of their own.

yoyo, psycopg and all that they load would stay in the serving process: 13 MB of 75. So the service
starts this module as a program, which reads its :class:`Order` from standard input, as a line, and
writes one JSON object a line to standard output: what it logs, and last how it ended. It ends at
once, with nothing half done, when the service does: that closes its standard input.
"""

import asyncio
import contextlib
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from service.database import schema
from service.errors import StartupError
from service.settings import inherited
from service.settings.address import DatabaseAddress

log = structlog.get_logger()

LINE_BYTES: Final = 1 << 20
"""The longest line; the longest is a traceback."""
EX_ABANDONED: Final = 1
"""The status when the service has ended. Nobody reads it."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to migrate: the parameters of :func:`service.database.schema.apply`."""

    address: DatabaseAddress
    connect_timeout_s: float
    restore: bool
    directory: str = str(schema.MIGRATIONS_DIRECTORY)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended: without an error, or with the message and the hint of a StartupError."""

    error: str | None = None
    hint: str = ""
    traceback: str | None = None


class FailedMigrations(Exception):
    """The cause of a failed start. Its text is the traceback in the other process."""


async def apply(order: Order) -> None:
    """Apply what is pending; log what the process logs. A cancellation kills the process, which
    leaves nothing half done.

    :raises StartupError: as :func:`service.database.schema.apply` does.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        # It imports from where this process does.
        env=inherited(PYTHONPATH=os.pathsep.join(sys.path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        # Ctrl-C is for the service, which then ends this process.
        start_new_session=True,
    )
    try:
        outcome = await _converse(process, order)
        status = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if outcome is None:
        raise StartupError(f"The process that migrates ended with status {status}.", "Start again.")
    if outcome.error is not None:
        cause = FailedMigrations(outcome.traceback) if outcome.traceback else None
        raise StartupError(outcome.error, outcome.hint) from cause


async def _converse(process: asyncio.subprocess.Process, order: Order) -> Outcome | None:
    """Send the order and log the lines; return the last, or None if the process ended before."""
    assert process.stdin is not None  # noqa: S101 - a pipe
    assert process.stdout is not None  # noqa: S101 - a pipe
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    async for line in process.stdout:
        facts = msgspec.json.decode(line)
        if "event" not in facts:
            return msgspec.convert(facts, Outcome)
        getattr(log, facts.pop("level"))(facts.pop("event"), **facts)
    return None


def _run(order: Order) -> Outcome:
    """Migrate in this process."""
    try:
        schema.apply(
            order.address,
            directory=Path(order.directory),
            connect_timeout_s=order.connect_timeout_s,
            restore=order.restore,
        )
    except StartupError as error:
        text = None if error.__cause__ is None else "".join(traceback.format_exception(error))
        return Outcome(error=str(error), hint=error.hint, traceback=text)
    except Exception as error:  # noqa: BLE001 - passed on with its traceback
        text = "".join(traceback.format_exception(error))
        what = f"The migrations failed: {type(error).__name__}, which is unexpected."
        return Outcome(error=what, hint="The traceback shows where it happened.", traceback=text)
    return Outcome()


def _write(line: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line, enc_hook=str) + b"\n")
    sys.stdout.buffer.flush()


def _log(_logger: Any, level: str, facts: Any) -> Any:
    _write({**facts, "level": level})
    raise structlog.DropEvent


def _end_with_service() -> None:
    # Not sys.stdin.read(), whose lock Python could not take at its exit.
    os.read(sys.stdin.fileno(), 1)
    os._exit(EX_ABANDONED)


if __name__ == "__main__":
    structlog.configure(processors=[_log])
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    threading.Thread(target=_end_with_service, daemon=True).start()
    _write(_run(given))
