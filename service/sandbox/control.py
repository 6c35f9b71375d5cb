"""``/sandbox/…``: controls faults, recorded calls and model lists over HTTP, for system tests."""

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from service.sandbox.account import LISTING, Listing
from service.sandbox.calls import CALLS, MAX_CALLS, Call
from service.sandbox.faults import FAULTS, Fault, FaultKind, Faults

_FAULT: Final = msgspec.json.Decoder(Fault)
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})


class CallsQuery(Struct, forbid_unknown_fields=True):
    """The number of calls to list, newest last."""

    limit: Annotated[int, Meta(ge=1, le=MAX_CALLS)] = 100


async def push_fault(request: web.Request) -> web.Response:
    """``PUT /sandbox/faults``."""
    try:
        request.app[FAULTS].add(_FAULT.decode(await request.read()))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        return _bad_request(str(error), kinds=_kinds())
    return _faults(request.app[FAULTS])


async def list_faults(request: web.Request) -> web.Response:
    """``GET /sandbox/faults``."""
    return _faults(request.app[FAULTS])


async def clear_faults(request: web.Request) -> web.Response:
    """``DELETE /sandbox/faults``."""
    request.app[FAULTS].clear()
    return _faults(request.app[FAULTS])


async def change_model(request: web.Request) -> web.Response:
    """``PUT /sandbox/models/{id}``. Overrides members of its ``model_spec``, such as
    ``pricing``."""
    try:
        spec = msgspec.json.decode(await request.read(), type=dict[str, Any])
        request.app[LISTING].change(request.match_info["id"], spec)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        return _bad_request(str(error))
    return _listed(request.app[LISTING])


async def remove_model(request: web.Request) -> web.Response:
    """``DELETE /sandbox/models/{id}``. Removes the model from the lists."""
    try:
        request.app[LISTING].change(request.match_info["id"], None)
    except ValueError as error:
        return _bad_request(str(error))
    return _listed(request.app[LISTING])


async def reset_models(request: web.Request) -> web.Response:
    """``DELETE /sandbox/models``. Undoes all changes."""
    request.app[LISTING].reset()
    return _listed(request.app[LISTING])


async def release(request: web.Request) -> web.Response:
    """``POST /sandbox/release``."""
    return _json({"released": request.app[FAULTS].release()})


async def list_calls(request: web.Request) -> web.Response:
    """``GET /sandbox/calls?limit=``. Leaves out the keys."""
    try:
        query = msgspec.convert(dict(request.query), CallsQuery, strict=False)
    except msgspec.ValidationError as error:
        return _bad_request(str(error))
    calls = request.app[CALLS]
    return _json(
        {
            "received": calls.received,
            "calls": [_describe(call) for call in list(calls)[-query.limit :]],
        }
    )


def _describe(call: Call) -> dict[str, Any]:
    headers = {
        name: "[redacted]" if name.lower() in _SECRET_HEADERS else value
        for name, value in call.headers.items()
    }
    return {
        "method": call.method,
        "path": call.path,
        "query": call.query,
        "headers": headers,
        "body": call.body.decode(errors="replace"),
        "body_bytes": call.body_bytes,
        "received_at": call.received_at,
        "finished_at": call.finished_at,
        "cut_at": call.cut_at,
        "is_dropped": call.is_dropped,
        "status": call.status,
        "charged_nanos": call.charged_nanos,
    }


def _kinds() -> dict[str, str]:
    return {kind.value: kind.doc for kind in FaultKind}


def _faults(faults: Faults) -> web.Response:
    return _json({"faults": faults.pending(), "held": faults.held, "kinds": _kinds()})


def _listed(listing: Listing) -> web.Response:
    return _json({"changed": listing.changed})


def _bad_request(error: str, **more: object) -> web.Response:
    return _json({"error": error, **more}, status=400)


def _json(data: object, status: int = 200) -> web.Response:
    body = msgspec.json.encode(data)
    return web.Response(status=status, body=body, content_type="application/json")
