"""Attacks that one client can make on the others: ``python attacks.py NAME PORT KEY SECONDS``.

Each attack runs for the given number of seconds, as fast as one process can, and ignores the
responses. ``tests/victims.py`` measures another caller meanwhile.
"""

import asyncio
import contextlib
import itertools
import json
import resource
import sys
import time
import zlib

MODEL = "llama-3.3-70b"
MEBIBYTE = 1024 * 1024
CHAT = "/v1/chat/completions"
FORM = "multipart/form-data; boundary=b"


class Attacker:
    """A client that attacks the service until its time is up."""

    def __init__(self, port, key, seconds):
        self.port = port
        self.key = key
        self.ends_at = time.monotonic() + seconds

    @property
    def goes_on(self):
        return time.monotonic() < self.ends_at

    async def connect(self):
        """Open a connection."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1024)

    def head(self, path, length, *lines, with_key=True):
        """Format the head of a POST; a length of None means a chunked body."""
        frame = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        key = [f"Authorization: Bearer {self.key}"] if with_key else []
        if not any(line.startswith("Content-Type") for line in lines):
            lines = ("Content-Type: application/json", *lines)
        return "\r\n".join(
            [f"POST {path} HTTP/1.1", "Host: x", *key, frame, *lines, "", ""]
        ).encode()

    async def post(self, path, body, *lines, with_key=True):
        """Send the request and read the beginning of the response."""
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await self.connect()
            try:
                async with asyncio.timeout(5):
                    writer.write(self.head(path, len(body), *lines, with_key=with_key) + body)
                    await writer.drain()
                    await reader.read(1000)
            finally:
                writer.close()

    async def repeat(self, act, at_a_time):
        """Repeat the action, with so many running concurrently."""

        async def go_on():
            while self.goes_on:
                await act()

        await asyncio.gather(*(go_on() for _ in range(at_a_time)))

    async def hold(self, start, count):
        """Start so many at once and keep all of them open until the time is up."""
        held = []
        for _ in range(count):
            if not self.goes_on:
                break
            with contextlib.suppress(OSError):
                held.append(await start())
        while self.goes_on:
            await asyncio.sleep(0.1)
        for writer in held:
            writer.close()


def bomb():
    """Return 300 KB that inflate to 300 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"\0" * MEBIBYTE
    return b"".join([*(packer.compress(zeros) for _ in range(300)), packer.flush()])


def chat(content, **members):
    """Return the body of a chat completion."""
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": MODEL, "messages": messages} | members).encode()


async def bombs_without_a_key(attacker):
    body = bomb()
    gzip = "Content-Encoding: gzip"
    await attacker.repeat(lambda: attacker.post(CHAT, body, gzip, with_key=False), 20)


async def bombs_with_a_key(attacker):
    body = bomb()
    await attacker.repeat(lambda: attacker.post(CHAT, body, "Content-Encoding: gzip"), 20)


async def many_gzip_members(attacker):
    empty = zlib.compressobj(9, zlib.DEFLATED, 31).flush()
    body = empty * 50_000
    await attacker.repeat(lambda: attacker.post(CHAT, body, "Content-Encoding: gzip"), 4)


async def many_members(attacker):
    body = chat("x")[:-1] + b',"a":1' * 600_000 + b"}"
    await attacker.repeat(lambda: attacker.post(CHAT, body), 4)


async def many_messages(attacker):
    body = b'{"model":"%b","messages":[%b{}]}' % (MODEL.encode(), b'{"role":""},' * 300_000)
    await attacker.repeat(lambda: attacker.post(CHAT, body), 4)


async def big_json(attacker):
    # Refused after it was read, because a sandbox that parsed it too would slow everyone down.
    body = chat("x " * 7 * MEBIBYTE, model="nobody-has-it")
    await attacker.repeat(lambda: attacker.post(CHAT, body), 3)


async def deep_json(attacker):
    depth = MEBIBYTE
    body = b'{"model":"x","messages":' + b"[" * depth + b"]" * depth + b"}"
    await attacker.repeat(lambda: attacker.post(CHAT, body), 4)


async def many_parts(attacker):
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    body = part * 60_000 + b"--b--\r\n"
    kind = f"Content-Type: {FORM}"
    await attacker.repeat(lambda: attacker.post("/v1/images/edits", body, kind), 4)


async def unread_streams(attacker):
    body = chat("[tokens=20000]", stream=True)

    async def start():
        _, writer = await attacker.connect()
        writer.write(attacker.head(CHAT, len(body)) + body)
        writer.transport.pause_reading()
        return writer

    await attacker.hold(start, 60)


async def slow_readers(attacker):
    body = chat("[tokens=20000]", stream=True)

    async def read_slowly():
        with contextlib.suppress(OSError):
            reader, writer = await attacker.connect()
            writer.write(attacker.head(CHAT, len(body)) + body)
            while attacker.goes_on and await reader.read(100):
                await asyncio.sleep(0.2)
            writer.close()

    await attacker.repeat(read_slowly, 40)


async def slow_bodies(attacker):
    async def start():
        _, writer = await attacker.connect()
        writer.write(attacker.head(CHAT, 30 * MEBIBYTE) + b"{" * 1000)
        return writer

    await attacker.hold(start, 200)


async def ten_thousand_heads(attacker):
    async def start():
        _, writer = await attacker.connect()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        return writer

    await attacker.hold(start, 10_000)


async def connection_flood(attacker):
    async def connect():
        with contextlib.suppress(OSError):
            _, writer = await attacker.connect()
            writer.transport.abort()

    await attacker.repeat(connect, 20)


async def poisoned_prompts(attacker):
    numbers = itertools.count()

    async def ask():
        body = json.dumps({"model": MODEL, "input": f"/etc/passwd {next(numbers)}"}).encode()
        await attacker.post("/v1/responses", body)

    await attacker.repeat(ask, 4)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        bombs_without_a_key,
        bombs_with_a_key,
        many_gzip_members,
        many_members,
        many_messages,
        big_json,
        deep_json,
        many_parts,
        unread_streams,
        slow_readers,
        slow_bodies,
        ten_thousand_heads,
        connection_flood,
        poisoned_prompts,
    )
}


async def main():
    """Run one attack."""
    name, port, key, seconds = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print("ready", flush=True)
    await ATTACKS[name](Attacker(int(port), key, float(seconds)))


if __name__ == "__main__":
    asyncio.run(main())
