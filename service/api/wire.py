"""Translates between HTTP and the service: request bodies, responses and errors."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from service import money
from service.api.body_writer import BodyWriter, begin_body
from service.api.requests import Request
from service.api.response_headers import WholeResponse
from service.api.state import INTAKE, SETTINGS
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
from service.upstream import PLAIN_BODY_BYTES, Sink

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
    """Decode the JSON body of an administrative request. It has to be small, because the event loop
    decodes it.

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
    headers = _answer_headers(answer)
    if isinstance(answer, EventsRelay):
        response, body = await begin_body(request, headers | STREAM_HEADERS)
        await _EventStream(request, answer, body).relay()
        return response
    if isinstance(answer, AssembledRelay) and answer.content is None:
        return await _relay_late(request, answer, headers)
    if isinstance(answer, WholeRelay | AssembledRelay) and answer.content is not None:
        content = answer.content
        if (translation := answer.translation()) is not None:
            content = translation.whole(content)
        return WholeResponse(request, headers, content)
    return await pass_on(request, headers, answer)


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
    if (translation := answer.translation()) is not None:
        content = translation.whole(content)
    await response.write(content)
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
    body = _HeldBody()
    await answer.pass_to(body)
    return b"".join(body.chunks)


class _HeldBody:
    """The sink of a body that is needed whole."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self._size = 0

    def write(self, chunk: bytes) -> bool:
        """See :meth:`Sink.write`.

        :raises UpstreamError: when the body is too large.
        """
        self.chunks.append(chunk)
        self._size += len(chunk)
        if self._size > PLAIN_BODY_BYTES:
            raise UpstreamError("Venice's answer is too large.")
        return True

    async def drain(self) -> None:
        """See :meth:`Sink.drain`; there is nothing to wait for."""


class _Source(Protocol):
    """What gives a body to a sink as it arrives."""

    async def pass_to(self, sink: Sink) -> None:
        """Give the whole body to the sink."""


async def pass_on(
    request: Request, headers: Mapping[str, str], source: _Source
) -> web.StreamResponse:
    """Pass on an answer of any type as it arrives, without holding all of it. If it fails on its
    way, the connection is cut, so that the caller notices."""
    response, body = await begin_body(request, headers)
    await source.pass_to(body)
    return response


class _NotTranslated(Exception):
    """Venice's answer cannot be translated. ``error`` is what the caller gets: as itself it would
    look like a failure of Venice's on the way through the relay."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


class _Translator:
    """Translates the events of Venice's answer on their way to the caller."""

    def __init__(self, body: BodyWriter, answer: EventsRelay) -> None:
        self._body = body
        self._make = answer.translation
        self._made: Translation | None = None

    @property
    def translation(self) -> Translation:
        """Made with the first chunk, since the model that answers is known with it."""
        if self._made is None:
            self._made = self._make()
            assert self._made is not None  # noqa: S101 - for the type checker
        return self._made

    def write(self, chunk: bytes) -> bool:
        """See :meth:`Sink.write`."""
        try:
            events = self.translation.feed(chunk)
        except ServiceError as error:
            raise _NotTranslated(error) from error
        return self._body.write(events)

    async def drain(self) -> None:
        """See :meth:`Sink.drain`."""
        await self._body.drain()


class _EventStream:
    """A stream of server-sent events on its way to the caller.

    aiohttp writes the end of the body after the handler has returned, so the call is in the books
    when its caller sees the end.
    """

    def __init__(self, request: Request, answer: EventsRelay, body: BodyWriter) -> None:
        self._request = request
        self._answer = answer
        self._body = body
        self._translator = _Translator(body, answer) if answer.is_translated else None
        self._heartbeat_s = request.app[SETTINGS].heartbeat_s
        self._timer: asyncio.TimerHandle | None = None

    async def relay(self) -> None:
        if self._answer.is_late:
            self._body.write(HEARTBEAT)
        self._watch()
        try:
            await self._answer.pass_to(self._translator or self._body)
            if self._translator is not None:
                self._body.write(self._translator.translation.end())
        except ServiceError as error:
            await self._fail(error)
        except _NotTranslated as failure:
            await self._fail(failure.error)
        except asyncio.CancelledError:
            if not self._answer.open_call.is_ended_by_shutdown:
                raise
            uncancel()
            await self._end_with(Unavailable("The service is restarting.", retry_after_s=1))
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _watch(self) -> None:
        """Send a heartbeat whenever Venice is silent, so that no proxy takes the stream for dead.
        Only whole events are relayed, so a comment can stand anywhere between writes."""
        body = self._body
        left_s = body.written_at + self._heartbeat_s - time.monotonic()
        if left_s <= 0:
            left_s = self._heartbeat_s
            # A caller that does not keep up has enough to read. When the caller has left, the relay
            # gets the same error and acts on it.
            if not body.is_paused:
                with contextlib.suppress(ConnectionError):
                    body.write(HEARTBEAT)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._watch)

    async def _fail(self, error: ServiceError) -> None:
        await self._end_with(error)
        await self._answer.fail_to_translate(error)

    async def _end_with(self, error: ServiceError) -> None:
        """Send a failure as the last event, since the status was sent. A caller that has the last
        event already has the whole answer."""
        stated = self._request.dialect(error, self._request.request_id)
        if self._translator is None:
            content = b"data: %b\n\n" % msgspec.json.encode(stated) + DONE
        else:
            content = self._translator.translation.failure(error, msgspec.to_builtins(stated))
        with contextlib.suppress(ConnectionError, TimeoutError):
            if not self._body.write(content):
                async with asyncio.timeout(LAST_EVENT_TIMEOUT_S):
                    await self._body.drain()
