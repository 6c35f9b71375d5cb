"""What Venice's clients ask about their account, answered from the caller's own limits in Venice's
shape. Nothing of the operator's account is in it."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final

import msgspec
from aiohttp import web

from service import ledger, money
from service.api.auth import authenticate_key
from service.api.state import CATALOG, DATABASE
from service.api.wire import json_response
from service.ledger import MOST_NANOS, Limit

RATES: Final = {
    ("requests", "minute"): "RPM",
    ("requests", "day"): "RPD",
    ("tokens", "minute"): "TPM",
    ("tokens", "day"): "TPD",
}
"""Venice's names for what can be used in a period."""


async def rate_limits(request: web.Request) -> web.Response:
    """``GET /api_keys/rate_limits``: what is left of the caller's money, and each model's rates.
    Venice's clients want a number: without a limit of money it is the highest that one can have."""
    limits, expires_at = await _limits(request)
    left_nanos = _left_nanos(limits)
    today = datetime.now(UTC).date()
    return json_response(
        {
            "data": {
                "accessPermitted": left_nanos != 0,
                "apiTier": {"id": "paid", "isCharged": True},
                "balances": {
                    "USD": _number(MOST_NANOS if left_nanos is None else left_nanos),
                    "DIEM": 0,
                },
                "keyExpiration": expires_at,
                "nextEpochBegins": datetime.combine(today + timedelta(days=1), time(), UTC),
                "rateLimits": _rates(limits, request.app[CATALOG].names),
            }
        }
    )


async def balance(request: web.Request) -> web.Response:
    """``GET /billing/balance``: ``usd`` is null for a caller without a limit of money."""
    limits, _ = await _limits(request)
    left_nanos = _left_nanos(limits)
    return json_response(
        {
            "canConsume": left_nanos != 0,
            "consumptionCurrency": "USD",
            "balances": {
                "diem": None,
                "usd": None if left_nanos is None else _number(left_nanos),
            },
            "diemEpochAllocation": 0,
        }
    )


async def _limits(request: web.Request) -> tuple[Sequence[Limit], datetime | None]:
    """The limits that bind every call of the key, whoever its end user is, and the key's end."""
    caller, key = await authenticate_key(request)
    found = await ledger.list_binding(request.app[DATABASE], caller.organization_id, key, b"")
    return [limit for limit in found if limit.scope in ("organization", "api_key")], (
        caller.expires_at
    )


def _left_nanos(limits: Sequence[Limit]) -> int | None:
    """The least that is left of a limit of money on all models; None where there is none."""
    return min(
        (
            money.parse_usd(limit.left)
            for limit in limits
            if limit.unit == "usd" and limit.model is None
        ),
        default=None,
    )


def _number(nanos: int) -> msgspec.Raw:
    return msgspec.Raw(money.format_usd(nanos).encode())


def _rates(limits: Sequence[Limit], models: Collection[str]) -> list[dict[str, Any]]:
    """The lowest ceiling of each kind for each model that has any."""
    rates = []
    for model in sorted({*models, *(limit.model for limit in limits if limit.model)}):
        lowest: dict[str, int] = {}
        for limit in limits:
            kind = RATES.get((limit.unit, limit.period or ""))
            if kind is not None and limit.model in (None, model):
                ceiling = int(limit.ceiling)
                lowest[kind] = min(ceiling, lowest.get(kind, ceiling))
        if lowest:
            amounts = [{"amount": amount, "type": kind} for kind, amount in lowest.items()]
            rates.append({"apiModelId": model, "rateLimits": amounts})
    return rates
