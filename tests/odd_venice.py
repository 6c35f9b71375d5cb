"""A Venice for which the test writes every byte, for responses that no server library would
send."""

import asyncio
import contextlib
import dataclasses
import json

from support import make_settings, running

from service import api

MODEL = "m"
SPEC = {
    "pricing": {"input": {"usd": 1}, "output": {"usd": 2}},
    "availableContextTokens": 100_000,
    "maxCompletionTokens": 30_000,
}
SOUND = {"pricing": {"per_audio_second": {"usd": 0.0001}}}
SPEECH = {"pricing": {"input": {"usd": 3.5}}}
IMAGE = {"pricing": {"generation": {"usd": 0.04}}}
DEAR = SPEC | {"pricing": {"input": {"usd": 10}, "output": {"usd": 20}}}
MODELS = [
    {"id": MODEL, "type": "text", "model_spec": SPEC},
    {"id": "dear", "type": "text", "model_spec": DEAR},
    {"id": "e", "type": "embedding", "model_spec": {"pricing": {"input": {"usd": 1}}}},
    {"id": "d", "type": "decision", "model_spec": SPEC},
    {"id": "ears", "type": "asr", "model_spec": SOUND},
    {"id": "voice", "type": "tts", "model_spec": SPEECH},
    {"id": "brush", "type": "image", "model_spec": IMAGE},
]


KEY = {"accessPermitted": True, "balances": {"USD": 100.0, "DIEM": 0.0}, "apiTier": {"id": "paid"}}


@dataclasses.dataclass
class Received:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class OddVenice:
    """A server that sends ``answer`` to every request but those for models and for the state of a
    key.

    ``answer`` is bytes, written before the connection is closed, or a coroutine function that takes
    the request and the writer.
    """

    def __init__(self):
        self.answer = b""
        self.received = []
        self.url = ""
        self._serving = set()

    async def _serve(self, reader, writer):
        self._serving.add(asyncio.current_task())
        with (
            contextlib.closing(writer),
            contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ),
        ):
            request = await self._read(reader)
            if request.path.startswith("/api/v1/models"):
                writer.write(whole(json.dumps({"data": MODELS}).encode()))
            elif request.path.startswith("/api/v1/api_keys"):
                writer.write(whole(json.dumps({"data": KEY}).encode()))
            else:
                self.received.append(request)
                if callable(self.answer):
                    await self.answer(request, writer)
                else:
                    writer.write(self.answer)
            await writer.drain()

    async def close(self):
        """Close every connection."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving)
        await asyncio.sleep(0)

    async def _read(self, reader):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *others = head.rstrip("\r\n").split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value for name, value in (o.split(": ", 1) for o in others)}
        body = b""
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        return Received(method, path, headers, body)


@contextlib.asynccontextmanager
async def odd_venice():
    """Run an OddVenice for the length of the block."""
    venice = OddVenice()
    server = await asyncio.start_server(venice._serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    venice.url = f"http://{host}:{port}"
    try:
        yield venice
    finally:
        server.close()
        await venice.close()


@contextlib.asynccontextmanager
async def serving(database_address, venice, **changes):
    """Run the service with the given Venice and its models loaded; audit its books at the end."""
    changes = {"venice_retry_s": 0.0, **changes}
    async with running(make_settings(database_address, venice.url, **changes)) as service:
        await service.app[api.CATALOG].sync()
        yield service
        await service.audit()


def head(status="200 OK", content_type="application/json", **headers):
    """Return the head of a response; ``_`` in a header's name becomes a hyphen."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body, status="200 OK", content_type="application/json", **headers):
    """Return a response with a Content-Length."""
    return head(status, content_type, Content_Length=len(body), **headers) + body


def stream(*events, status="200 OK", **headers):
    """Return a stream of events that ends when the connection closes."""
    return head(status, "text/event-stream", **headers) + b"".join(events)
