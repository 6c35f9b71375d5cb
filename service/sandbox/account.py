"""What costs nothing: the lists of models, and what a key may do."""

import datetime
from typing import Any, Final

import msgspec

from service.sandbox import models
from service.sandbox.calls import CALLS, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE
from service.sandbox.exchange import Exchange, Plain, Reply
from service.sandbox.middleware import START_BALANCE_NANOS
from service.sandbox.model import usd
from service.sandbox.refusals import Refusal, invalid, issue

_LISTED: Final = frozenset({"all", "code", *models.TYPES})


def _list(kind: str, data: object) -> bytes:
    return msgspec.json.encode({"object": "list", "type": kind, "data": data})


_MODELS: Final = {
    kind: _list(kind, [model.entry() for model in models.of_type(kind)]) for kind in _LISTED
}
_TRAITS: Final = {kind: _list(kind, models.traits(kind)) for kind in models.TYPES}
_COMPATIBLE: Final = {kind: _list(kind, models.COMPATIBLE.get(kind, {})) for kind in models.TYPES}
_RATE_LIMITS: Final = msgspec.Raw(
    msgspec.json.encode(
        [
            {
                "apiModelId": model.id,
                "rateLimits": [
                    {"amount": REQUESTS_PER_MINUTE, "type": "RPM"},
                    {"amount": TOKENS_PER_MINUTE, "type": "TPM"},
                ],
            }
            for model in models.MODELS
        ]
    )
)


def list_models(exchange: Exchange) -> Reply:
    """``GET /models?type=``: text models unless another type is asked for."""
    return _of_type(exchange, _MODELS)


def list_traits(exchange: Exchange) -> Reply:
    """``GET /models/traits?type=``."""
    return _of_type(exchange, _TRAITS)


def list_compatible(exchange: Exchange) -> Reply:
    """``GET /models/compatibility_mapping?type=``."""
    return _of_type(exchange, _COMPATIBLE)


def _of_type(exchange: Exchange, lists: dict[str, bytes]) -> Reply:
    kind = exchange.call.query.get("type", "text")
    body = lists.get(kind)
    if body is None:
        text = f"Expected one of {', '.join(sorted(lists))}"
        raise invalid(issue(text, "type", code="invalid_enum_value"))
    return Plain(body=body)


def balance(_: Exchange) -> Reply:
    """``GET /billing/balance``: not with a key of this kind."""
    raise Refusal(401, {"error": "Admin API key required"})


def rate_limits(exchange: Exchange) -> Reply:
    """``GET /api_keys/rate_limits``: proves the key and costs nothing."""
    today = datetime.datetime.now(datetime.UTC).date()
    next_epoch = f"{today + datetime.timedelta(days=1)}T00:00:00.000Z"
    left = START_BALANCE_NANOS - exchange.request.app[CALLS].charged_nanos
    data: dict[str, Any] = {
        "accessPermitted": left > 0,
        "apiTier": {"id": "paid", "isCharged": True},
        "balances": {"USD": usd(max(0, left)), "DIEM": 0},
        "keyExpiration": None,
        "nextEpochBegins": next_epoch,
        "rateLimits": _RATE_LIMITS,
    }
    return Plain(body=msgspec.json.encode({"data": data}))
