"""The declarations of the settings.

Every variable is declared once, as a field of :class:`Settings` with its rule and its text;
``docs/settings.md`` is made from the same declarations.
"""

import dataclasses
from typing import Any, Final

from service.formats.addresses import Network
from service.settings import allow_lists
from service.settings.address import URL_FORM, DatabaseAddress
from service.settings.rules import (
    DATABASE,
    SECRET,
    SECRET_LIST,
    TEXT,
    VENICE_URL,
    Environment,
    Rule,
    choice,
    each_of,
    integer,
    seconds,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """One setting: its rule, its defaults and its documentation."""

    name: str
    kind: str
    text: str
    rule: Rule
    development: Any
    production: Any


REQUIRED: Final = "required"
SURROUNDINGS: Final = {
    "ENVIRONMENT": "`production` or `development`, which is the default.",
    "RAILWAY_ENVIRONMENT_NAME": "Set by Railway. Whatever it is, it means *production*.",
    "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "How long the platform waits before it kills; less 15 s"
    " it is the default of `SHUTDOWN_TIMEOUT`.",
    "NO_COLOR": "With any text, commands and the log on a terminal have no colours.",
}
"""Variables that are read and are no settings of their own."""


def _variable(
    name: str, kind: str, text: str, rule: Rule, development: Any = None, production: Any = ...
) -> Any:
    production = development if production is ... else production
    secret = kind.startswith("secret")
    variable = Variable(name, kind, text, rule, development, production)
    return dataclasses.field(repr=not secret, metadata={"variable": variable})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration. Durations are seconds. Secrets have no repr."""

    environment: Environment
    database: DatabaseAddress | None = _variable(
        "DATABASE_URL",
        "URL",
        f"PostgreSQL 16 or newer: `{URL_FORM}`. In production a loopback host is refused. Left out"
        " in development, a PostgreSQL of its own is started in `DATA_DIRECTORY`.",
        DATABASE,
        None,
        REQUIRED,
    )
    database_unpooled: DatabaseAddress | None = _variable(
        "DATABASE_UNPOOLED_URL",
        "URL",
        "The same database without a connection pooler in between. Used for migrations and LISTEN;"
        " when it is set, `DATABASE_URL` is taken to go through PgBouncer.",
        DATABASE,
    )
    database_pool_min_size: int = _variable(
        "DATABASE_POOL_MIN_SIZE", "integer", "Connections kept open.", integer(1, 100), 5
    )
    database_pool_max_size: int = _variable(
        "DATABASE_POOL_MAX_SIZE", "integer", "Connections at most.", integer(1, 100), 5
    )
    database_max_inactive_s: float = _variable(
        "DATABASE_MAX_INACTIVE_SECONDS",
        "seconds",
        "A connection that was idle for longer is replaced before it is used.",
        seconds(1, 86_400),
        300.0,
    )
    database_max_age_s: float = _variable(
        "DATABASE_MAX_AGE_SECONDS",
        "seconds",
        "A connection that is older (give or take 10 %) is replaced before it is used.",
        seconds(1, 86_400),
        3600.0,
    )
    database_acquire_timeout_s: float = _variable(
        "DATABASE_ACQUIRE_TIMEOUT_SECONDS",
        "seconds",
        "How long a call waits for a working connection before it is answered 503.",
        seconds(0.1, 60),
        5.0,
    )
    database_command_timeout_s: float = _variable(
        "DATABASE_COMMAND_TIMEOUT_SECONDS",
        "seconds",
        "The longest that one statement may take.",
        seconds(0.1, 600),
        10.0,
    )
    startup_database_timeout_s: float = _variable(
        "STARTUP_DATABASE_TIMEOUT",
        "seconds",
        "How long a start waits for a database that is not there yet. `scripts/migrate.sh` waits"
        " 90 s at most.",
        seconds(0, 3600),
        30.0,
        600.0,
    )
    operator_key: str = _variable(
        "OPERATOR_KEY",
        "secret",
        "The bearer key of `/admin/v1`. In development one is made and kept in `DATA_DIRECTORY`.",
        SECRET,
        None,
        REQUIRED,
    )
    encryption_keys: tuple[str, ...] = _variable(
        "ENCRYPTION_KEY",
        "secret list",
        "The master key that wraps each organization's data key. A list, newest first, while it is"
        " rotated. In development one is made and kept in `DATA_DIRECTORY`.",
        SECRET_LIST,
        None,
        REQUIRED,
    )
    venice_api_key: str | None = _variable(
        "VENICE_API_KEY",
        "secret",
        "The operator's Venice inference key. Left out in development, the built-in sandbox plays"
        " Venice.",
        TEXT,
        None,
        REQUIRED,
    )
    venice_base_url: str = _variable(
        "VENICE_BASE_URL",
        "URL",
        "Where Venice answers.",
        VENICE_URL,
        "https://api.venice.ai/api/v1",
    )
    venice_other_paths: tuple[str, ...] = _variable(
        "VENICE_OTHER_PATHS",
        "list",
        "Paths of Venice that callers may use though Rialto does not know them, below `/api/v1` and"
        " separated by commas: `/x/y` for one, `/x/*` for all below. Nobody knows their price."
        " Paths about the account (`/api_keys`, `/billing`, `/user` and so on) cannot be opened.",
        each_of(allow_lists.parse_paths),
        (),
    )
    venice_connect_timeout_s: float = _variable(
        "VENICE_CONNECT_TIMEOUT_SECONDS",
        "seconds",
        "The longest wait for a connection to Venice.",
        seconds(0.1, 120),
        10.0,
    )
    venice_silence_timeout_s: float = _variable(
        "VENICE_SILENCE_TIMEOUT_SECONDS",
        "seconds",
        "The longest silence of Venice inside a call before it is given up; Railway's edge cuts a"
        " connection that is silent for 300.",
        seconds(0.1, 3600),
        285.0,
    )
    venice_retry_s: float = _variable(
        "VENICE_RETRY_SECONDS",
        "seconds",
        "How long attempts are repeated that Venice surely did not charge for.",
        seconds(0, 300),
        10.0,
    )
    venice_max_connections: int = _variable(
        "VENICE_MAX_CONNECTIONS",
        "integer",
        "How many connections to Venice a process has at most. Further requests wait for one in"
        " turn, for `VENICE_CONNECT_TIMEOUT_SECONDS` at most. Keep it above `MAX_OPEN_REQUESTS`, so"
        " that no caller waits for another.",
        integer(1, 1_000_000),
        5000,
    )
    venice_head_max_bytes: int = _variable(
        "VENICE_HEAD_MAX_BYTES",
        "integer",
        "The most bytes in the head of a response from Venice, with the headers that its edge adds."
        " A longer head is a 502.",
        integer(1024, 1 << 20),
        64 * 1024,
    )
    venice_max_headers: int = _variable(
        "VENICE_MAX_HEADERS",
        "integer",
        "The most headers in a response from Venice. A response with more is a 502.",
        integer(10, 10_000),
        1000,
    )
    host: str = _variable(
        "HOST",
        "text",
        "The address to listen on; empty or `::` is every interface, IPv4 and IPv6.",
        TEXT,
        "127.0.0.1",
        "",
    )
    port: int = _variable("PORT", "integer", "The port to listen on.", integer(0, 65_535), 8080)
    processes: int = _variable(
        "WEB_CONCURRENCY",
        "integer",
        "How many processes serve on the one port, each with a pool and a listen connection.",
        integer(1, 64),
        1,
    )
    head_max_bytes: int = _variable(
        "HEAD_MAX_BYTES",
        "integer",
        "The longest URL, and the longest header; a whole head may have twice as much.",
        integer(1024, 1 << 20),
        32 * 1024,
    )
    head_timeout_s: float = _variable(
        "HEAD_TIMEOUT_SECONDS",
        "seconds",
        "How long the head of a request may take to arrive once it has begun.",
        seconds(0.1, 600),
        20.0,
    )
    unknown_connections: int = _variable(
        "MAX_UNKNOWN_CONNECTIONS",
        "integer",
        "How many connections without a key an address may have before its oldest is closed.",
        integer(1, 1_000_000),
        1000,
    )
    cors_origins: tuple[str, ...] = _variable(
        "CORS_ORIGINS",
        "list",
        "Origins whose pages may call from a browser, separated by commas, each as"
        " `https://app.example.com`; or `*` for all. Empty: none. A key in a page is a key that its"
        " readers have.",
        each_of(allow_lists.parse_origins),
        (),
    )
    trusted_proxies: tuple[Network, ...] = _variable(
        "TRUSTED_PROXIES",
        "list",
        "Networks of the proxies before Rialto, in CIDR notation and separated by commas. Only"
        " these are believed when they state a client's address, which a key's `ip_allow_list` is"
        " compared with. Empty: the address of the connection is the client's.",
        each_of(allow_lists.parse_proxies),
        (),
    )
    client_address_header: str = _variable(
        "CLIENT_ADDRESS_HEADER",
        "text",
        "The header in which the proxies of `TRUSTED_PROXIES` state the client's address. Of"
        " several addresses the last one counts that is not such a proxy.",
        choice("x-forwarded-for", "x-real-ip"),
        "x-forwarded-for",
    )
    body_max_bytes: int = _variable(
        "BODY_MAX_BYTES",
        "integer",
        "The largest request body; Venice takes 35 MB of JSON.",
        integer(1024, 1 << 30),
        35 * 1024 * 1024,
    )
    body_budget_bytes: int = _variable(
        "BODY_BUDGET_BYTES",
        "integer",
        "How many bytes of bodies a process holds; at least three times `BODY_MAX_BYTES`. An"
        " organization has as many as are free, a key half as many; more are refused with 503.",
        integer(1024, 1 << 40),
        256 * 1024 * 1024,
    )
    body_timeout_s: float = _variable(
        "BODY_TIMEOUT_SECONDS",
        "seconds",
        "How long the body of a request may take to arrive.",
        seconds(0.1, 3600),
        120.0,
    )
    open_requests: int = _variable(
        "MAX_OPEN_REQUESTS",
        "integer",
        "How many requests with a key a process has under way at most. An organization has as many"
        " as are still free, a key half as many; more are refused with 429.",
        integer(10, 1_000_000),
        4000,
    )
    write_timeout_s: float = _variable(
        "WRITE_TIMEOUT_SECONDS",
        "seconds",
        "A caller who takes no byte of an answer for this long has hung up.",
        seconds(0.1, 3600),
        60.0,
    )
    heartbeat_s: float = _variable(
        "HEARTBEAT_SECONDS",
        "seconds",
        "A stream that was silent for this long gets an SSE comment, so that no proxy cuts it.",
        seconds(0.05, 300),
        15.0,
    )
    key_cache_s: float = _variable(
        "KEY_CACHE_SECONDS",
        "seconds",
        "How long a caller's key is trusted before it is read again; changes are also announced"
        " by NOTIFY, and paid calls are checked in the database each time.",
        seconds(0, 300),
        5.0,
    )
    audit_interval_s: float = _variable(
        "AUDIT_INTERVAL",
        "seconds",
        "How often the books of every organization are proven, give or take 10 %. 0 is never.",
        seconds(0, 604_800),
        3600.0,
    )
    max_end_users: int = _variable(
        "MAX_END_USERS",
        "integer",
        "How many end users a limit of each end user keeps a counter for at a time; those beyond"
        " share one.",
        integer(1, 10_000_000),
        100_000,
    )
    ledger_retention_months: int = _variable(
        "LEDGER_RETENTION_MONTHS",
        "integer",
        "How many months the ledger's entries are kept at least; older ones are dropped, a month at"
        " a time, with an audit event of their totals and digest. 0 keeps them for ever.",
        integer(0, 1200),
        0,
    )
    record_retention_days: int = _variable(
        "RECORD_RETENTION_DAYS",
        "integer",
        "How many days refusals and failed attempts are kept.",
        integer(1, 3650),
        30,
    )
    record_retention_rows: int = _variable(
        "RECORD_RETENTION_ROWS",
        "integer",
        "How many refusals, and how many attempts, are kept. Beyond that the oldest are removed, of"
        " the organizations with the most first.",
        integer(100, 10_000_000),
        1_000_000,
    )
    shutdown_listen_s: float = _variable(
        "SHUTDOWN_LISTEN_SECONDS",
        "seconds",
        "How long new requests are still taken after SIGTERM, while the platform turns traffic"
        " away.",
        seconds(0, 60),
        0.0,
        3.0,
    )
    shutdown_timeout_s: float = _variable(
        "SHUTDOWN_TIMEOUT",
        "seconds",
        "How long running calls get after SIGTERM. On Railway: the draining time"
        " (`RAILWAY_DEPLOYMENT_DRAINING_SECONDS`) less 15 s.",
        seconds(0, 3600),
        5.0,
        25.0,
    )
    watchdog_loop_s: float = _variable(
        "WATCHDOG_LOOP_SECONDS",
        "seconds",
        "A process whose event loop stalls for this long ends itself.",
        seconds(1, 3600),
        30.0,
    )
    watchdog_pool_s: float = _variable(
        "WATCHDOG_POOL_SECONDS",
        "seconds",
        "A process whose pool fails for this long while fresh connections succeed all that time "
        "ends itself. A database that is down never ends it.",
        seconds(1, 3600),
        60.0,
    )
    log_level: str = _variable(
        "LOG_LEVEL",
        "text",
        "The least that is logged. Commands that answer, as `keys list`, start at `warning`.",
        choice("debug", "info", "warning", "error"),
        "info",
    )
    log_format: str = _variable(
        "LOG_FORMAT",
        "text",
        "`auto` is console on a terminal, JSON otherwise.",
        choice("auto", "json", "console"),
        "auto",
    )
    data_directory: str = _variable(
        "DATA_DIRECTORY",
        "path",
        "Where development keeps its database and its keys. Production keeps no files.",
        TEXT,
        ".rialto",
    )

    @property
    def is_production(self) -> bool:
        return self.environment is Environment.PRODUCTION

    @property
    def migration_database(self) -> DatabaseAddress | None:
        """The address for what a pooler breaks: migrations, session locks, LISTEN."""
        return self.database_unpooled or self.database


def variables() -> list[Variable]:
    """Every setting in the order of its declaration."""
    fields = dataclasses.fields(Settings)
    return [field.metadata["variable"] for field in fields if "variable" in field.metadata]
