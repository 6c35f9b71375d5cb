"""The HTTP client for Venice."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from typing import Final, NamedTuple
from uuid import UUID

import aiohttp
import msgspec
import structlog
from yarl import URL

from service import __version__
from service.errors import (
    ClientError,
    Evidence,
    ServiceError,
    UnsupportedEncoding,
    UpstreamCut,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from service.formats.inflate import Inflater, coding_of
from service.formats.lenient import UNREADABLE
from service.settings import Settings
from service.telemetry import metrics
from service.upstream.connector import (
    DEPARTURE,
    Connector,
    Departure,
    StreamedBody,
    VeniceRequest,
)
from service.upstream.cooldowns import Source
from service.upstream.findings import Finding, finding_of
from service.upstream.keys import EVERY_MODEL, UpstreamKey, UpstreamKeys, UpstreamKeyState
from service.upstream.meter import stated_cost
from service.upstream.refusals import is_refunded, ray_of, refusal
from service.upstream.retries import RetryBudgets

log = structlog.get_logger()

READ_BUFFER_BYTES: Final = 64 * 1024
"""The unread response bytes at which a connection pauses reading; aiohttp may buffer twice that."""
DNS_CACHE_S: Final = 30
KEEPALIVE_S: Final = 10
"""Shorter than the edge's own timeout, so that no request is sent on a connection being closed."""
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 1000
"""The largest response head that is parsed. Edges add headers to it."""
CHUNK_BYTES: Final = 16 * 1024
"""The most bytes of a response that are processed before other tasks get a turn."""
ERROR_BODY_BYTES: Final = 64 * 1024
ERROR_BODY_TIMEOUT_S: Final = 5.0
"""The time limit for reading an error response's body. Its status is already known by then."""
PLAIN_BODY_BYTES: Final = 64 * 1024 * 1024
MODELS_TIMEOUT_S: Final = 15.0
QUOTE_TIMEOUT_S: Final = 15.0
KEY_TIMEOUT_S: Final = 10.0
CONFIRM_TIMEOUT_S: Final = 3.0
"""How long a refused call waits for Venice to confirm that the key is unusable."""
CONFIRM_EVERY_S: Final = 1.0
"""How long a confirmation about a key is trusted before Venice is asked again."""
JOB_TIMEOUT_S: Final = 15.0
JSON: Final = "application/json"
UNFINISHED_STATES: Final = frozenset({"QUEUED", "PROCESSING"})
"""The job states in which Venice is still working."""

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


class UpstreamResponse:
    """A 2xx response from Venice whose body has not been read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.received = b""
        """The part received of a body that broke off."""
        self._inflater: Inflater | None = None
        self._is_readable = True
        self._must_yield = False
        """True when other tasks should run before more is read. A large buffered body would
        otherwise keep them waiting."""
        if (header := response.headers.get("Content-Encoding")) is not None:
            # We ask Venice for no encoding, but a proxy on the way may add one.
            try:
                coding = coding_of(header)
            except UnsupportedEncoding:
                self._is_readable = False
            else:
                self._inflater = None if coding is None else Inflater(coding)
        self.raw_headers: Mapping[str, str] = response.headers
        self.headers = {
            name: value
            for name, value in response.headers.items()
            if name.lower() in PASSED_HEADERS
        }

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
        chunks, size, content = [], 0, self._response.content
        is_plain = self._inflater is None and self._is_readable
        try:
            while not content.at_eof() or not is_plain:
                # Once the whole body has arrived, read it without waiting.
                if is_plain and content.is_eof():
                    chunk = content.read_nowait()
                elif not (chunk := await self.next_chunk()):
                    break
                chunks.append(chunk)
                size += len(chunk)
                if size > PLAIN_BODY_BYTES:
                    chunks.clear()
                    raise UpstreamError("Venice's response is too large.")
        except Exception:
            self.received = b"".join(chunks)
            with TRANSLATED:
                raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def next_chunk(self) -> bytes:
        """Return the bytes that have arrived since the last call, or an empty string at the end.

        :raises UpstreamCut: when the connection closes early.
        :raises UpstreamTimeout: when Venice is silent for too long.
        """
        if self._must_yield:
            self._must_yield = False
            # Yield before the read, because a cancellation after it would lose the bytes.
            await asyncio.sleep(0)
        if self._inflater is None and self._is_readable:
            try:
                chunk: bytes = await self._response.content.read(CHUNK_BYTES)
            except Exception:
                with TRANSLATED:
                    raise
            self._must_yield = len(chunk) == CHUNK_BYTES
            return chunk
        if self._inflater is None:
            raise UpstreamError("Venice's response has an unknown Content-Encoding.")
        return await self._next_inflated(self._inflater)

    async def _next_inflated(self, inflater: Inflater) -> bytes:
        """Return the next part of a compressed body, bounded in size and time."""
        try:
            while not (piece := inflater.step()):
                with TRANSLATED:
                    chunk = await self._response.content.readany()
                if not chunk:
                    inflater.end()
                    return b""
                inflater.feed(chunk)
        except ClientError as error:
            raise UpstreamError("Venice's response does not match its Content-Encoding.") from error
        self._must_yield = True
        return piece

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives; see :meth:`next_chunk`."""
        while chunk := await self.next_chunk():
            yield chunk

    def close(self) -> None:
        """Release the connection if the body was read to its end; close it otherwise."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


async def _read_refusal_body(response: aiohttp.ClientResponse) -> bytes:
    """Read a refusal's body, or the part that arrived when it is too long, too slow or cut."""
    received = bytearray()
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
            while len(received) < ERROR_BODY_BYTES:
                # A single read may return only part of the body.
                chunk = await response.content.read(ERROR_BODY_BYTES - len(received))
                if not chunk:
                    break
                received += chunk
    return bytes(received)


def _decompress_start(response: aiohttp.ClientResponse, content: bytes) -> bytes:
    """Decompress the start of a body. Empty when the encoding is unknown."""
    try:
        coding = coding_of(response.headers.get("Content-Encoding", ""))
        if coding is None:
            return content
        inflater = Inflater(coding)
        inflater.feed(content)
        return inflater.step()
    except ClientError:
        return b""


class _Translated:
    """Translates aiohttp's exceptions into our errors, the most specific that applies.

    Where every call and every chunk comes by, it is entered with a failure alone.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            metrics.note(metrics.UPSTREAM, 1, "unreachable")
            raise UpstreamUnreachable("Venice cannot be reached.", retry_after_s=5) from error
        if isinstance(error, TimeoutError):
            metrics.note(metrics.UPSTREAM, 1, "timeout")
            raise UpstreamTimeout("Venice did not answer in time.") from error
        if isinstance(error, aiohttp.ClientResponseError):
            metrics.note(metrics.UPSTREAM, 1, "unreadable")
            raise UpstreamError("Venice's response is not valid HTTP.") from error
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            metrics.note(metrics.UPSTREAM, 1, "cut")
            raise UpstreamCut(
                "Venice closed the connection before its response was complete."
            ) from error


TRANSLATED: Final = _Translated()
TRANSLATABLE: Final = (aiohttp.ClientConnectionError, OSError, TimeoutError, ServiceError)
"""Network failures. Any other exception while sending is caused by the request's content."""
Body = bytes | StreamedBody


class _Data(msgspec.Struct):
    data: UpstreamKeyState


class _Job(msgspec.Struct):
    status: str = ""


class JobState(NamedTuple):
    """Whether Venice is still working on a job, and whether it refunded the job's price."""

    is_processing: bool
    is_refunded: bool


class Examination(NamedTuple):
    """Venice's response about a key: its state, or the error that Venice returned instead."""

    finding: Finding
    state: UpstreamKeyState | None
    error: ServiceError | None


class Venice:
    """Sends requests to Venice with the operator's keys. Translates errors and never retries."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        keys: UpstreamKeys,
        retry_s: float,
        upload_timeout_s: float,
    ) -> None:
        self._session = session
        connect_s, silence_s = session.timeout.sock_connect or 0.0, session.timeout.sock_read
        self._head_timeout_s = None if silence_s is None else connect_s + silence_s
        """How long to wait for the response head. A silence timeout alone would not end the wait,
        because Venice may send any number of 1xx responses first."""
        self._upload_timeout_s = upload_timeout_s
        self._base_url = base_url
        self.keys = keys
        self.retry_s = retry_s
        """The time after a call's first attempt during which further attempts may begin."""
        self.budgets = RetryBudgets()
        self._confirming: dict[UUID, asyncio.Task[None]] = {}
        self._confirmed_at: dict[UUID, float] = {}

    def post(
        self,
        path: str,
        body: Body,
        headers: Mapping[str, str],
        key: UpstreamKey | None = None,
    ) -> Awaitable[UpstreamResponse]:
        """Send a body of JSON, unless the headers name another type; see :meth:`send`."""
        return self.send("POST", path, body, {"Content-Type": JSON, **headers}, key)

    def forward(
        self, method: str, path: str, body: Body, headers: Mapping[str, str]
    ) -> Awaitable[UpstreamResponse]:
        """Send a request that is free, with its query in the path; see :meth:`send`."""
        return self.send(method, path, body or None, headers)

    async def send(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: Mapping[str, str],
        key: UpstreamKey | None = None,
        parameters: Mapping[str, str] | None = None,
        departure: Departure | None = None,
    ) -> UpstreamResponse:
        """Send a request. Every request to Venice leaves from here, with any key unless one is
        given; ``departure`` records whether it was sent.

        Redirects are not followed: they would take the caller's prompt, and perhaps the key, to
        another origin.

        :raises UpstreamError: for every status but 2xx, in the subclass that fits.
        """
        sent = {"Authorization": f"Bearer {(key or self.keys.any()).secret}", **headers}
        departure = departure or Departure()
        timeout_s = self._head_timeout_s
        if timeout_s is not None and isinstance(body, StreamedBody):
            timeout_s += self._upload_timeout_s
        token = DEPARTURE.set(departure)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._session.request(
                    method,
                    URL(self._base_url + path, encoded=True),
                    params=parameters,
                    data=body,
                    headers=sent,
                    allow_redirects=False,
                )
        except Exception as error:
            if departure.has_left or isinstance(error, TRANSLATABLE):
                with TRANSLATED:
                    raise
            # The exception's text may quote what was to be sent, such as a header or the key.
            log.error("request not sent", error=type(error).__name__)
            raise UpstreamUnreachable("The request could not be sent to Venice.") from None
        finally:
            DEPARTURE.reset(token)
        metrics.note(metrics.UPSTREAM, 1, response.status)
        if 200 <= response.status < 300:
            return UpstreamResponse(response)
        with TRANSLATED:
            raise await self._read_refusal(response)

    async def post_for_job(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        organization_id: UUID,
        key_id: UUID | None,
    ) -> UpstreamResponse:
        """Send a request about a job, with the key that queued it.

        Venice knows a job only by the account that queued it. When that key is no longer in use,
        each key of the organization is tried.

        :raises UpstreamError: the error of the last key that was tried.
        """
        if (own := self.keys.find(key_id)) is not None:
            return await self.post(path, body, headers, own)
        source = Source(organization_id, None)
        *others, last = self.keys.ready(source, EVERY_MODEL) or [self.keys.any()]
        for key in others:
            with contextlib.suppress(UpstreamRejected, UpstreamExhausted):
                return await self.post(path, body, headers, key)
        return await self.post(path, body, headers, last)

    async def job_state(
        self, path: str, body: bytes, organization_id: UUID, key_id: UUID | None
    ) -> JobState:
        """Return a job's state, at no cost. Its result is left at Venice.

        :raises UpstreamError: when the job failed, or Venice does not return a state.
        """
        headers = {"Accept": JSON}
        with TRANSLATED:
            async with asyncio.timeout(JOB_TIMEOUT_S):
                answer = await self.post_for_job(path, body, headers, organization_id, key_id)
                try:
                    if not answer.headers.get("Content-Type", "").startswith(JSON):
                        return JobState(is_processing=False, is_refunded=False)
                    content = await answer.read()
                finally:
                    answer.close()
        try:
            status = msgspec.json.decode(content, type=_Job).status
        except UNREADABLE as error:
            raise UpstreamError("Venice's response about a job could not be parsed.") from error
        return JobState(status.upper() in UNFINISHED_STATES, is_refunded(content))

    async def quote(self, path: str, body: bytes) -> bytes:
        """Return the price of a job as JSON. Free.

        :raises UpstreamError: when Venice returns no quote.
        """
        with TRANSLATED:
            async with asyncio.timeout(QUOTE_TIMEOUT_S):
                answer = await self.post(path, body, {"Accept": JSON})
                try:
                    return await answer.read()
                finally:
                    answer.close()

    async def models(self, path: str, model_type: str) -> bytes:
        """Fetch ``/models``, ``/models/traits`` or ``/models/compatibility_mapping`` for a type.

        Public and free.
        """
        return await self._get(path, {"type": model_type}, MODELS_TIMEOUT_S)

    async def examine(self, key: UpstreamKey, timeout: float) -> Examination:
        """Ask Venice about a key, at no cost, and update the choice of keys with the result."""
        try:
            state = await self.state(key, timeout)
        except ServiceError as error:
            finding = finding_of(error)
            reason = f"status {getattr(error, 'upstream_status', None)}"
            if finding.is_about_key:
                self.keys.put_out_of_service(key, reason)
            self.keys.note_finding(key, finding, reason)
            return Examination(finding, None, error)
        self.keys.note_state(key, state)
        if not state.access_permitted:
            self.keys.put_out_of_service(key, "no access")
        return Examination(state.finding, state, None)

    async def state(self, key: UpstreamKey, timeout: float = KEY_TIMEOUT_S) -> UpstreamKeyState:
        """Read the state of a key, at no cost.

        Uses ``GET /api_keys/rate_limits``, because ``/models`` is public and proves nothing.

        :raises UpstreamError: when Venice does not return a valid state.
        """
        body = await self._get("/api_keys/rate_limits", {}, timeout, key)
        try:
            return msgspec.json.decode(body, type=_Data).data
        except UNREADABLE as error:
            raise UpstreamError("Venice's response about a key could not be parsed.") from error

    async def note_failed(
        self, key: UpstreamKey, model: str, source: Source, error: ServiceError
    ) -> None:
        """Record that a call with the key failed.

        When Venice refused the key, it is asked about the key first, at no cost and once for all
        waiting calls. The refusal may be about the call: a price above the balance, or a model of
        another plan.
        """
        if isinstance(error, UpstreamError) and error.evidence is Evidence.KEY_REFUSED:
            confirming = self._confirming.get(key.id)
            if confirming is None:
                confirming = asyncio.create_task(self._confirm(key))
                self._confirming[key.id] = confirming
                confirming.add_done_callback(lambda _: self._confirming.pop(key.id, None))
            await asyncio.wait({confirming})
        self.keys.failed(key, model, source, error)

    async def _confirm(self, key: UpstreamKey) -> None:
        """Put the key out of service if Venice confirms that it takes no calls."""
        if time.monotonic() - self._confirmed_at.get(key.id, -math.inf) < CONFIRM_EVERY_S:
            return
        examination = await self.examine(key, CONFIRM_TIMEOUT_S)
        if examination.finding.is_about_key and examination.finding is not Finding.WELL:
            self.keys.put_out_of_service(key, self.keys.findings[key.id].reason)
        self._confirmed_at[key.id] = time.monotonic()

    async def close(self) -> None:
        """Cancel the pending confirmations."""
        for confirming in list(self._confirming.values()):
            confirming.cancel()
            await asyncio.wait({confirming})

    async def _get(
        self,
        path: str,
        parameters: Mapping[str, str],
        timeout: float,
        key: UpstreamKey | None = None,
    ) -> bytes:
        with TRANSLATED:
            async with asyncio.timeout(timeout):
                answer = await self.send("GET", path, None, {}, key, parameters)
                try:
                    return await answer.read()
                finally:
                    answer.close()

    async def _read_refusal(self, response: aiohttp.ClientResponse) -> ServiceError:
        try:
            received = await _read_refusal_body(response)
        finally:
            response.close()
        body = _decompress_start(response, received)
        error = refusal(response.status, response.headers, body)
        error.cost_usd = stated_cost(response.headers, body)
        log.info(
            "venice refused",
            upstream_status=response.status,
            code=error.code,
            cf_ray=ray_of(response.headers),
        )
        return error


@contextlib.asynccontextmanager
async def open_venice(
    settings: Settings, *, base_url: str, keys: UpstreamKeys
) -> AsyncIterator[Venice]:
    """Open the client for the length of the block."""
    # Requests are limited where they come in, by a share for each caller. A limit here would let
    # one caller keep all others waiting.
    connector = Connector(limit=0, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=KEEPALIVE_S)
    # There is no total timeout, because a stream may run for many minutes. Silence ends a call.
    timeout = aiohttp.ClientTimeout(
        total=None,
        sock_connect=settings.venice_connect_timeout_s,
        connect=settings.venice_connect_timeout_s,
        sock_read=settings.venice_silence_timeout_s,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        headers={"Accept-Encoding": "identity", "User-Agent": f"rialto/{__version__}"},
        # Callers must not share the edge's cookies.
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        request_class=VeniceRequest,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
        trust_env=False,
        requote_redirect_url=False,
    ) as session:
        venice = Venice(session, base_url, keys, settings.venice_retry_s, settings.body_timeout_s)
        try:
            yield venice
        finally:
            await venice.close()
