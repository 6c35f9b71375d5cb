"""One call and its response: recorded, authenticated and altered by faults."""

import asyncio
import contextlib
import gzip
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from service.sandbox import form, refusals
from service.sandbox.calls import CALL, CALLS, Call
from service.sandbox.faults import FAULTS, Fault, FaultKind, refusal, spent_rate
from service.sandbox.form import Form
from service.sandbox.model import Model, nanos
from service.sandbox.refusals import Refusal

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GZIP_FROM_BYTES: Final = 1024
SLOW_PIECE_BYTES: Final = 7
# Often enough to let other calls run during a long stream, and rarely enough to cost nothing.
YIELD_EVERY: Final = 32
GARBAGE: Final = b"<html>This is not JSON. It comes from the Rialto sandbox.</html>"
EDGE_PAGE: Final = b"<html><title>Blocked</title>This is a page of the Rialto sandbox.</html>"
DONE: Final = b"data: [DONE]\n\n"
API_KEYS: Final = web.AppKey("API_KEYS", frozenset[str])


@dataclass(slots=True, kw_only=True)
class Plain:
    """A response in one piece."""

    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Stream:
    """A streamed response, generated while it is sent."""

    pieces: Generator[bytes, None, None]
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    length: int | None = None


Response = Plain | Stream


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What an endpoint needs to answer a call."""

    request: web.Request
    call: Call
    body: bytes
    fault: Fault | None

    def decode(self, decoder: msgspec.json.Decoder[T]) -> T:
        """Decode the JSON body.

        :raises Refusal: when it does not match the decoder's type.
        """
        if self.request.content_type != "application/json":
            raise Refusal(400, {"error": "Content-Type must be application/json"})
        return refusals.decode(self.body, decoder)

    def charge(self, model: Model, prompt_tokens: int, completion_tokens: int = 0) -> None:
        """Charge tokens at the model's price."""
        cost = model.cost_nanos(prompt_tokens, completion_tokens) or 0
        self.request.app[CALLS].charge(self.call, prompt_tokens + completion_tokens, cost)

    def charge_units(self, model: Model, units: int) -> None:
        """Charge images, unless they are withheld."""
        if not self.is_withheld:
            self.charge_nanos(nanos(model.unit_price) * units)

    def charge_nanos(self, cost_nanos: int) -> None:
        """Charge an amount that is not counted in tokens."""
        self.request.app[CALLS].charge(self.call, 0, cost_nanos)

    def form(self) -> Form:
        """Parse the body as a form.

        :raises Refusal: when it is not a form.
        """
        return form.parse(self.body, self.request.headers.get("Content-Type", ""))

    def decode_form(self, shape: type[T]) -> tuple[T, dict[str, list[bytes]]]:
        """Decode the body from JSON or a form, and return it with the form's files.

        :raises Refusal: when it does not match the type.
        """
        if self.request.content_type != "multipart/form-data":
            return self.decode(msgspec.json.Decoder(shape)), {}
        sent = self.form()
        try:
            return msgspec.convert(sent.texts, shape, strict=False), sent.files
        except msgspec.ValidationError as error:
            raise refusals.invalid(refusals.issue(str(error))) from None

    @property
    def is_withheld(self) -> bool:
        """True if a free black image replaces the requested one."""
        return self.has(FaultKind.CONTENT_VIOLATION)

    def withheld_headers(self) -> dict[str, str]:
        """Return the headers that mark a withheld image."""
        return {"x-venice-is-content-violation": "true"} if self.is_withheld else {}

    @property
    def states_usage(self) -> bool:
        """True if the response has ``usage``."""
        return not self.has(FaultKind.MISSING_USAGE)

    @property
    def states_cost(self) -> bool:
        """True if the response has ``cost``."""
        return not self.has(FaultKind.MISSING_USAGE, FaultKind.MISSING_COST)

    def has(self, *kinds: FaultKind) -> bool:
        """Return whether the call has one of these faults."""
        return self.fault is not None and self.fault.kind in kinds

    def drop(self, *, discard_unsent: bool = False) -> None:
        """Close the connection to the client, discarding unsent data if asked."""
        transport = self.request.transport
        if transport is None:
            self.call.note_cut()
            return
        self.call.is_dropped = True
        if discard_unsent:
            transport.abort()
        else:
            transport.close()


Responder = Callable[[Exchange], Response]


def endpoint(answer: Responder, *, is_public: bool = False) -> Handler:
    """Create the request handler of an endpoint from the function that builds its responses."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if not is_public:
            _authenticate(request)
        call = request[CALL]
        fault = request.app[FAULTS].take(call.path, key_of(request))
        # The body was read when the call was recorded, and aiohttp keeps it.
        body = await request.read()
        exchange = Exchange(request=request, call=call, body=body, fault=fault)
        if fault is not None:
            replacement = await _apply_fault(exchange, fault)
            if replacement is not None:
                return replacement
        reply = answer(exchange)
        if fault is not None and fault.kind is FaultKind.RATE_SPENT:
            reply.headers = {**reply.headers, **spent_rate(fault)}
        return await _send(exchange, reply)

    return handle


def _authenticate(request: web.Request) -> None:
    if "Authorization" not in request.headers:
        raise refusals.unauthenticated()
    if key_of(request) not in request.app[API_KEYS]:
        raise refusals.unknown_key()


def key_of(request: web.Request) -> str:
    """Return the key of a call, or an empty string."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def _apply_fault(exchange: Exchange, fault: Fault) -> web.StreamResponse | None:
    """Apply a fault before the response is built. Returns a response if the fault replaces it."""
    refused = refusal(fault)
    if refused is not None:
        raise refused
    match fault.kind:
        case FaultKind.GARBAGE:
            return web.Response(body=GARBAGE, content_type="application/json")
        case FaultKind.EDGE_PAGE:
            return web.Response(status=fault.status, body=EDGE_PAGE, content_type="text/html")
        case FaultKind.SLOW_HEADERS:
            await asyncio.sleep(1.0 if fault.seconds is None else fault.seconds)
        case FaultKind.DISCONNECT:
            exchange.drop(discard_unsent=True)
            return web.Response()
        case FaultKind.HANG | FaultKind.BARRIER:
            if not await exchange.request.app[FAULTS].hold(exchange.request, fault.seconds):
                exchange.drop()
                return web.Response()
        case _:
            pass
    return None


async def _send(exchange: Exchange, reply: Response) -> web.StreamResponse:
    if isinstance(reply, Stream):
        return await _send_pieces(exchange, reply)
    if reply.after_s:
        await asyncio.sleep(reply.after_s)
    fault = exchange.fault
    if fault is not None and fault.kind is FaultKind.IN_BAND_ERROR:
        raise Refusal(500, {"error": fault.message or "Inference processing failed"})
    if fault is not None and fault.kind in (FaultKind.STALL, FaultKind.CUT, FaultKind.SLOW_BYTES):
        return await _send_pieces(exchange, _in_halves(reply))
    body, headers = reply.body, dict(reply.headers)
    if _wants_gzip(exchange.request, reply):
        body = gzip.compress(body, compresslevel=1)
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, content_type=reply.content_type, headers=headers)


def _wants_gzip(request: web.Request, reply: Plain) -> bool:
    return (
        len(reply.body) >= GZIP_FROM_BYTES
        and reply.content_type == "application/json"
        and "gzip" in request.headers.get("Accept-Encoding", "")
    )


def _in_halves(reply: Plain) -> Stream:
    middle = len(reply.body) // 2
    return Stream(
        pieces=(half for half in (reply.body[:middle], reply.body[middle:])),
        content_type=reply.content_type,
        headers=reply.headers,
        length=len(reply.body),
    )


async def _send_pieces(exchange: Exchange, reply: Stream) -> web.StreamResponse:
    response = web.StreamResponse(headers=reply.headers)
    response.content_type = reply.content_type
    response.content_length = reply.length
    if reply.length is None:
        response.headers["Cache-Control"] = "no-cache"
    await response.prepare(exchange.request)
    fault = exchange.fault
    with contextlib.closing(reply.pieces):
        for index, piece in enumerate(reply.pieces):
            if index and reply.pause_s:
                await asyncio.sleep(reply.pause_s)
            elif index % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            if fault is None:
                await response.write(piece)
            elif index == fault.after and not await _apply_fault_midway(exchange, response, fault):
                break
            else:
                await _write(response, piece, fault)
    return response


async def _apply_fault_midway(
    exchange: Exchange, response: web.StreamResponse, fault: Fault
) -> bool:
    """Apply a fault in the middle of a body. Returns whether the body continues."""
    match fault.kind:
        case FaultKind.CUT:
            exchange.drop()
            return False
        case FaultKind.IN_BAND_ERROR:
            error = {
                "message": fault.message or "The upstream provider failed.",
                "type": "upstream_error",
                "code": "upstream_error",
                "param": None,
            }
            await response.write(event({"error": error}) + DONE)
            return False
        case FaultKind.STALL:
            if not await exchange.request.app[FAULTS].hold(exchange.request, fault.seconds):
                exchange.drop()
                return False
        case _:
            pass
    return True


async def _write(response: web.StreamResponse, piece: bytes, fault: Fault) -> None:
    if fault.kind is not FaultKind.SLOW_BYTES:
        await response.write(piece)
        return
    for start in range(0, len(piece), SLOW_PIECE_BYTES):
        await response.write(piece[start : start + SLOW_PIECE_BYTES])
        await asyncio.sleep(0.001 if fault.seconds is None else fault.seconds)


def event(data: object) -> bytes:
    """Encode a server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
