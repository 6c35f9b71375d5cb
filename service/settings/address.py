"""Where PostgreSQL listens: a ``postgresql://`` URL, read once and by one rule.

asyncpg and psycopg each parse URLs in a way of their own, so they are given keyword arguments.
"""

import dataclasses
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from service.settings import hosts

URL_FORM: Final = "postgresql://USER:PASSWORD@HOST:5432/DATABASE?sslmode=require"
SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Parameters that libpq or a pooler understands and that change nothing here. The server refuses
# what it does not know, so they must not travel with the connection.
IGNORED_URL_PARAMETERS: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "connect_timeout",
        "connection_limit",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "pgbouncer",
        "pool_timeout",
        "target_session_attrs",
    }
)


class AddressError(ValueError):
    """The rule that a URL breaks. Neither the URL nor its password is shown."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """Where PostgreSQL listens, as the drivers' keyword arguments. ``host`` may be a directory."""

    host: str
    port: int
    user: str
    password: str | None = dataclasses.field(repr=False)
    database: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


def parse_database_url(url: str, *, production: bool) -> DatabaseAddress:
    """The address that a ``postgres://`` or ``postgresql://`` URL names.

    :raises AddressError: naming the rule that is broken.
    """
    scheme, separator, _ = url.partition("://")
    if scheme.lower().startswith("sqlite"):
        raise AddressError(
            "SQLite is not supported: hard limits rest on PostgreSQL's row locks. Leave the"
            " variable out in development and a PostgreSQL of its own is started."
        )
    if not separator or scheme not in ("postgres", "postgresql"):
        raise AddressError(f"must start with postgresql:// or postgres://, as in {URL_FORM}")
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
    except ValueError:
        raise AddressError(
            "cannot be read as a URL (percent-encode special characters of the password):"
            f" {URL_FORM}"
        ) from None
    parameters = _url_parameters(parts.query)
    host = parameters.pop("host", "") or unquote(_url_host(parts.netloc))
    _check_host(host, production=production)
    if not host.startswith(("/", "@")):
        host = hosts.normalize_host(host)
    user, database = unquote(parts.username or ""), unquote(parts.path.lstrip("/"))
    if not user or not database:
        raise AddressError(f"must name a user and a database, as in {URL_FORM}")
    return DatabaseAddress(
        host=host,
        port=port,
        user=user,
        password=None if parts.password is None else unquote(parts.password),
        database=database,
        sslmode=parameters.get("sslmode", "prefer"),
        sslrootcert=parameters.get("sslrootcert"),
    )


def _url_host(netloc: str) -> str:
    """The host as written: urlsplit's own ``hostname`` lowers it, which breaks socket paths."""
    host = netloc.rpartition("@")[2]
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if "," in host else host.partition(":")[0]


def _url_parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in parameters:
            raise AddressError(f"repeats the parameter {name!r}")
        if name in ("sslmode", "sslrootcert", "host"):
            parameters[name] = value
        elif name not in IGNORED_URL_PARAMETERS:
            raise AddressError(
                f"has the parameter {name[:40]!r}, which is not supported; sslmode, sslrootcert and"
                " host are. Remove it."
            )
    if (mode := parameters.get("sslmode", "prefer")) not in SSL_MODES:
        raise AddressError(f"has sslmode={mode[:20]!r}; it must be one of {', '.join(SSL_MODES)}")
    return parameters


def _check_host(host: str, *, production: bool) -> None:
    if "," in host:
        raise AddressError(f"names a list of hosts; one host is supported, as in {URL_FORM}")
    if production and is_loopback(host):
        raise AddressError(
            f"points at this machine ({host or 'no host'}): in production the database is another"
            f" host. Use the database service's private address, as in {URL_FORM}"
        )
    if not host:
        raise AddressError(f"names no host, as in {URL_FORM}")
    try:
        hosts.normalize_host(host)
    except ValueError as error:
        raise AddressError(f"names a host that {error}, as in {URL_FORM}") from None


def is_loopback(host: str) -> bool:
    """Whether a URL's host means this machine, in any spelling that a resolver accepts. A directory
    is that of a Unix socket."""
    return not host or host.startswith(("/", "@")) or hosts.is_loopback(host)
