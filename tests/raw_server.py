"""A server for which the test writes every byte, and a client that reads what it sends."""

import asyncio
import contextlib
import dataclasses

from service.upstream.http import HttpClient, Limits
from service.upstream.response import UpstreamResponse

LIMITS = Limits(
    connect_s=2.0,
    silence_s=2.0,
    upload_s=2.0,
    head_max_bytes=4096,
    max_headers=50,
    max_connections=100,
)


class RawServer:
    """Reads requests and runs ``script`` for each connection: bytes to answer each request with, or
    a coroutine function that takes the reader and the writer."""

    def __init__(self, script):
        self.script = script
        self.heads = []
        self.connections = 0
        self._tasks = set()

    async def serve(self, reader, writer):
        """Serve one connection."""
        self.connections += 1
        self._tasks.add(asyncio.current_task())
        with (
            contextlib.closing(writer),
            contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ),
        ):
            if callable(self.script):
                await self.script(reader, writer)
            else:
                while True:
                    await self.read(reader)
                    writer.write(self.script)

    async def read(self, reader):
        """Read one request with a Content-Length or without a body, and keep its head."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length: "):
                return await reader.readexactly(int(line.split()[1]))
        return b""

    async def close(self):
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)
        await asyncio.sleep(0)


@dataclasses.dataclass
class Lab:
    """A client and the server that it calls."""

    client: HttpClient
    server: RawServer
    url: str

    async def send(self, method="POST", path="/x", headers=None, body=b"{}", **others):
        """Send a request to the server."""
        body = b"" if method in ("GET", "HEAD") else body
        return await self.client.send(method, self.url, path, headers or {}, body, **others)

    async def call(self, **request):
        """Return the status and the body of the response to a request."""
        response = await self.send(**request)
        try:
            return response.status, await response.read()
        finally:
            response.close()

    @property
    def pool(self):
        """The client's only pool."""
        (pool,) = self.client._pools.values()
        return pool


@contextlib.asynccontextmanager
async def lab(script, *, context=None, server_context=None, host="127.0.0.1", **changes):
    """Run a server with the script, and a client before it."""
    raw = RawServer(script)
    listener = await asyncio.start_server(raw.serve, host, 0, ssl=server_context)
    port = listener.sockets[0].getsockname()[1]
    scheme = "https" if server_context else "http"
    limits = LIMITS._replace(**changes)
    client = HttpClient(UpstreamResponse, limits, {"User-Agent": "test"}, context=context)
    try:
        yield Lab(client, raw, f"{scheme}://localhost:{port}")
    finally:
        await client.close()
        listener.close()
        await raw.close()


def answer(body=b"ok", status="200 OK", *fields):
    """Return a whole response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
