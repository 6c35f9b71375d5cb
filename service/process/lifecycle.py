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
from typing import Any, Final

import structlog

from service.errors import StartupError
from service.settings import Settings

log = structlog.get_logger()

EX_FAILED: Final = 1
EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - the operator's choice
EVERY_IPV6: Final = "::"
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
    """A socket for each address of HOST at PORT, all at the same one. They do not listen yet.

    Without HOST, and for ``::``, that is every interface, by IPv4 and IPv6.

    :raises StartupError: when the port is taken, or the host is none of this machine.
    """
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        found = await loop.getaddrinfo(
            settings.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        places = [(family, (address[0], *address[2:])) for family, *_, address in found]
        if any(address[0] == EVERY_IPV6 for _, address in places):
            places.append((socket.AF_INET, (EVERY_IPV4,)))
        if ":" not in settings.host and not has_ipv6():
            # A name, or every interface, is what this machine has of it.
            places = [place for place in places if place[0] != socket.AF_INET6]
        for family, (address, *scope) in dict.fromkeys(places):
            sockets.append(_bound(family, (address, port, *scope)))
            # Where the system chooses the port, it chooses once.
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
            # IPv4 has a socket of its own, in which its addresses look like what they are.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def has_ipv6() -> bool:
    """Whether this machine can listen by IPv6 at all."""
    try:
        _bound(socket.AF_INET6, ("::1", 0)).close()
    except OSError:
        return False
    return True


def not_listening(settings: Settings, error: OSError | UnicodeError) -> StartupError:
    """What to say of a port that cannot be bound or listened on."""
    hint = "Set HOST to an address of this machine, or to nothing for every interface."
    reason = "not a host name"
    if ":" in settings.host and isinstance(error, OSError) and not has_ipv6():
        reason = "this machine has no IPv6"
        hint = f"Set HOST to {EVERY_IPV4}, or to nothing for every interface that there is."
    elif isinstance(error, socket.gaierror):
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
