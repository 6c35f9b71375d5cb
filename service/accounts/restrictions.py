"""What a key may be used for and from where: models, endpoints, addresses. Pure functions."""

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from service.errors import ClientError, Forbidden
from service.formats.addresses import Network, are_within, parse_network

PAGES: Final = "/dashboard"
MAX_ENTRIES: Final = 100
SHOWN_ENTRIES: Final = 10
_MODEL_NAME: Final = re.compile(r"[!-~]{1,200}", re.ASCII)
_ENDPOINT: Final = re.compile(r"/[!-~]{1,199}", re.ASCII)


class Restrictions(msgspec.Struct, frozen=True, kw_only=True):
    """The networks from which a key may be used, and its endpoints; None for all."""

    networks: tuple[Network, ...] | None
    endpoints: frozenset[str] | None

    @classmethod
    def of(cls, row: Any) -> "Restrictions | None":
        """Build them from the row of a key; None where the key has none."""
        networks, endpoints = row["ip_allow_list"], row["allowed_endpoints"]
        if networks is None and endpoints is None:
            return None
        return cls(
            networks=None if networks is None else tuple(networks),
            endpoints=None if endpoints is None else frozenset(endpoints),
        )


def check_models(models: list[str] | None) -> None:
    """The rule for what a key may use.

    :raises ClientError: when a list breaks it.
    """
    if models is None:
        return
    _check_length("models", models)
    if not all(_MODEL_NAME.fullmatch(name) for name in models):
        raise ClientError(
            "models: each must be 1 to 200 printable ASCII characters without spaces.",
            param="models",
        )


def endpoint_of(path: str) -> str:
    """The name of an endpoint, by the path of its route. Both paths of Venice's routes, ``/v1/…``
    and ``/api/v1/…``, are one endpoint, and so are all pages of the dashboard."""
    return PAGES if path.startswith(PAGES) else path.removeprefix("/api")


def parse_endpoints(paths: list[str] | None) -> list[str] | None:
    """The names of endpoints in the form in which they are stored.

    :raises ClientError: when the list breaks a rule.
    """
    if paths is None:
        return None
    _check_length("allowed_endpoints", paths)
    if not all(_ENDPOINT.fullmatch(path) for path in paths):
        raise ClientError(
            "allowed_endpoints: each must be the path of a route, as /v1/chat/completions.",
            param="allowed_endpoints",
        )
    return list(dict.fromkeys(map(endpoint_of, paths)))


def parse_networks(texts: list[str] | None) -> list[Network] | None:
    """The networks of an address list.

    :raises ClientError: when the list breaks a rule, or an entry is no network.
    """
    if texts is None:
        return None
    _check_length("ip_allow_list", texts)
    try:
        return list(dict.fromkeys(map(parse_network, texts)))
    except ValueError as error:
        raise ClientError(f"ip_allow_list: each {error}.", param="ip_allow_list") from None


def _check_length(field: str, entries: Sequence[str]) -> None:
    """An empty list would be a key that can do nothing, or a mistake for null."""
    if not 1 <= len(entries) <= MAX_ENTRIES:
        raise ClientError(
            f"{field}: must be null, for all, or 1 to {MAX_ENTRIES} entries.", param=field
        )


def must_be_among(
    names: list[str] | None, allowed: Collection[str], whose: str, field: str = "models"
) -> None:
    """:raises Forbidden: when the list is of more than ``whose`` own."""
    if names is None or not set(names) <= set(allowed):
        raise _not_among(field, whose, sorted(allowed))


def must_be_within(networks: list[Network] | None, allowed: Sequence[Network], whose: str) -> None:
    """:raises Forbidden: when the networks have addresses beyond ``whose`` own."""
    if networks is None or not are_within(networks, allowed):
        raise _not_among("ip_allow_list", whose, list(map(str, allowed)))


def _not_among(field: str, whose: str, allowed: Sequence[str]) -> Forbidden:
    shown = ", ".join(allowed[:SHOWN_ENTRIES])
    return Forbidden(f"{field}: must be among those that {whose}: {shown}.", param=field)
