"""The HTTP client for Venice."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

import msgspec
import structlog

from service import __version__
from service.errors import (
    Evidence,
    ServiceError,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamUnreachable,
)
from service.formats.lenient import UNREADABLE
from service.settings import Settings
from service.telemetry import metrics
from service.upstream.cooldowns import Source
from service.upstream.findings import Finding, finding_of
from service.upstream.http import Departure, HttpClient, InvalidRequestError, Limits, StreamedBody
from service.upstream.http.errors import timed_out
from service.upstream.keys import EVERY_MODEL, UpstreamKey, UpstreamKeys, UpstreamKeyState
from service.upstream.meter import stated_cost
from service.upstream.refusals import is_refunded, ray_of, refusal
from service.upstream.response import UpstreamResponse
from service.upstream.retries import RetryBudgets

log = structlog.get_logger()

ERROR_BODY_BYTES: Final = 64 * 1024
ERROR_BODY_TIMEOUT_S: Final = 5.0
"""The time limit for reading an error response's body. Its status is already known by then."""
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
        http: HttpClient[UpstreamResponse],
        base_url: str,
        keys: UpstreamKeys,
        retry_s: float,
    ) -> None:
        self._http = http
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
        return self.send(method, path, body, headers)

    async def send(
        self,
        method: str,
        path: str,
        body: Body,
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
        if parameters:
            path = f"{path}?{urlencode(parameters)}"
        try:
            response = await self._http.send(method, self._base_url, path, sent, body, departure)
        except InvalidRequestError as error:
            log.error("request not sent", reason=str(error))
            raise UpstreamUnreachable("The request could not be sent to Venice.") from None
        metrics.note(metrics.UPSTREAM, 1, response.status)
        if 200 <= response.status < 300:
            return response
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
        async with _within(JOB_TIMEOUT_S):
            answer = await self.post_for_job(path, body, headers, organization_id, key_id)
            try:
                if answer.content_type != JSON:
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
        async with _within(QUOTE_TIMEOUT_S):
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
        async with _within(timeout):
            answer = await self.send("GET", path, b"", {"Accept": "*/*"}, key, parameters)
            try:
                return await answer.read()
            finally:
                answer.close()

    async def _read_refusal(self, response: UpstreamResponse) -> ServiceError:
        try:
            body = await response.read_start(ERROR_BODY_BYTES, ERROR_BODY_TIMEOUT_S)
        finally:
            response.close()
        error = refusal(response.status, response.raw_headers, body)
        error.cost_usd = stated_cost(response.raw_headers, body)
        log.info(
            "venice refused",
            upstream_status=response.status,
            code=error.code,
            cf_ray=ray_of(response.raw_headers),
        )
        return error


@contextlib.asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    """Bound a whole request, which a deadline for silence does not.

    :raises UpstreamTimeout: when the block takes longer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise timed_out() from None


@contextlib.asynccontextmanager
async def open_venice(
    settings: Settings, *, base_url: str, keys: UpstreamKeys
) -> AsyncIterator[Venice]:
    """Open the client for the length of the block."""
    # There is no deadline for a whole response, because a stream may run for many minutes. Silence
    # ends a call.
    limits = Limits(
        connect_s=settings.venice_connect_timeout_s,
        silence_s=settings.venice_silence_timeout_s,
        upload_s=settings.body_timeout_s,
        head_max_bytes=settings.venice_head_max_bytes,
        max_headers=settings.venice_max_headers,
        max_connections=settings.venice_max_connections,
    )
    headers = {"User-Agent": f"rialto/{__version__}", "Accept-Encoding": "identity"}
    http = HttpClient(UpstreamResponse, limits, headers)
    venice = Venice(http, base_url, keys, settings.venice_retry_s)
    try:
        yield venice
    finally:
        await venice.close()
        await http.close()
