"""What a process that serves and one that only starts others have in common: how they are told to
stop, how they bind the port, and how they say why a start has failed.

It imports nothing of what serving needs, so that the second kind stays small.
"""

import asyncio
import errno
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Final

import structlog

from service.errors import StartupError
from service.settings import Settings

log = structlog.get_logger()

EX_FAILED: Final = 1
LISTENS: Final = b"+"
"""What a process tells the one that started it, once."""


class StopSignals:
    """SIGTERM and SIGINT: the first asks to stop, a second one to hurry. ``also`` is called with
    the number of each."""

    def __init__(self, also: Callable[[int], None] = lambda _: None) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._also = also
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()
        log.info("signal received", signal=number.name, hurry=self.hurry.is_set())
        self._also(number)


def say_why(error: Exception) -> None:
    """The traceback, unless the failure is told in full by its own words; then what to do, last."""
    known = isinstance(error, StartupError)
    if not known or error.__cause__ is not None:
        # With the texts, as there is no request yet that they could quote.
        log.error(
            "traceback of the failed start", exception="".join(traceback.format_exception(error))
        )
    what = str(error) if known else f"{type(error).__name__}, which is not a known way to fail."
    hint = (
        error.hint if isinstance(error, StartupError) else "The traceback says where it happened."
    )
    log.error("start failed", error=what, hint=hint)


async def bind(settings: Settings) -> list[socket.socket]:
    """A socket for each address of HOST at PORT. They do not listen yet.

    :raises StartupError: when the port is taken, or the host is none of this machine.
    """
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            asyncio.Protocol, settings.host or None, settings.port, start_serving=False
        )
    except (OSError, UnicodeError) as error:
        raise not_listening(settings, error) from None
    sockets = [socket.socket(fileno=os.dup(one.fileno())) for one in server.sockets]
    server.close()
    return sockets


def not_listening(settings: Settings, error: OSError | UnicodeError) -> StartupError:
    """What to say of a port that cannot be bound or listened on."""
    hint = "Set HOST to an address of this machine, or to nothing for every interface."
    reason = "not a host name"
    if isinstance(error, socket.gaierror):
        reason = error.strerror or reason
    elif isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            hint = "Set PORT to a free port, or stop what listens there."
        elif error.errno == errno.EACCES:
            hint = "Set PORT to 1024 or above: the ports below belong to root."
        elif error.errno != errno.EADDRNOTAVAIL:
            hint = "Check HOST and PORT."
    return StartupError(f"Cannot listen on {settings.host or '*'}:{settings.port}: {reason}.", hint)
