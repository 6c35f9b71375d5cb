"""Connects to an origin: DNS, happy eyeballs (RFC 8305), TLS."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

P = TypeVar("P", bound=asyncio.Protocol)

DNS_CACHE_S: Final = 30.0
MAX_NAMES: Final = 64
ATTEMPT_DELAY_S: Final = 0.25
"""How long an address has before the next one is tried beside it."""
TLS_SHUTDOWN_S: Final = 1.0


class Origin(NamedTuple):
    """Where an HTTP server listens."""

    host: str
    port: int
    is_tls: bool


class Dialer:
    """Makes connections, and remembers for a while what names resolve to."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._lookups: dict[Origin, tuple[float, asyncio.Task[Sequence[AddrInfoType]]]] = {}

    async def connect(self, origin: Origin, protocol: Callable[[], P], timeout_s: float) -> P:
        """Return the protocol of a new connection.

        :raises OSError: when the name, every address or TLS fails.
        :raises ValueError: when the name cannot be a host's.
        """
        loop = asyncio.get_running_loop()
        addresses = await self._resolve(origin, loop)
        try:
            sock = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=ATTEMPT_DELAY_S, interleave=1, loop=loop
            )
        except (OSError, RuntimeError):
            self._lookups.pop(origin, None)
            raise
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not origin.is_tls:
                return (await loop.create_connection(protocol, sock=sock))[1]
            _, made = await loop.create_connection(
                protocol,
                sock=sock,
                ssl=self._tls(),
                server_hostname=origin.host,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
        except BaseException:
            sock.close()
            raise
        return made

    def close(self) -> None:
        """Give up the lookups under way."""
        for _, lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context()
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    async def _resolve(
        self, origin: Origin, loop: asyncio.AbstractEventLoop
    ) -> Sequence[AddrInfoType]:
        """Return the addresses of the origin. Concurrent connections share one lookup."""
        expires_at, lookup = self._lookups.get(origin, (0.0, None))
        if lookup is None or expires_at < loop.time():
            if len(self._lookups) >= MAX_NAMES:
                self._lookups.clear()
            lookup = loop.create_task(self._look_up(origin, loop))
            # Its exception is of no interest once every request that waited has left.
            lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._lookups[origin] = (loop.time() + DNS_CACHE_S, lookup)
        try:
            # The others still need the lookup if this request is cancelled.
            return await asyncio.shield(lookup)
        except asyncio.CancelledError:
            if lookup.cancelled():
                raise OSError("The lookup was given up.") from None
            raise
        except (OSError, ValueError):
            self._lookups.pop(origin, None)
            raise

    @staticmethod
    async def _look_up(origin: Origin, loop: asyncio.AbstractEventLoop) -> Sequence[AddrInfoType]:
        return await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
