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
from service.settings import Settings
from service.telemetry import metrics
from service.upstream.connector import Connector, StreamedBody
from service.upstream.cooldowns import Source
from service.upstream.findings import Finding, finding_of
from service.upstream.keys import EVERY_MODEL, KeyState, UpstreamKey, UpstreamKeys
from service.upstream.lenient import UNREADABLE
from service.upstream.meter import stated_cost
from service.upstream.refusals import is_refunded, ray_of, refusal
from service.upstream.retries import RetryBudgets
from service.upstream.sending import DEPARTURE, Departure, VeniceRequest

log = structlog.get_logger()

READ_BUFFER_BYTES: Final = 64 * 1024
"""How much of an answer waits in a connection before its reading is paused, or twice that."""
DNS_CACHE_S: Final = 30
KEEPALIVE_S: Final = 10
"""Shorter than the edge's, so that a request is not sent into a connection that is being closed."""
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 1000
"""More of an answer's head is not read; edges add to it."""
PIECE_BYTES: Final = 16 * 1024
"""How much of an answer that has come is looked at before others have their turn."""
ERROR_BODY_BYTES: Final = 64 * 1024
ERROR_BODY_TIMEOUT_S: Final = 5.0
"""How long a refusal's body is read. Its status is known by then."""
PLAIN_BODY_BYTES: Final = 64 * 1024 * 1024
MODELS_TIMEOUT_S: Final = 15.0
QUOTE_TIMEOUT_S: Final = 15.0
KEY_TIMEOUT_S: Final = 10.0
CONFIRM_TIMEOUT_S: Final = 3.0
"""How long a refused call waits for Venice's answer about its key."""
CONFIRM_EVERY_S: Final = 1.0
"""How long an answer about a key is trusted before Venice is asked again."""
JOB_TIMEOUT_S: Final = 15.0
JSON: Final = "application/json"
UNFINISHED: Final = frozenset({"QUEUED", "PROCESSING"})
"""The states of a job that Venice is still at."""

# Headers of Venice that are about the answer. Those about the operator's account (rate limits,
# balances) are not among them.
PASSED_HEADERS: Final = frozenset(
    {
        "cf-ray",
        "content-type",
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
        "x-venice-tee",
        "x-venice-tee-provider",
        "x-venice-version",
    }
)


class Answer:
    """An answer of Venice whose status is 2xx and whose body has not been read."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.received = b""
        """Of a body that was read and did not come to its end."""
        self._inflater: Inflater | None = None
        self._is_readable = True
        self._is_turn_over = False
        """Whether others have their turn before more is read: to go through much at once would keep
        them waiting."""
        if (header := response.headers.get("Content-Encoding")) is not None:
            # Venice was asked for none, but something on the way may have its own mind.
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
        """Its media type without parameters, in lower case; empty where none is stated."""
        return self.raw_headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """The whole body.

        :raises UpstreamCut, UpstreamTimeout, UpstreamError: cut, silent for too long, too large.
        """
        chunks, size, content = [], 0, self._response.content
        is_plain = self._inflater is None and self._is_readable
        try:
            with TRANSLATED:
                while not content.at_eof() or not is_plain:
                    # When all of it has come, there is nothing to wait for.
                    if is_plain and content.is_eof():
                        chunk = content.read_nowait()
                    elif not (chunk := await self.next_chunk()):
                        break
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > PLAIN_BODY_BYTES:
                        chunks.clear()
                        raise UpstreamError("Venice's answer is too large.")
        except UpstreamError:
            self.received = b"".join(chunks)
            raise
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def next_chunk(self) -> bytes:
        """What has arrived of the body since the last time, at least a byte; nothing at its end.

        :raises UpstreamCut, UpstreamTimeout: when it ends early, or is silent for too long.
        """
        if self._is_turn_over:
            self._is_turn_over = False
            # Before the read: what was read must not be lost when this is cancelled.
            await asyncio.sleep(0)
        if self._inflater is None and self._is_readable:
            with TRANSLATED:
                chunk: bytes = await self._response.content.read(PIECE_BYTES)
            self._is_turn_over = len(chunk) == PIECE_BYTES
            return chunk
        if self._inflater is None:
            raise UpstreamError("Venice's answer has an encoding that is not known here.")
        return await self._next_inflated(self._inflater)

    async def _next_inflated(self, inflater: Inflater) -> bytes:
        """The next part of a body that is compressed, bounded in size and time."""
        try:
            while not (piece := inflater.step()):
                with TRANSLATED:
                    chunk = await self._response.content.readany()
                if not chunk:
                    inflater.end()
                    return b""
                inflater.feed(chunk)
        except ClientError as error:
            raise UpstreamError("Venice's answer does not match its Content-Encoding.") from error
        self._is_turn_over = True
        return piece

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it arrives; see :meth:`next_chunk`."""
        while chunk := await self.next_chunk():
            yield chunk

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


async def _start_of_body(response: aiohttp.ClientResponse) -> bytes:
    """The body of a refusal, or what has arrived of it when it is too long, too slow or cut."""
    received = bytearray()
    with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
        async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
            while len(received) < ERROR_BODY_BYTES:
                # One read returns no more than has arrived, which may be a part.
                chunk = await response.content.read(ERROR_BODY_BYTES - len(received))
                if not chunk:
                    break
                received += chunk
    return bytes(received)


def _inflated(response: aiohttp.ClientResponse, content: bytes) -> bytes:
    """The beginning of a body, without its encoding; nothing where that is not known."""
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
    """Turns what aiohttp raises into our errors, the most specific that is true."""

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
            raise UpstreamError("Venice's answer is no HTTP that can be read.") from error
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            metrics.note(metrics.UPSTREAM, 1, "cut")
            raise UpstreamCut(
                "Venice closed the connection before its answer was complete."
            ) from error


TRANSLATED: Final = _Translated()
TRANSLATABLE: Final = (aiohttp.ClientConnectionError, OSError, TimeoutError, ServiceError)
"""What the network does; anything else that keeps a request from leaving is about its content."""
Body = bytes | StreamedBody


class _Data(msgspec.Struct):
    data: KeyState


class _Job(msgspec.Struct):
    status: str = ""


class JobState(NamedTuple):
    """What Venice says of a job: whether it is still at it, and whether it gave back its price."""

    is_processing: bool
    is_refunded: bool


class Examination(NamedTuple):
    """The answer about a key: its state, or the error that Venice gave instead."""

    finding: Finding
    state: KeyState | None
    error: ServiceError | None


class Venice:
    """Requests to Venice with the operator's keys. Errors are translated; nothing is repeated."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        keys: UpstreamKeys,
        retry_s: float,
        upload_timeout_s: float,
    ) -> None:
        self._session = session
        self._upload_timeout_s = upload_timeout_s
        self._base_url = base_url
        self.keys = keys
        self.retry_s = retry_s
        """No attempt of a call begins later than this after its first."""
        self.budgets = RetryBudgets()
        self._confirming: dict[UUID, asyncio.Task[None]] = {}
        self._confirmed_at: dict[UUID, float] = {}

    def _authorization(self, key: UpstreamKey | None) -> str:
        return f"Bearer {(key or self.keys.any()).secret}"

    def post(
        self,
        path: str,
        body: Body,
        headers: Mapping[str, str],
        key: UpstreamKey | None = None,
        departure: Departure | None = None,
    ) -> Awaitable[Answer]:
        """Send a body, with any key unless one is given; ``departure`` records whether it left.

        :raises UpstreamError: of the class that says what happened, for every status but 2xx.
        """
        sent = {"Content-Type": JSON, **headers}
        return self._send("POST", path, body, sent, key, departure=departure)

    async def forward(
        self,
        method: str,
        path: str,
        body: Body,
        headers: Mapping[str, str],
        key: UpstreamKey | None = None,
        departure: Departure | None = None,
    ) -> Answer:
        """Any request, with its query in the path; for what costs nothing or is not known.

        :raises UpstreamError: of the class that says what happened, for every status but 2xx.
        """
        return await self._send(method, path, body or None, headers, key, departure=departure)

    async def _send(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: Mapping[str, str],
        key: UpstreamKey | None,
        parameters: Mapping[str, str] | None = None,
        departure: Departure | None = None,
    ) -> Answer:
        """The one place that a request leaves from. No redirect is followed: it would take the
        caller's prompt, and perhaps the key, to another origin."""
        sent = {"Authorization": self._authorization(key), **headers}
        departure = departure or Departure()
        token = DEPARTURE.set(departure)
        with TRANSLATED:
            try:
                async with asyncio.timeout(self._head_timeout_s(body)):
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
                    raise
                # Its text may be of what was to be sent: a header, the key.
                log.error("request not sent", error=type(error).__name__)
                raise UpstreamUnreachable("The request could not be sent to Venice.") from None
            finally:
                DEPARTURE.reset(token)
            metrics.note(metrics.UPSTREAM, 1, response.status)
            if 200 <= response.status < 300:
                return Answer(response)
            raise await self._refused(response)

    def _head_timeout_s(self, body: Body | None) -> float | None:
        """How long the head of the answer is waited for. Silence alone would not end it: answers of
        1xx before it, of which there may be any number, are no silence."""
        timeout = self._session.timeout
        if timeout.sock_read is None:
            return None
        upload_s = self._upload_timeout_s if isinstance(body, StreamedBody) else 0.0
        return (timeout.sock_connect or 0.0) + upload_s + timeout.sock_read

    async def of_a_job(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        organization_id: UUID,
        key_id: UUID | None,
    ) -> Answer:
        """Ask for a job, which only the account knows that it was queued with: its key, or where
        that is not in use any more each key of the organization until one does.

        :raises UpstreamError: what the last one was told.
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
        """How far a job is, at no cost; what it made is left at Venice.

        :raises UpstreamError: when it has failed, or Venice does not say.
        """
        headers = {"Accept": JSON}
        with TRANSLATED:
            async with asyncio.timeout(JOB_TIMEOUT_S):
                answer = await self.of_a_job(path, body, headers, organization_id, key_id)
                try:
                    if not answer.headers.get("Content-Type", "").startswith(JSON):
                        return JobState(is_processing=False, is_refunded=False)
                    content = await answer.read()
                finally:
                    answer.close()
        try:
            status = msgspec.json.decode(content, type=_Job).status
        except UNREADABLE as error:
            raise UpstreamError("Venice's word on a job cannot be read.") from error
        return JobState(status.upper() in UNFINISHED, is_refunded(content))

    async def quote(self, path: str, body: bytes) -> bytes:
        """What a job would cost, as JSON; free.

        :raises UpstreamError: when Venice does not say.
        """
        with TRANSLATED:
            async with asyncio.timeout(QUOTE_TIMEOUT_S):
                answer = await self.post(path, body, {"Accept": JSON})
                try:
                    return await answer.read()
                finally:
                    answer.close()

    async def models(self, path: str, model_type: str) -> bytes:
        """``GET /models``, ``/models/traits`` or ``/models/compatibility_mapping`` of a type:
        public and free."""
        return await self._get(path, {"type": model_type}, MODELS_TIMEOUT_S)

    async def examine(self, key: UpstreamKey, timeout: float) -> Examination:
        """Ask Venice about a key, at no cost, and heed the answer in the choice of keys."""
        try:
            state = await self.state(key, timeout)
        except ServiceError as error:
            finding = finding_of(error)
            reason = f"status {getattr(error, 'upstream_status', None)}"
            if finding.is_of_the_key:
                self.keys.put_out_of_service(key, reason)
            self.keys.note_finding(key, finding, reason)
            return Examination(finding, None, error)
        self.keys.note_state(key, state)
        if not state.access_permitted:
            self.keys.put_out_of_service(key, "no access")
        return Examination(state.finding, state, None)

    async def state(self, key: UpstreamKey, timeout: float = KEY_TIMEOUT_S) -> KeyState:
        """Read the state of a key, at no cost: ``GET /api_keys/rate_limits``, since ``/models``
        is public and proves nothing.

        :raises UpstreamError: when it says nothing good.
        """
        body = await self._get("/api_keys/rate_limits", {}, timeout, key)
        try:
            return msgspec.json.decode(body, type=_Data).data
        except UNREADABLE as error:
            raise UpstreamError("Venice's word on a key cannot be read.") from error

    async def note_failed(
        self, key: UpstreamKey, model: str, source: Source, error: ServiceError
    ) -> None:
        """A call with the key was not answered. Where Venice refused the key, Venice is asked about
        it, at no cost and once for all who wait: its refusal may be about what the call asked for,
        a price above the balance or a model of another plan."""
        if isinstance(error, UpstreamError) and error.evidence is Evidence.KEY_REFUSED:
            confirming = self._confirming.get(key.id)
            if confirming is None:
                confirming = asyncio.create_task(self._confirm(key))
                self._confirming[key.id] = confirming
                confirming.add_done_callback(lambda _: self._confirming.pop(key.id, None))
            await asyncio.wait({confirming})
        self.keys.failed(key, model, source, error)

    async def _confirm(self, key: UpstreamKey) -> None:
        """Put the key out of service if Venice, asked about it, takes no calls with it."""
        if time.monotonic() - self._confirmed_at.get(key.id, -math.inf) < CONFIRM_EVERY_S:
            return
        examination = await self.examine(key, CONFIRM_TIMEOUT_S)
        if examination.finding.is_of_the_key and examination.finding is not Finding.WELL:
            self.keys.put_out_of_service(key, self.keys.findings[key.id].reason)
        self._confirmed_at[key.id] = time.monotonic()

    async def close(self) -> None:
        """End what is still asked about keys."""
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
                answer = await self._send("GET", path, None, {}, key, parameters)
                try:
                    return await answer.read()
                finally:
                    answer.close()

    async def _refused(self, response: aiohttp.ClientResponse) -> ServiceError:
        try:
            received = await _start_of_body(response)
        finally:
            response.close()
        body = _inflated(response, received)
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
    """The client, open for the length of the block."""
    # Requests are bounded where they come in, by a share for each caller. A limit here would let
    # one caller keep all others waiting.
    connector = Connector(limit=0, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=KEEPALIVE_S)
    # No total timeout: a stream may run for many minutes. Silence is what ends a call.
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
        # Cookies of the edge would be shared by all callers.
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
