"""Stop signals, port binding and startup errors, shared by serving and parent processes.

Imports nothing that only serving needs, so that the parent process stays small.
"""

import asyncio
import errno
import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any, Final

import structlog

from service.errors import StartupError
from service.settings import Settings

log = structlog.get_logger()

EX_FAILED: Final = 1
EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - the operator's choice
EVERY_IPV6: Final = "::"
READY: Final = b"+"
"""Sent once by a process to its parent when it is ready."""


class StopSignals:
    """Handles SIGTERM and SIGINT. The first asks to stop, a second one to hurry.

    ``also`` is called with each signal's number.
    """

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


def log_failed_start(error: Exception) -> None:
    """Log why the start failed: the traceback if the error needs one, and last what to do."""
    known = isinstance(error, StartupError)
    if not known or error.__cause__ is not None:
        # Exception texts are safe to log here, because there is no request yet that they could
        # quote.
        log.error("startup traceback", exception="".join(traceback.format_exception(error)))
    what = str(error) if known else f"{type(error).__name__}, which is unexpected."
    hint = (
        error.hint if isinstance(error, StartupError) else "The traceback shows where it happened."
    )
    log.error("start failed", error=what, hint=hint)


async def bind(settings: Settings) -> list[socket.socket]:
    """Bind a socket for each address of HOST, all at the same port. They do not listen yet.

    An empty HOST, and ``::``, mean every interface with IPv4 and IPv6.

    :raises StartupError: when the port is taken, or the host is not an address of this machine.
    """
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        found = await loop.getaddrinfo(
            settings.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        candidates = [(family, (address[0], *address[2:])) for family, *_, address in found]
        if any(address[0] == EVERY_IPV6 for _, address in candidates):
            candidates.append((socket.AF_INET, (EVERY_IPV4,)))
        if ":" not in settings.host and not has_ipv6():
            # Names and wildcards resolve to what this machine has.
            candidates = [candidate for candidate in candidates if candidate[0] != socket.AF_INET6]
        for family, (address, *scope) in dict.fromkeys(candidates):
            sockets.append(_bound(family, (address, port, *scope)))
            # When the system chooses the port, use the same one for every address.
            port = port or sockets[0].getsockname()[1]
    except (OSError, UnicodeError) as error:
        for one in sockets:
            one.close()
        raise not_listening(settings, error) from None
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has its own socket, so its addresses are not shown as mapped IPv6 addresses.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def has_ipv6() -> bool:
    """Return whether this machine can listen on IPv6."""
    try:
        _bound(socket.AF_INET6, ("::1", 0)).close()
    except OSError:
        return False
    return True


def not_listening(settings: Settings, error: OSError | UnicodeError) -> StartupError:
    """Build the error for a port that cannot be bound or listened on."""
    hint = "Set HOST to an address of this machine, or leave it empty for every interface."
    reason = "not a host name"
    if ":" in settings.host and isinstance(error, OSError) and not has_ipv6():
        reason = "this machine has no IPv6"
        hint = f"Set HOST to {EVERY_IPV4}, or leave it empty for every available interface."
    elif isinstance(error, socket.gaierror):
        reason = error.strerror or reason
    elif isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno == errno.EADDRINUSE:
            hint = "Set PORT to a free port, or stop the process that uses it."
        elif error.errno == errno.EACCES:
            hint = "Set PORT to 1024 or above. Lower ports need root."
        elif error.errno != errno.EADDRNOTAVAIL:
            hint = "Check HOST and PORT."
    return StartupError(f"Cannot listen on {settings.host or '*'}:{settings.port}: {reason}.", hint)
