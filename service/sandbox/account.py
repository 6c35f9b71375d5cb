"""Free endpoints: the model lists, and the limits of a key."""

import datetime
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec
from aiohttp import web

from service.sandbox import models
from service.sandbox.calls import CALLS, REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE
from service.sandbox.exchange import Exchange, Plain, Response
from service.sandbox.middleware import START_BALANCE_NANOS
from service.sandbox.model import usd
from service.sandbox.refusals import Refusal, invalid, issue

_KINDS: Final = frozenset({"all", "code", *models.TYPES})


def _list(kind: str, data: object) -> bytes:
    return msgspec.json.encode({"object": "list", "type": kind, "data": data})


class Listing:
    """The model lists, with changes made by tests. Prices charged to calls do not change."""

    def __init__(self) -> None:
        self._specs: dict[str, dict[str, Any] | None] = {}
        self._bodies: dict[tuple[str, str], bytes] = {}

    def change(self, model_id: str, spec: dict[str, Any] | None) -> None:
        """Override members of a model's ``model_spec``, or remove the model with None.

        :raises ValueError: when there is no such model.
        """
        if model_id not in {model.id for model in models.MODELS}:
            raise ValueError(f"There is no model {model_id!r}.")
        self._specs[model_id] = spec
        self._bodies.clear()

    def reset(self) -> None:
        """Undo all changes."""
        self._specs.clear()
        self._bodies.clear()

    @property
    def changed(self) -> dict[str, dict[str, Any] | None]:
        """The changes by model."""
        return dict(self._specs)

    def body(self, path: str, kind: str) -> bytes:
        """Return the body of an endpoint in ``_LISTS``."""
        key = (path, kind)
        if key not in self._bodies:
            self._bodies[key] = _list(kind, _LISTS[path](self, kind))
        return self._bodies[key]

    def models(self, kind: str) -> list[dict[str, Any]]:
        entries = []
        for model in models.of_type(kind):
            spec = self._specs.get(model.id, {})
            if spec is not None:
                entry = model.entry()
                entries.append({**entry, "model_spec": {**entry["model_spec"], **spec}})
        return entries

    def traits(self, kind: str) -> dict[str, str]:
        return self._listed_only(models.traits(kind))

    def compatible(self, kind: str) -> dict[str, str]:
        return self._listed_only(models.COMPATIBLE.get(kind, {}))

    def _listed_only(self, names: dict[str, str]) -> dict[str, str]:
        return {name: to for name, to in names.items() if self._specs.get(to, {}) is not None}


_LISTS: Final[dict[str, Callable[[Listing, str], object]]] = {
    "/models": Listing.models,
    "/models/traits": Listing.traits,
    "/models/compatibility_mapping": Listing.compatible,
}
LISTING: Final = web.AppKey("LISTING", Listing)
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


def list_models(exchange: Exchange) -> Response:
    """``GET /models?type=``. Lists text models by default."""
    return _of_type(exchange, "/models", _KINDS)


def list_traits(exchange: Exchange) -> Response:
    """``GET /models/traits?type=``."""
    return _of_type(exchange, "/models/traits", models.TYPES)


def list_compatible(exchange: Exchange) -> Response:
    """``GET /models/compatibility_mapping?type=``."""
    return _of_type(exchange, "/models/compatibility_mapping", models.TYPES)


def _of_type(exchange: Exchange, path: str, kinds: Collection[str]) -> Response:
    kind = exchange.call.query.get("type", "text")
    if kind not in kinds:
        text = f"Expected one of {', '.join(sorted(kinds))}"
        raise invalid(issue(text, "type", code="invalid_enum_value"))
    return Plain(body=exchange.request.app[LISTING].body(path, kind))


def balance(_: Exchange) -> Response:
    """``GET /billing/balance``. Refused for keys of this kind."""
    raise Refusal(401, {"error": "Admin API key required"})


def rate_limits(exchange: Exchange) -> Response:
    """``GET /api_keys/rate_limits``. Free, and proves that the key is valid."""
    today = datetime.datetime.now(datetime.UTC).date()
    next_epoch = f"{today + datetime.timedelta(days=1)}T00:00:00.000Z"
    remaining = START_BALANCE_NANOS - exchange.request.app[CALLS].charged_nanos
    data: dict[str, Any] = {
        "accessPermitted": remaining > 0,
        "apiTier": {"id": "paid", "isCharged": True},
        "balances": {"USD": usd(max(0, remaining)), "DIEM": 0},
        "keyExpiration": None,
        "nextEpochBegins": next_epoch,
        "rateLimits": _RATE_LIMITS,
    }
    return Plain(body=msgspec.json.encode({"data": data}))
