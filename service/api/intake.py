"""Reading the bodies of requests, once it is known whose they are."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from aiohttp import HttpVersion11, web

from service.api.requests import Request
from service.errors import PayloadTooLarge, RequestTimeout, Unavailable
from service.formats import inflate
from service.settings import Settings
from service.shares import Share, Shares
from service.telemetry import metrics

PASSED_BYTES: Final = 512 * 1024
"""What a body takes that is passed on as it arrives, in the buffers on its way."""
WORKERS: Final = 2
"""Threads that unpack bodies, so that all of them together never have more than that at a time."""


class Intake:
    """Reads bodies within the deadline and the size of the settings, and unpacks compressed ones in
    threads of its own, a step at a time."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.body_max_bytes
        self._timeout_s = settings.body_timeout_s
        # So that one key can send one body of the largest size.
        self._bytes = Shares(max(settings.body_budget_bytes, 3 * settings.body_max_bytes))
        self._workers = ThreadPoolExecutor(WORKERS, "inflate")

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def read(self, request: Request, max_bytes: int | None = None) -> bytes:
        """The whole body, unpacked. ``max_bytes`` is its largest size where that is less than the
        settings'.

        :raises RequestTimeout, PayloadTooLarge, UnsupportedEncoding: when the body breaks a limit.
        :raises Unavailable: when there is no room for it now.
        :raises ClientError: when it does not match its headers.
        """
        max_bytes = min(max_bytes or self._max_bytes, self._max_bytes)
        content = request.content
        if content.is_eof() and "Content-Encoding" not in request.headers:
            # It came with the headers: there is nothing to wait for.
            try:
                body = content.read_nowait()
            except web.RequestPayloadError as error:
                raise inflate.not_as_encoded() from error
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            self._reserve(request, len(body))
            return body
        coding = _check(request, max_bytes)
        # What is stated is set aside at once, so that no body is refused half-way.
        stated_bytes = 0 if coding is not None else request.content_length or 0
        self._reserve(request, stated_bytes)
        chunks, size = [], 0
        async for chunk in self._chunks(request, coding, max_bytes):
            size += len(chunk)
            if size > stated_bytes:
                self._reserve(request, len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def pass_on(self, request: Request) -> tuple[AsyncIterator[bytes], int | None]:
        """The body as it arrives, unpacked, which is never held whole; and how many bytes it has,
        where that is known.

        :raises PayloadTooLarge, UnsupportedEncoding, Unavailable: when it will not be read.
        """
        coding = _check(request, self._max_bytes)
        self._reserve(request, PASSED_BYTES)
        # Of a body that is unpacked nobody knows the length before its end.
        length_bytes = request.content_length if coding is None else None
        return self._chunks(request, coding, self._max_bytes), length_bytes

    async def _chunks(
        self, request: Request, coding: str | None, max_bytes: int
    ) -> AsyncIterator[bytes]:
        """The body as it arrives, unpacked; ``coding`` is that of its headers."""
        await _continue(request)
        inflater = None if coding is None else inflate.Inflater(coding)
        ends_at, size = time.monotonic() + self._timeout_s, 0
        while arrived := await self._next(request, ends_at):
            async for chunk in self._unpacked(inflater, arrived):
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                yield chunk
        if inflater is not None:
            inflater.end()

    async def _next(self, request: Request, ends_at: float) -> bytes:
        try:
            async with asyncio.timeout(ends_at - time.monotonic()):
                return await request.content.readany()
        except TimeoutError:
            raise RequestTimeout(
                f"The body did not arrive within {self._timeout_s:g} seconds."
            ) from None
        except web.RequestPayloadError as error:
            raise inflate.not_as_encoded() from error

    async def _unpacked(
        self, inflater: inflate.Inflater | None, arrived: bytes
    ) -> AsyncIterator[bytes]:
        if inflater is None:
            yield arrived
            return
        inflater.feed(arrived)
        loop = asyncio.get_running_loop()
        while piece := await loop.run_in_executor(self._workers, inflater.step):
            yield piece

    def _reserve(self, request: Request, amount: int) -> None:
        """Set so many bytes aside for the request, whose end gives them back.

        :raises Unavailable: when there is no room for them now.
        """
        share = request.body_share
        if share is None:
            caller = request.caller
            key_id = caller.api_key_id or caller.organization_id
            share = request.body_share = Share(self._bytes, caller.organization_id, key_id)
        if not share.grow(amount):
            metrics.note(metrics.TURNED_AWAY, 1, "body_bytes")
            raise Unavailable(
                "There is no room for this body beside those that are being read. Try again.",
                retry_after_s=1,
            )


def _check(request: Request, max_bytes: int) -> str | None:
    """The coding of the body, by its headers, before any of it is read.

    :raises PayloadTooLarge, UnsupportedEncoding: when it will not be read.
    """
    header = ",".join(request.headers.getall("Content-Encoding", ()))
    coding = inflate.coding_of(header) if header else None
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    return coding


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {max_bytes} bytes.")


async def _continue(request: Request) -> None:
    """Send ``100 Continue`` to a client that waits for it (RFC 9110, section 10.1.1). Any other
    expectation is ignored."""
    is_waiting = request.headers.get("Expect", "").lower() == "100-continue"
    if is_waiting and request.version == HttpVersion11 and not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # It is no part of the answer.
        request.writer.output_size = 0
