"""Middleware that applies to every call."""

import asyncio
import secrets
import time
from typing import Final

import msgspec
from aiohttp import web

from service.sandbox.calls import CALL, CALLS, Call
from service.sandbox.exchange import Handler
from service.sandbox.model import nanos, usd
from service.sandbox.refusals import Refusal

MAX_BODY_BYTES: Final = 35 * 1024 * 1024
START_BALANCE_NANOS: Final = nanos("1000000")


@web.middleware
async def record(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Record each call to the simulated Venice, and its outcome."""
    if request.path.startswith("/sandbox/"):
        return await handler(request)
    call = Call(
        method=request.method,
        path=request.path.removeprefix("/api/v1"),
        query=dict(request.query),
        headers=request.headers.copy(),
        received_at=time.time(),
    )
    request[CALL] = call
    try:
        response = await _respond(request, handler, call)
    except ConnectionError:
        call.note_cut()
        # The client has left. Raising would only be logged as an error of the sandbox.
        return web.Response()
    except asyncio.CancelledError:
        # A shutdown also cancels handlers, but leaves the connection open.
        if request.transport is None or request.transport.is_closing():
            call.note_cut()
        raise
    finally:
        call.finished_at = time.time()
    if request.transport is None or request.transport.is_closing():
        call.note_cut()
    call.status = response.status
    return response


async def _respond(request: web.Request, handler: Handler, call: Call) -> web.StreamResponse:
    try:
        await _record_body(request, call)
        return await handler(request)
    except Refusal as error:
        return _to_response(error)
    except web.HTTPRequestEntityTooLarge:
        text = f"Request body exceeds the maximum allowed size of {MAX_BODY_BYTES} bytes"
        return _to_response(Refusal(413, {"code": "PAYLOAD_TOO_LARGE", "error": text}))
    except web.HTTPException as error:
        return _to_response(Refusal(error.status, {"error": error.reason}))


def _to_response(refusal_: Refusal) -> web.Response:
    """Convert a refusal to a response."""
    return web.Response(
        status=refusal_.status,
        body=msgspec.json.encode(refusal_.body),
        content_type="application/json",
        headers=refusal_.headers,
    )


async def _record_body(request: web.Request, call: Call) -> None:
    try:
        body = await request.read()
        call.record_body(body)
    finally:
        request.app[CALLS].add(call)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that Venice and its edge send with every response, and the sandbox's mark."""
    headers = response.headers
    headers["x-rialto-sandbox"] = "simulated"
    headers["CF-RAY"] = f"{secrets.token_hex(8)}-SIM"
    call = request.get(CALL)
    if call is None:
        return
    calls = request.app[CALLS]
    headers["x-venice-version"] = "20261123.000000"
    for name, value in calls.rate_headers().items():
        headers.setdefault(name, value)
    # Venice reports the balance before the current call.
    before = START_BALANCE_NANOS - calls.charged_nanos + call.charged_nanos
    headers["x-venice-balance-usd"] = bytes(usd(max(0, before))).decode()
    headers["x-venice-balance-diem"] = "0"
