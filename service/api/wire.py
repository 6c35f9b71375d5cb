"""Translates between HTTP and the service: request bodies, responses and errors."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from service import money
from service.api.requests import Request
from service.api.state import INTAKE, SETTINGS
from service.api.whole_response import WholeResponse
from service.errors import (
    NotFound,
    ServiceError,
    Unavailable,
    UnsupportedEncoding,
    UpstreamError,
)
from service.formats import body, inflate
from service.gateway import (
    AnswerRelay,
    AssembledRelay,
    EventsRelay,
    Translation,
    Upload,
    WholeRelay,
    uncancel,
)
from service.ledger import Rates
from service.upstream import PLAIN_BODY_BYTES

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[web.StreamResponse]]

MAX_UNREAD_BODY_BYTES: Final = 1024 * 1024
"""A longer body that nothing here needs is passed on as it arrives. A shorter one is read, so that
it can be sent again."""
MAX_SMALL_BODY_BYTES: Final = 256 * 1024
SPACE: Final = b"\n"
HEARTBEAT: Final = b": heartbeat\n\n"
DONE: Final = b"data: [DONE]\n\n"
LAST_EVENT_TIMEOUT_S: Final = 2.0
STREAM_HEADERS: Final = {
    "Cache-Control": "no-cache",
    # A proxy that buffers would delay the events of the stream.
    "X-Accel-Buffering": "no",
}


async def read_body(request: Request, max_bytes: int | None = None) -> bytes:
    """Read the whole body and decompress it; see :meth:`Intake.read`."""
    return await request.app[INTAKE].read(request, max_bytes)


async def read_as(request: Request, shape: type[T]) -> T:
    """Decode the JSON body of an administrative request. It is small, since the event loop does.

    :raises ClientError: naming the field and the rule.
    :raises PayloadTooLarge: when it is larger than ``MAX_SMALL_BODY_BYTES``.
    """
    return body.decode(await read_body(request, MAX_SMALL_BODY_BYTES), shape)


async def read_or_pass(request: Request) -> tuple[bytes, Upload | None]:
    """Read a small body, or prepare a large one to be passed on as it arrives. The deadline and the
    largest size are the same for both.

    :raises RequestTimeout, PayloadTooLarge, UnsupportedEncoding: when the body breaks a limit.
    """
    intake, length_bytes = request.app[INTAKE], request.content_length
    if not request.body_exists or (
        length_bytes is not None and length_bytes <= MAX_UNREAD_BODY_BYTES
    ):
        return await intake.read(request), None
    return b"", Upload(*intake.pass_on(request))


def path_id(request: Request) -> UUID:
    """The id in the path.

    :raises NotFound: when it is no UUID.
    """
    try:
        return UUID(request.match_info["id"])
    except ValueError:
        raise NotFound("There is nothing with this id. Ids are UUIDs.") from None


def json_response(value: Any, status: int = 200) -> web.Response:
    """``value`` as JSON."""
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")


def error_response(error: ServiceError, request: Request) -> web.Response:
    """The response to a request that failed before any part of a response was sent."""
    response = json_response(request.dialect(error, request.request_id), error.status)
    if request.content.exception() is not None:
        # The next request begins at an unknown place. aiohttp closes the connection, but sends no
        # header for it.
        response.force_close()
    if isinstance(error, UnsupportedEncoding):
        response.headers["Accept-Encoding"] = inflate.ACCEPTED
    advice = error.advice
    if advice.wait_s is not None:
        response.headers["Retry-After"] = str(advice.wait_s)
    if advice.should_retry is not None:
        # SDKs and Claude Code repeat many refusals by themselves, and show their user nothing
        # meanwhile.
        response.headers["x-should-retry"] = "true" if advice.should_retry else "false"
    if error.rates is not None:
        response.headers.update(rate_headers(error.rates))
    if isinstance(error, UpstreamError):
        response.headers.update(_attempts(error.attempts))
    return response


def rate_headers(rates: Rates) -> dict[str, str]:
    """The remainders of the caller's tightest limits, in the headers that OpenAI's SDKs read."""
    headers = {}
    for unit, rate in (("requests", rates.requests), ("tokens", rates.tokens)):
        if rate is None:
            continue
        headers[f"x-ratelimit-limit-{unit}"] = str(rate.ceiling)
        headers[f"x-ratelimit-remaining-{unit}"] = str(rate.left)
        if rate.reset_s is not None:
            headers[f"x-ratelimit-reset-{unit}"] = f"{rate.reset_s}s"
    return headers


def _attempts(attempts: Sequence[str]) -> dict[str, str]:
    return {"x-rialto-attempts": ", ".join(attempts)} if len(attempts) > 1 else {}


def _answer_headers(answer: AnswerRelay) -> dict[str, str]:
    """The headers of a paid call's response; the cost is not known yet when a stream begins."""
    route = answer.open_call.route
    admission, output_cap, cost = route.admission, route.bound.output_cap, answer.cost
    headers = dict(answer.headers)
    if admission is not None and admission.rates is not None:
        headers |= rate_headers(admission.rates)
    headers["x-rialto-model"] = route.model_name
    if len(answer.attempts.codes) > 1:
        headers |= _attempts(answer.attempts.codes)
    if output_cap is not None:
        headers["x-rialto-max-output-tokens"] = str(output_cap)
    if cost is not None and cost.nanos is not None:
        headers["x-rialto-cost-usd"] = money.format_usd(cost.nanos)
    return headers


async def relay(request: Request, answer: AnswerRelay) -> web.StreamResponse:
    """Pass Venice's answer on: a plain one whole, any other as it arrives."""
    if isinstance(answer, EventsRelay):
        return await _EventStream(request, answer).relay()
    headers = _answer_headers(answer)
    if isinstance(answer, AssembledRelay) and answer.content is None:
        return await _relay_late(request, answer, headers)
    if isinstance(answer, WholeRelay | AssembledRelay) and answer.content is not None:
        return WholeResponse(request, headers, _translated(answer, answer.content))
    return await pass_on(request, headers, answer.chunks())


def _translated(answer: AnswerRelay, content: bytes) -> bytes:
    translation = answer.translation()
    return content if translation is None else translation.whole(content)


async def _relay_late(
    request: Request, answer: AssembledRelay, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Pass on a plain answer that takes long. White space, which JSON may begin with, shows proxies
    that the connection is alive. If the answer fails, the connection is cut, since the status was
    sent."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    content = None
    while content is None:
        await response.write(SPACE)
        content = await answer.wait(request.app[SETTINGS].heartbeat_s)
    await response.write(_translated(answer, content))
    return response


async def relay_as(
    answer: AnswerRelay, content_type: str, translate: Callable[[bytes, str], bytes]
) -> web.Response:
    """Pass on a plain answer in another form. ``translate`` gets Venice's body and its type.
    Nothing is sent before it returns, so a failure keeps its status.

    :raises UpstreamError: when the answer fails on its way, is too large or cannot be translated.
    """
    answer.is_held_back = True
    content = await _whole(answer)
    response = web.Response(headers=_answer_headers(answer))
    response.body = translate(content, response.headers.get("Content-Type", ""))
    response.headers["Content-Type"] = content_type
    return response


async def _whole(answer: AnswerRelay) -> bytes:
    pieces, size = [], 0
    async with contextlib.aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            pieces.append(chunk)
            size += len(chunk)
            if size > PLAIN_BODY_BYTES:
                raise UpstreamError("Venice's answer is too large.")
    return b"".join(pieces)


async def pass_on(
    request: Request, headers: Mapping[str, str], chunks: AsyncGenerator[bytes]
) -> web.StreamResponse:
    """Pass on an answer of any type as it arrives, without holding all of it. If it fails on its
    way, the connection is cut, so that the caller notices."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            await response.write(chunk)
    return response


class _EventStream:
    """A stream of server-sent events on its way to the caller.

    aiohttp writes the end of the body after the handler has returned, so the call is in the books
    when its caller sees the end.
    """

    def __init__(self, request: Request, answer: EventsRelay) -> None:
        self._request = request
        self._answer = answer
        self._translation: Translation | None = None
        self._response = web.StreamResponse(headers={**_answer_headers(answer), **STREAM_HEADERS})
        self._heartbeat_s = request.app[SETTINGS].heartbeat_s
        self._feed: Callable[[bytes], bytes] = self._feed_first
        self._written_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    async def relay(self) -> web.StreamResponse:
        await self._response.prepare(self._request)
        if self._answer.is_late:
            await self._response.write(HEARTBEAT)
        self._watch()
        try:
            async with contextlib.aclosing(self._answer.chunks()) as chunks:
                async for chunk in chunks:
                    if events := self._feed(chunk):
                        self._written_at = time.monotonic()
                        await self._response.write(events)
            if self._translation and (events := self._translation.end()):
                await self._response.write(events)
        except ServiceError as error:
            await self._end_with(error)
            await self._answer.fail_to_translate(error)
        except asyncio.CancelledError:
            if not self._answer.open_call.is_ended_by_shutdown:
                raise
            uncancel()
            await self._end_with(Unavailable("The service is restarting.", retry_after_s=1))
        finally:
            for waiting in (self._timer, self._beating):
                if waiting is not None:
                    waiting.cancel()
        return self._response

    def _feed_first(self, chunk: bytes) -> bytes:
        """Translate the first chunk. The model that answers is known with it, and with the model
        whether the answer is translated."""
        translation = self._translation = self._answer.translation()
        self._feed = bytes if translation is None else translation.feed
        return self._feed(chunk)

    def _watch(self) -> None:
        """Send a heartbeat whenever Venice is silent, so that no proxy takes the stream for dead.
        Most streams are never silent for so long, and need no task for it."""
        left_s = self._written_at + self._heartbeat_s - time.monotonic()
        if left_s <= 0:
            left_s = self._heartbeat_s
            # A heartbeat that still waits for the caller to read is enough.
            if self._beating is None or self._beating.done():
                self._written_at = time.monotonic()
                self._beating = asyncio.create_task(self._beat())
        self._timer = asyncio.get_running_loop().call_later(left_s, self._watch)

    async def _beat(self) -> None:
        """Only whole events are relayed, so a comment can stand anywhere between writes."""
        # When the caller has left, the relay gets the same error and acts on it.
        with contextlib.suppress(ConnectionError):
            await self._response.write(HEARTBEAT)

    async def _end_with(self, error: ServiceError) -> None:
        """Send a failure as the last event, since the status was sent. A caller that has the last
        event already has the whole answer."""
        stated = self._request.dialect(error, self._request.request_id)
        translation = self._translation or self._answer.translation()
        if translation is None:
            content = b"data: %b\n\n" % msgspec.json.encode(stated) + DONE
        else:
            content = translation.failure(error, msgspec.to_builtins(stated))
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(LAST_EVENT_TIMEOUT_S):
                await self._response.write(content)
