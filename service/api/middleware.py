"""What happens around every request: its id, its log line, its errors."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import HttpVersion11, web

from service.api import request_ids
from service.api.dialects import ID_HEADERS
from service.api.refusals import record_refusal
from service.api.requests import Request
from service.api.response_headers import (
    KEY_EXPIRES_AT,
    SECURITY_HEADERS,
    format_time,
    let_origin_read,
    preflight,
)
from service.api.state import SETTINGS, STATUS
from service.api.wire import Handler, error_response
from service.crypto import UnknownMasterKey
from service.errors import (
    ClientError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
)
from service.ids import uuid7
from service.telemetry import logs, metrics

log = structlog.get_logger()

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
CLIENT_CLOSED: Final = 499
"""The status logged for a request whose client left. No response carries it."""


def observed(app: web.Application, routed: Handler) -> Handler:
    """The handler of every request. It gives the request an id and a log line, counts it while it
    is inside, and turns every error into one shape of answer.

    ``routed`` answers requests whose route has to be found.
    """
    counter = app[STATUS]

    async def observe(request: Request) -> web.StreamResponse:
        is_stated = request_ids.HEADER in request.headers
        request_id = (is_stated and request_ids.stated_id(request)) or uuid7().hex
        request.request_id = request_id
        logs.request_id.set(request_id)
        status, started_at, failure = CLIENT_CLOSED, time.perf_counter(), None
        counter.open_requests += not request.is_quiet
        route = request.known_route
        try:
            try:
                response = await (routed if route is None else route.handler)(request)
            except Exception as error:  # noqa: BLE001 - what is not rendered is raised again
                failure = failure_of(error)
                response = _rendered(failure, request)
            status = response.status
            if counter.is_draining:
                response.force_close()
            return response
        finally:
            counter.open_requests -= not request.is_quiet
            for share in (request.place, request.body_share):
                if share is not None:
                    share.close()
            if route is not None:
                method, path = route.method, route.path
            else:
                method, path = _labels(request)
            duration_s = time.perf_counter() - started_at
            metrics.note(metrics.REQUEST_SECONDS, duration_s, method, path, status)
            facts = request.facts
            if request.relay is not None:
                facts |= request.relay.facts
            log_request = log.debug if request.is_quiet and status == 200 else log.info
            log_request(
                "request",
                method=method,
                route=path,
                status=status,
                duration_ms=round(duration_s * 1000, 1),
                **facts,
            )
            if failure is not None:
                record_refusal(request, failure, method, path)
            # Neither keeps the call in memory until Python looks for cycles.
            request.relay = failure = None

    return observe


def _labels(request: Request) -> tuple[str, str]:
    """The method and the route of a request whose route had to be found. Of both there are few,
    whatever is asked for."""
    resource = request.match_info.route.resource
    return (
        request.method if request.method in METHODS else "other",
        resource.canonical if resource is not None else "none",
    )


@web.middleware
async def answer_preflights(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer browsers that ask whether a page may make a request."""
    answer = None
    if request.method == "OPTIONS":
        answer = preflight(request, request.app[SETTINGS].cors_origins)
    return answer or await handler(request)


def _rendered(failure: ServiceError, request: Request) -> web.StreamResponse:
    """The answer to a request that failed.

    :raises ServiceError: the failure itself, when no response can be sent.
    """
    request.facts["code"] = failure.code
    relay = request.relay
    if relay is not None and not relay.facts:
        # The call was not admitted.
        request.facts["model"] = relay.open_call.route.call.model_name
    if _has_begun(request):
        # A second answer inside the first would corrupt both: end the connection instead.
        raise failure
    return error_response(failure, request)


def failure_of(error: Exception) -> ServiceError:
    """The failure that the client gets to see, and a log line for what went wrong here.

    :raises Exception: what is no failure, or comes when no response can be sent.
    """
    failure: ServiceError
    match error:
        case web.HTTPException():
            if error.status < 400:
                raise error
            failure = _of_aiohttp(error)
        case ServiceError():
            failure = error
            if failure.status >= 500:
                cause = type(error.__cause__).__name__ if error.__cause__ else None
                log.warning("request failed", code=error.code, error=error.message, cause=cause)
        case ConnectionError():
            # The client is gone, so nobody can get a response.
            raise error
        case UnknownMasterKey():
            log.error("data key does not open", exc_info=error)
            failure = Unavailable("The service's encryption keys are incomplete.")
        case _:
            log.error("unhandled error", exc_info=error)
            failure = ServiceError("Something went wrong here. The request id finds it in the log.")
    return failure


def _has_begun(request: Request) -> bool:
    return request.writer.output_size > 0


def _of_aiohttp(error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"This method is not allowed here; {allowed} is.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge("The body is too large.")
    if error.status == 404:
        return NotFound("There is nothing at this path. GET /openapi.json describes every route.")
    return ClientError(error.reason, status=error.status)


async def finish_headers(request: Request, response: web.StreamResponse) -> None:
    """Add the headers that every answer has, streams too: they are not on their way yet."""
    response.headers.update(dict.fromkeys(ID_HEADERS[request.dialect], request.request_id))
    # Whether the body still comes nobody knows, nor where the next request would begin.
    is_withheld = "Expect" in request.headers and not request.content.is_eof()
    # HTTP/1.0 has no chunks: where there is no length, the end of the connection is the end.
    is_endless = request.version < HttpVersion11 and "Content-Length" not in response.headers
    if is_withheld or is_endless:
        response.force_close()
        response.headers["Connection"] = "close"
    headers = response.headers
    if (until := request.caller.previous_until) is not None:
        headers[KEY_EXPIRES_AT] = format_time(until)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # Nobody needs to know which software answers.
    headers.popall("Server", None)


async def prepare_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The same, and which pages may read the answer."""
    assert isinstance(request, Request)  # noqa: S101 - the server makes them
    await finish_headers(request, response)
    if origins := request.app[SETTINGS].cors_origins:
        let_origin_read(request, response, origins)
