"""Venice's response, as the gateway reads it."""

import asyncio
import contextlib
from typing import Final

from service.errors import ClientError, UnsupportedEncoding, UpstreamError
from service.formats.inflate import Inflater, coding_of
from service.upstream.http import CHUNK_BYTES, Flow, Response
from service.upstream.sinks import Sink

PLAIN_BODY_BYTES: Final = 64 * 1024 * 1024

# Venice's headers that describe the response. Headers about the operator's account (rate limits,
# balances) are left out on purpose.
PASSED_HEADERS: Final = frozenset(
    {
        "cf-ray",
        "content-type",
        "x-venice-audio-duration",
        "x-venice-audio-format",
        "x-venice-deprecated",
        "x-venice-deprecated-replacement",
        "x-venice-enhanced-prompt",
        "x-venice-inference-time",
        "x-venice-is-blurred",
        "x-venice-is-content-violation",
        "x-venice-model-deprecation-date",
        "x-venice-model-deprecation-warning",
        "x-venice-model-id",
        "x-venice-model-name",
        "x-venice-model-router",
        "x-venice-responses-compat-reason",
        "x-venice-responses-lane",
        "x-venice-tee",
        "x-venice-tee-provider",
        "x-venice-version",
    }
)


class UpstreamResponse(Response, eq=False):
    """A response from Venice whose body has not been read."""

    received: bytes = b""
    """The part received of a body that broke off."""
    inflater: Inflater | None = None
    is_identity: bool = False
    """Whether the Content-Encoding names no encoding."""
    must_yield: bool = False
    """True when other tasks should run before more is read. A large buffered body would otherwise
    keep them waiting."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers that callers get. The media type is always ``Content-Type``, however Venice
        spells it, so that another can take its place."""
        passed = {}
        for name, value in self.raw_headers.items():
            spelled = name.lower()
            if spelled in PASSED_HEADERS:
                passed["Content-Type" if spelled == "content-type" else name] = value
        return passed

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; empty when none is stated."""
        return self.raw_headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """Read the whole body.

        :raises UpstreamCut: when the connection closes early.
        :raises UpstreamTimeout: when Venice is silent for too long.
        :raises UpstreamError: when the body is too large or cannot be decoded.
        """
        if self.is_complete and "Content-Encoding" not in self.raw_headers:
            # All of it has arrived, and a connection holds far less than the bound.
            return self.take()
        chunks, size = [], 0
        try:
            while chunk := await self.next_chunk():
                chunks.append(chunk)
                size += len(chunk)
                if size > PLAIN_BODY_BYTES:
                    chunks.clear()
                    raise UpstreamError("Venice's response is too large.")
        except UpstreamError:
            self.received = b"".join(chunks)
            raise
        return b"".join(chunks)

    async def next_chunk(self) -> bytes:
        """Return the bytes that have arrived since the last call, or an empty string at the end.

        :raises UpstreamCut: when the connection closes early.
        :raises UpstreamTimeout: when Venice is silent for too long.
        :raises UpstreamError: when the body is not valid HTTP or cannot be decoded.
        """
        if self.must_yield:
            self.must_yield = False
            # Yield before the read, because a cancellation after it would lose the bytes.
            await asyncio.sleep(0)
        if "Content-Encoding" in self.raw_headers and not self.is_identity:
            return await self._next_inflated()
        while not self.unread_bytes:
            if self.is_complete:
                return b""
            await self.renew_waiter()
        chunk = self.take(CHUNK_BYTES)
        self.must_yield = len(chunk) == CHUNK_BYTES
        return chunk

    async def _next_inflated(self) -> bytes:
        """Return the next part of a compressed body, bounded in size and time.

        We ask Venice for no encoding, but a proxy on the way may add one.
        """
        try:
            if (inflater := self.inflater) is None:
                if (coding := coding_of(self.raw_headers["Content-Encoding"])) is None:
                    self.is_identity = True
                    return await self.next_chunk()
                inflater = self.inflater = Inflater(coding)
            while not (piece := inflater.step()):
                while not self.unread_bytes:
                    if self.is_complete:
                        inflater.end()
                        return b""
                    await self.renew_waiter()
                inflater.feed(self.take())
        except UnsupportedEncoding:
            raise UpstreamError("Venice's response has an unknown Content-Encoding.") from None
        except ClientError as error:
            raise UpstreamError("Venice's response does not match its Content-Encoding.") from error
        self.must_yield = True
        return piece

    async def read_start(self, max_bytes: int, timeout_s: float) -> bytes:
        """Read the start of the body, or the part that arrived before it failed or in the time."""
        received = bytearray()
        with contextlib.suppress(UpstreamError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                while len(received) < max_bytes and (chunk := await self.next_chunk()):
                    received += chunk
        return bytes(received[:max_bytes])

    async def pass_to(self, sink: Sink) -> None:
        """Give the body to the sink as it arrives; see :meth:`next_chunk`."""
        is_plain = "Content-Encoding" not in self.raw_headers
        while True:
            if is_plain and not self.unread_bytes and not self.is_complete:
                may_follow = await self._flow_to(sink)
            elif chunk := await self.next_chunk():
                may_follow = sink.write(chunk)
            else:
                return
            if not may_follow:
                await sink.drain()

    async def _flow_to(self, sink: Sink) -> bool:
        """Have the connection itself give the sink what arrives, until this has to be waited for or
        the body ends. Return whether the sink can take the next chunk at once."""
        waiter = self.renew_waiter()
        self.flow = flow = Flow(self, sink.write)
        try:
            await waiter
        finally:
            self.flow = None
        error, flow.error = flow.error, None
        if error is not None:
            try:
                raise error
            finally:
                # Otherwise the error would lead to itself, by its traceback.
                del error
        return flow.may_follow
