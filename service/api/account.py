"""What Venice's clients ask about their account, answered from the caller's own limits in Venice's
shape, and what a key's holder does with the key. Nothing of the operator's account is in it."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from aiohttp import web

from service import accounts, ledger, money
from service.api.auth import authenticate_key, database_of
from service.api.operations import actor_of, caller_change
from service.api.requests import Request
from service.api.state import CATALOG
from service.api.wire import json_response, read_as
from service.ledger import MAX_CEILING_NANOS, Limit

Kind = Literal["RPM", "RPD", "TPM", "TPD"]
RATES: Final[dict[tuple[str, str], Kind]] = {
    ("requests", "minute"): "RPM",
    ("requests", "day"): "RPD",
    ("tokens", "minute"): "TPM",
    ("tokens", "day"): "TPD",
}
"""Venice's names for what can be used in a period."""


Number = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "number"})]


class Tier(msgspec.Struct, rename="camel"):
    """What the account is at Venice: always one that pays."""

    id: str = "paid"
    is_charged: bool = True


class Balances(msgspec.Struct):
    """What is left, in US dollars and in Venice's own unit."""

    USD: Number
    DIEM: int = 0


class RateLimit(msgspec.Struct):
    """A ceiling of a kind."""

    amount: int
    type: Kind


class ModelRates(msgspec.Struct, rename="camel"):
    """The ceilings of a model."""

    api_model_id: str
    rate_limits: list[RateLimit]


class KeyState(msgspec.Struct, rename="camel"):
    """What a key may do."""

    access_permitted: bool
    api_tier: Tier
    balances: Balances
    key_expiration: datetime | None
    next_epoch_begins: datetime
    rate_limits: list[ModelRates]


class RateLimits(msgspec.Struct):
    """What is left to the key, in Venice's shape."""

    data: KeyState


class BalancesLeft(msgspec.Struct):
    """Null is without a limit."""

    diem: int | None
    usd: Number | None


class Balance(msgspec.Struct, rename="camel"):
    """What is left to the key, in Venice's shape."""

    can_consume: bool
    balances: BalancesLeft
    consumption_currency: str = "USD"
    diem_epoch_allocation: int = 0


class OwnKey(msgspec.Struct):
    """A caller's key after its rotation, with the secret that is shown this once, and when the old
    one stops working."""

    id: UUID
    key: str
    prefix: str
    previous_until: datetime | None


async def rotate_key(request: Request) -> web.Response:
    """``POST /v1/key/rotate``: give the caller's key a new secret, which is shown only now. The old
    secret goes on working for ``overlap_seconds``, a day unless stated, but cannot rotate the key
    again."""
    caller, key_id = await authenticate_key(request)
    rotation = await read_as(request, accounts.Rotation)
    key = await accounts.find_key(database_of(request), key_id)
    async with caller_change(request, database_of(request)) as conn:
        secret = await accounts.rotate_key(
            conn,
            actor_of(request),
            key,
            rotation.overlap_seconds,
            own_digest=caller.key_digest,
        )
        # Read here: an answer that failed after the commit would lose the secret.
        rotated = await accounts.find_key(conn, key_id)
    return json_response(OwnKey(key_id, secret, rotated.prefix, rotated.previous_until))


async def rate_limits(request: Request) -> web.Response:
    """``GET /api_keys/rate_limits``: what is left of the caller's money, and each model's rates.
    Venice's clients want a number: without a limit of money it is the highest that one can have."""
    limits, expires_at = await _limits(request)
    left_nanos = _left_nanos(limits)
    today = (await database_of(request).now()).date()
    state = KeyState(
        access_permitted=left_nanos != 0,
        api_tier=Tier(),
        balances=Balances(_number(MAX_CEILING_NANOS if left_nanos is None else left_nanos)),
        key_expiration=expires_at,
        next_epoch_begins=datetime.combine(today + timedelta(days=1), time(), UTC),
        rate_limits=_rates(limits, request.app[CATALOG].names),
    )
    return json_response(RateLimits(state))


async def balance(request: Request) -> web.Response:
    """``GET /billing/balance``: what is left of the caller's money; ``usd`` is null without a
    limit of it."""
    limits, _ = await _limits(request)
    left_nanos = _left_nanos(limits)
    left = BalancesLeft(diem=None, usd=None if left_nanos is None else _number(left_nanos))
    return json_response(Balance(can_consume=left_nanos != 0, balances=left))


async def _limits(request: Request) -> tuple[Sequence[Limit], datetime | None]:
    """The limits that bind every call of the key, whoever its end user is, and the key's end."""
    caller, key = await authenticate_key(request)
    found = await ledger.list_binding(database_of(request), caller.organization_id, key, b"")
    return [limit for limit in found if limit.scope in ("organization", "api_key")], (
        caller.expires_at
    )


def _left_nanos(limits: Sequence[Limit]) -> int | None:
    """The least that is left of a limit of money on all models; None where there is none."""
    return min(
        (
            money.parse_usd(str(limit.left))
            for limit in limits
            if limit.unit == "usd" and limit.model is None
        ),
        default=None,
    )


def _number(nanos: int) -> msgspec.Raw:
    return msgspec.Raw(money.format_usd(nanos).encode())


def _rates(limits: Sequence[Limit], models: Collection[str]) -> list[ModelRates]:
    """The lowest ceiling of each kind for each model that has any."""
    rates = []
    for model in sorted({*models, *(limit.model for limit in limits if limit.model)}):
        lowest: dict[Kind, int] = {}
        for limit in limits:
            kind = RATES.get((limit.unit, limit.period or ""))
            if kind is not None and limit.model in (None, model):
                ceiling = int(limit.ceiling)
                lowest[kind] = min(ceiling, lowest.get(kind, ceiling))
        if lowest:
            amounts = [RateLimit(amount, kind) for kind, amount in lowest.items()]
            rates.append(ModelRates(model, amounts))
    return rates
