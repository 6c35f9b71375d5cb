"""What happens around every request: its id, its log line, its errors."""

import time
from typing import Final

import structlog
from aiohttp import HttpVersion11, web

from service.api.intake import BODY_SHARE
from service.api.request_ids import request_id_of
from service.api.response_headers import SECURITY_HEADERS, let_origin_read, preflight
from service.api.state import PLACE, SETTINGS, STATUS
from service.api.wire import ANTHROPIC, DIALECT, REQUEST_ID, Handler, dialect_of, error_response
from service.crypto import UnknownMasterKey
from service.errors import (
    ClientError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    Unavailable,
)
from service.telemetry import logs, metrics

log = structlog.get_logger()

QUIET_PATHS: Final = frozenset({"/health", "/health/full", "/metrics"})
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
CLIENT_CLOSED: Final = 499
"""The status logged for a request whose client left. No response carries it."""


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id and a log line, count it while it is inside, and turn every error into
    one shape of answer."""
    request_id = request_id_of(request)
    request[REQUEST_ID] = request_id
    request[DIALECT] = dialect_of(request.path)
    logs.request_id.set(request_id)
    status, started_at = CLIENT_CLOSED, time.perf_counter()
    counter = request.app[STATUS]
    is_quiet = request.path in QUIET_PATHS
    counter.open_requests += not is_quiet
    try:
        try:
            origins = request.app[SETTINGS].cors_origins
            is_asked = origins and request.method == "OPTIONS"
            answer = preflight(request, origins) if is_asked else None
            response = answer or await handler(request)
        except Exception as error:  # noqa: BLE001 - what is not rendered is raised again
            response = _rendered(error, request)
        status = response.status
        if counter.is_draining:
            response.force_close()
        return response
    finally:
        counter.open_requests -= not is_quiet
        for share in (request.get(PLACE), request.get(BODY_SHARE)):
            if share is not None:
                share.close()
        log_request = log.debug if is_quiet and status == 200 else log.info
        duration_s = time.perf_counter() - started_at
        # Of both there are few, whatever is asked for.
        method = request.method if request.method in METHODS else "other"
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "none"
        metrics.note(metrics.REQUEST_SECONDS, duration_s, method, route, status)
        log_request(
            "request",
            method=method,
            route=route,
            status=status,
            duration_ms=round(duration_s * 1000, 1),
        )


def _rendered(error: Exception, request: web.Request) -> web.StreamResponse:
    """The answer to a request that failed.

    :raises Exception: what is no failure, or comes when no response can be sent.
    """
    failure: ServiceError
    match error:
        case web.HTTPException():
            if error.status < 400:
                raise error
            return error_response(_of_aiohttp(error), request)
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
    if _has_begun(request):
        # A second answer inside the first would corrupt both: end the connection instead.
        raise failure
    return error_response(failure, request)


def _has_begun(request: web.Request) -> bool:
    writer = request._payload_writer  # noqa: SLF001 - aiohttp has no public test for this
    return writer is not None and getattr(writer, "output_size", 0) > 0


def _of_aiohttp(error: web.HTTPException) -> ServiceError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"This method is not allowed here; {allowed} is.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge("The body is too large.")
    if error.status == 404:
        return NotFound("There is nothing at this path. GET /openapi.json describes every route.")
    return ClientError(error.reason, status=error.status)


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that every answer has, streams too: they are not on their way yet."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers["x-request-id"] = request_id
        if request.get(DIALECT) is ANTHROPIC:
            response.headers["request-id"] = request_id
    # Whether the body still comes nobody knows, nor where the next request would begin.
    is_withheld = "Expect" in request.headers and not request.content.is_eof()
    # HTTP/1.0 has no chunks: where there is no length, the end of the connection is the end.
    is_endless = request.version < HttpVersion11 and "Content-Length" not in response.headers
    if is_withheld or is_endless:
        response.force_close()
        response.headers["Connection"] = "close"
    headers = response.headers
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    # Nobody needs to know which software answers.
    headers.popall("Server", None)


async def prepare_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The same, and which pages may read the answer."""
    await finish_headers(request, response)
    if origins := request.app[SETTINGS].cors_origins:
        let_origin_read(request, response, origins)


MIDDLEWARES: Final = (observe,)
