"""The pass-through of ``proxy.py`` with a client of its own, which does no more than passing on
needs. It has no timeouts and no limits, so it serves nobody else.

``python scripts/bench/lean.py PORT UPSTREAM_PORT``
"""

import asyncio
import sys

import httptools
import uvloop
from aiohttp import web

BODY_MAX_BYTES = 36_700_160
FREE = []
"""The connections to the upstream that carry no call."""


class Connection(asyncio.Protocol):
    """A connection to the upstream that carries one call at a time."""

    def connection_made(self, transport):
        """Begin without a call."""
        self.transport, self.error = transport, None

    def send(self, target, headers, body):
        """Send a call; ``begun`` is done when the head of its answer and a part of its body are
        there."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {target} HTTP/1.1\r\nHost: upstream\r\nContent-Length: {len(body)}\r\n"
        self.parser, self.headers, self.parts = httptools.HttpResponseParser(self), {}, []
        self.is_complete = False
        self.begun = self.more = asyncio.get_running_loop().create_future()
        self.transport.writelines((f"{head}{lines}\r\n".encode(), body))

    async def chunks(self):
        """Yield the answer's body as it arrives, all that has come at once."""
        while self.parts or not self.is_complete:
            if not self.parts:
                self.more = asyncio.get_running_loop().create_future()
                await self.more
            parts, self.parts = self.parts, []
            yield b"".join(parts)
        if self.error is None and self.keeps_alive:
            FREE.append(self)
        else:
            self.transport.close()

    def data_received(self, data):
        """Parse what arrived; wake the call once for all of it."""
        self.parser.feed_data(data)
        if (self.parts or self.is_complete) and not self.more.done():
            self.more.set_result(None)

    def connection_lost(self, error):
        """Fail the call, if any."""
        self.error = error or ConnectionError("The upstream closed the connection.")
        if self in FREE:
            FREE.remove(self)
        elif not self.more.done():
            self.more.set_exception(self.error)

    def on_header(self, name, value):
        """Keep a header of the answer."""
        self.headers[name.lower()] = value.decode()

    def on_body(self, data):
        """Keep a part of the body."""
        self.parts.append(data)

    def on_message_complete(self):
        """Note the end of the answer, and whether another may follow."""
        self.is_complete = True
        # The parser knows this only now; afterwards it waits for the next answer.
        self.keeps_alive = self.parser.should_keep_alive()


async def forward(request):
    """Forward a call; streams are forwarded as they arrive."""
    headers = request.headers
    passed = {name: headers[name] for name in ("Content-Type", "Authorization") if name in headers}
    body = await request.read()
    if FREE:
        connection = FREE.pop()
    else:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", int(sys.argv[2]))
    connection.send(request.path_qs, passed, body)
    await connection.begun
    status = connection.parser.get_status_code()
    kind = {"Content-Type": connection.headers[b"content-type"]}
    if not kind["Content-Type"].startswith("text/event-stream"):
        whole = b"".join([chunk async for chunk in connection.chunks()])
        return web.Response(status=status, headers=kind, body=whole)
    response = web.StreamResponse(status=status, headers=kind)
    await response.prepare(request)
    async for chunk in connection.chunks():
        await response.write(chunk)
    return response


async def main():
    """Run the application."""
    app = web.Application(client_max_size=BODY_MAX_BYTES)
    app.router.add_post("/{path:.*}", forward)
    return app


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    web.run_app(main(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, loop=loop)
