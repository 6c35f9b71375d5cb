"""A stand-in for PgBouncer in transaction mode, as far as a client can notice."""

import asyncio
import contextlib
import dataclasses
import struct

PROTOCOL = 196608
SSL_REQUEST = 80877103
KNOWN_PARAMETERS = (
    "user",
    "database",
    "client_encoding",
    "application_name",
    "datestyle",
    "timezone",
)
"""The connection parameters that PgBouncer accepts; it refuses others by name."""
READY = b"Z"


class Pooler:
    """Listens at ``address`` for the PostgreSQL at ``target``; each transaction may get another
    server connection.

    With ``loses_statements`` prepared statements are gone after each transaction. ``ignores`` are
    parameters that it accepts without effect, ``passes`` those that it forwards.
    """

    def __init__(self, target, *, loses_statements=False, ignores=(), passes=()):
        self._target = target
        self._loses_statements = loses_statements
        self._ignores = ignores
        self._passed = (*KNOWN_PARAMETERS, *passes)
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = dataclasses.replace(self._target, host="127.0.0.1", port=port)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader, writer):
        code, body = await _startup(reader)
        while code == SSL_REQUEST:
            writer.write(b"N")
            code, body = await _startup(reader)
        if code != PROTOCOL:
            return
        words = body.rstrip(b"\0").decode().split("\0")
        parameters = dict(zip(words[::2], words[1::2], strict=True))
        for name in parameters:
            if name.lower() not in self._passed and name not in self._ignores:
                writer.write(_error(f"unsupported startup parameter: {name}"))
                await writer.drain()
                return
        kept = {name: value for name, value in parameters.items() if name.lower() in self._passed}
        host, port = self._target.host, self._target.port
        if host.startswith("/"):
            there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there = await asyncio.open_connection(host, port)
        text = "".join(f"{name}\0{value}\0" for name, value in kept.items()).encode() + b"\0"
        there[1].write(struct.pack("!ii", len(text) + 8, PROTOCOL) + text)
        forward = asyncio.create_task(_copy(reader, there[1]))
        try:
            await self._answer(there, writer)
        finally:
            forward.cancel()
            there[1].close()

    async def _answer(self, there, writer):
        reader, server = there
        is_begun = False
        while True:
            kind, body = await _message(reader)
            if kind == b"K":
                # Send a cancellation key of its own: no server process has this number.
                body = struct.pack("!i", 1) + body[4:]
            if kind == READY and body == b"I" and self._loses_statements and is_begun:
                text = b"DEALLOCATE ALL\0"
                server.write(b"Q" + struct.pack("!i", len(text) + 4) + text)
                while (await _message(reader))[0] != READY:
                    pass
            is_begun = is_begun or kind == READY
            writer.write(kind + struct.pack("!i", len(body) + 4) + body)
            await writer.drain()


async def _startup(reader):
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    return code, await reader.readexactly(length - 8)


async def _message(reader):
    kind = await reader.readexactly(1)
    (length,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(length - 4)


async def _copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def _error(message):
    fields = b"SFATAL\0C08P01\0M" + message.encode() + b"\0\0"
    return b"E" + struct.pack("!i", len(fields) + 4) + fields
