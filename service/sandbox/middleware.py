"""What happens to every call, whichever endpoint answers it."""

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
    """Keep every call to Venice's part of the sandbox, and see what becomes of it."""
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
        response = await _answer(request, handler, call)
    except ConnectionError:
        call.note_cut()
        # Nobody is there to read it; raising would only be logged as a fault of the sandbox.
        return web.Response()
    except asyncio.CancelledError:
        # A server that shuts down cancels as well; then the connection is still there.
        if request.transport is None or request.transport.is_closing():
            call.note_cut()
        raise
    finally:
        call.finished_at = time.time()
    if request.transport is None or request.transport.is_closing():
        call.note_cut()
    call.status = response.status
    return response


async def _answer(request: web.Request, handler: Handler, call: Call) -> web.StreamResponse:
    try:
        await _take_body(request, call)
        return await handler(request)
    except Refusal as error:
        return _refused(error)
    except web.HTTPRequestEntityTooLarge:
        text = f"Request body exceeds the maximum allowed size of {MAX_BODY_BYTES} bytes"
        return _refused(Refusal(413, {"code": "PAYLOAD_TOO_LARGE", "error": text}))
    except web.HTTPException as error:
        return _refused(Refusal(error.status, {"error": error.reason}))


def _refused(refusal_: Refusal) -> web.Response:
    """A refusal as a response."""
    return web.Response(
        status=refusal_.status,
        body=msgspec.json.encode(refusal_.body),
        content_type="application/json",
        headers=refusal_.headers,
    )


async def _take_body(request: web.Request, call: Call) -> None:
    try:
        body = await request.read()
        call.keep(body)
    finally:
        request.app[CALLS].add(call)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What Venice and its edge put on every answer, and the sandbox's own mark."""
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
    # As at Venice: what was there before this call.
    before = START_BALANCE_NANOS - calls.charged_nanos + call.charged_nanos
    headers["x-venice-balance-usd"] = bytes(usd(max(0, before))).decode()
    headers["x-venice-balance-diem"] = "0"
