"""Detects callers who read nothing, and callers who are gone, by what the kernel knows of TCP."""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Final

import structlog

from service.telemetry import metrics

log = structlog.get_logger()

TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
BYTES_ACKED: Final = struct.Struct("120xQ")
"""Where ``tcpi_bytes_acked`` stands in Linux's ``struct tcp_info``; its first byte is the state."""
TCP_CLOSE: Final = 7
CHECKS_PER_TIMEOUT: Final = 4
"""How often a connection is checked within the time that its caller may read nothing."""


class UnreadWatch:
    """Ends a connection whose client acknowledges no byte of what waits to be sent."""

    __slots__ = ("_loop", "_stalled_checks", "_taken_bytes", "_timeout_s", "_timer", "_transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, timeout_s: float
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._taken_bytes: int | None = None
        self._stalled_checks = 0

    def start(self) -> None:
        """Watch the connection until nothing waits to be sent."""
        if self._timer is None:
            self._stalled_checks, self._taken_bytes = 0, taken_bytes(self._transport)
            self._check_later()

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_later(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s / CHECKS_PER_TIMEOUT, self._check)

    def _check(self) -> None:
        before, self._taken_bytes = self._taken_bytes, taken_bytes(self._transport)
        if not self._transport.get_write_buffer_size():
            self.stop()
            return
        has_taken = self._taken_bytes is None or self._taken_bytes != before
        self._stalled_checks = 0 if has_taken else self._stalled_checks + 1
        if self._stalled_checks < CHECKS_PER_TIMEOUT:
            self._check_later()
            return
        metrics.note(metrics.TURNED_AWAY, 1, "unread_answer")
        log.info("caller reads nothing", timeout_s=self._timeout_s)
        self._transport.abort()


def taken_bytes(transport: asyncio.Transport) -> int | None:
    """How many bytes the client has acknowledged since the connection began; None where the kernel
    does not count them."""
    info = _tcp_info(transport)
    return int(BYTES_ACKED.unpack(info)[0]) if len(info) == BYTES_ACKED.size else None


def ask_if_there(transport: asyncio.Transport) -> None:
    """Send a byte of urgent data, which is no part of what the other side reads: no client of HTTP
    asks for it. If the connection is closed there, the system answers with a reset."""
    with contextlib.suppress(OSError):
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as sock:
            sock.send(b"\n", socket.MSG_OOB | socket.MSG_DONTWAIT)


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether the client has reset the connection. While a connection is not read from, nothing
    else shows that."""
    info = _tcp_info(transport)
    return bool(info) and info[0] == TCP_CLOSE


def has_tcp_info() -> bool:
    """Whether this system has TCP_INFO."""
    return TCP_INFO is not None


def _tcp_info(transport: asyncio.Transport) -> bytes:
    if TCP_INFO is None:
        return b""
    try:
        sock = transport.get_extra_info("socket")
        return bytes(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, BYTES_ACKED.size))
    except OSError:
        return b""
