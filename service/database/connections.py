"""One connection to PostgreSQL: how it is made, kept alive and ended."""

import asyncio
import contextlib
import random
import socket
import ssl
import time
from typing import Any, Final

import asyncpg

from service.settings import Settings
from service.settings.address import DatabaseAddress

PING: Final = "SELECT 1"
IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
PING_TIMEOUT_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 5.0
STATEMENT_TIMEOUT_MARGIN_S: Final = 2.0
"""The server gives a statement up this much earlier than the client, so that its error arrives."""
KEEPALIVE_IDLE_S: Final = 30
TCP_USER_TIMEOUT_MS: Final = 15_000
WAITS_MS: Final = {"lock_timeout": 3000, "idle_in_transaction_session_timeout": 1000}
"""A process that stops in a transaction loses its locks before others give up waiting for them."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows its age and when it last answered. Times are ``time.monotonic``."""

    ends_at: float
    """When it is too old to be used again."""
    answered_at: float

    def start_life(self, max_age_s: float) -> None:
        """Called once, when the connection is new. The jitter keeps siblings from ageing alike."""
        self.answered_at = time.monotonic()
        lives_s = max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 - not a secret
        self.ends_at = self.answered_at + lives_s

    def has_answered(self) -> None:
        self.answered_at = time.monotonic()


def connect_arguments(address: DatabaseAddress, *, through_pooler: bool = False) -> dict[str, Any]:
    """The keyword arguments of ``asyncpg.connect`` for an address."""
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "database": address.database,
        "ssl": _tls(address),
        "timeout": CONNECT_TIMEOUT_S,
        # A pooler in transaction mode gives each transaction another server connection.
        "statement_cache_size": 0 if through_pooler else 256,
    }


def _tls(address: DatabaseAddress) -> ssl.SSLContext | str:
    if address.sslmode not in ("verify-ca", "verify-full"):
        return address.sslmode
    context = ssl.create_default_context(cafile=address.sslrootcert)
    context.check_hostname = address.sslmode == "verify-full"
    return context


def server_settings(settings: Settings, *, through_pooler: bool) -> dict[str, str]:
    if through_pooler:
        return {"application_name": "rialto"}
    statement_s = max(0.1, settings.database_command_timeout_s - STATEMENT_TIMEOUT_MARGIN_S)
    return {
        "application_name": "rialto",
        "statement_timeout": f"{int(statement_s * 1000)}",
        **{name: str(milliseconds) for name, milliseconds in WAITS_MS.items()},
        "tcp_keepalives_idle": f"{KEEPALIVE_IDLE_S}",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "jit": "off",
    }


def keep_alive(connection: asyncpg.Connection) -> None:
    """Let the kernel find a dead peer. asyncpg has no public way to the socket."""
    transport = connection._transport  # noqa: SLF001
    peer = transport.get_extra_info("socket")
    if peer is None or peer.family == socket.AF_UNIX:
        return
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT_MS),
    ):
        if (option := getattr(socket, name, None)) is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)


def is_closed(connection: Any) -> bool:
    """asyncpg takes a connection that was lost away from its user, whose next word to it raises."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def terminate(connection: Any) -> None:
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def connect_once(address: DatabaseAddress, timeout: float) -> None:
    """Prove that a connection of its own, outside the pool, works.

    :raises Exception: asyncpg's own.
    """
    async with asyncio.timeout(timeout):
        connection = await asyncpg.connect(**connect_arguments(address))
        try:
            await connection.fetchval(PING)
        finally:
            connection.terminate()
