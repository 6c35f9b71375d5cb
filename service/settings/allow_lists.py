"""Lists in the settings of what is let through: paths of Venice, origins of browsers, proxies
(pure)."""

import re
from typing import Final
from urllib.parse import urlsplit

from service.formats.addresses import Network, parse_network
from service.settings import hosts

ACCOUNT_SEGMENTS: Final = frozenset(
    {
        "account",
        "accounts",
        "admin",
        "api_keys",
        "apikeys",
        "auth",
        "billing",
        "keys",
        "me",
        "organization",
        "organizations",
        "team",
        "teams",
        "user",
        "users",
        "wallet",
        "x402",
    }
)
"""Parts of a path that are about the operator's own account at Venice, whoever asks."""
MAX_ENTRIES: Final = 100
ANY_ORIGIN: Final = "*"
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PATH: Final = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.~-]*)+(/\*)?", re.ASCII)


def is_about_the_account(path: str) -> bool:
    """Whether any part of the path is about the operator's account, in any case."""
    return any(part in ACCOUNT_SEGMENTS for part in path.casefold().split("/"))


def parse_paths(text: str) -> tuple[str, ...]:
    """Paths below ``/api/v1``, separated by commas: ``/x/y`` is that path, ``/x/*`` all below.

    :raises ValueError: when one breaks its rule.
    """
    paths = _entries(text)
    for path in paths:
        if not _PATH.fullmatch(path):
            raise ValueError(
                "must be a list of paths below /api/v1, separated by commas, each as /x/y, or as"
                f" /x/* for all below it; {path[:60]!r} is none"
            )
        if is_about_the_account(path):
            raise ValueError(f"must not open {path[:60]!r}, which is about your Venice account")
    return paths


def find_entry(path: str, paths: tuple[str, ...]) -> str | None:
    """The entry of the list that opens the path, or None. Nothing in the path may make it another
    one at Venice."""
    if not _PATH.fullmatch(path) or path.endswith("/*") or is_about_the_account(path):
        return None
    opening = (
        entry
        for entry in paths
        if (path.startswith(entry[:-1]) if entry.endswith("/*") else path == entry)
    )
    return next(opening, None)


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins as browsers state them, separated by commas, or ``*`` alone for all.

    :raises ValueError: when one is none.
    """
    origins = _entries(text)
    if ANY_ORIGIN in origins:
        if len(origins) > 1:
            raise ValueError("must be * alone, or a list of origins without it")
        return origins
    return tuple(_origin(origin) for origin in origins)


def parse_proxies(text: str) -> tuple[Network, ...]:
    """Networks of proxies, separated by commas.

    :raises ValueError: when one is none, or has every address.
    """
    networks = tuple(map(parse_network, _entries(text)))
    if not all(network.prefixlen for network in networks):
        raise ValueError("must not have every address, since then anybody could state another")
    return networks


def _origin(text: str) -> str:
    form = "must be a list of origins, separated by commas, each as https://app.example.com"
    try:
        parts = urlsplit(text)
        port = parts.port
        host = hosts.normalize_host(parts.hostname or "")
    except ValueError:
        raise ValueError(f"{form}; {text[:60]!r} is none") from None
    scheme = parts.scheme.lower()
    rest = (parts.path, parts.query, parts.fragment, parts.username, parts.password)
    if scheme not in DEFAULT_PORTS or not host or "*" in host or any(rest) or text[-1] in "?#:":
        raise ValueError(f"{form}; {text[:60]!r} is none")
    host = f"[{host}]" if ":" in host else host
    is_default = port is None or port == DEFAULT_PORTS[scheme]
    return f"{scheme}://{host}" if is_default else f"{scheme}://{host}:{port}"


def _entries(text: str) -> tuple[str, ...]:
    """
    :raises ValueError: when one is empty, or there are too many.
    """
    entries = tuple(dict.fromkeys(entry.strip() for entry in text.split(",")))
    if not all(entries):
        raise ValueError("must be a list, separated by commas, without empty entries")
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"must have at most {MAX_ENTRIES} entries")
    return entries
