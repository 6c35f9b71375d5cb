"""``rialto doctor``: checks of the installation, each with what to do."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from service import accounts, upstream
from service.background.clocks import MAX_DIFFERENCE_S, measure_clock
from service.commands import probe
from service.commands.console import configure_logs
from service.commands.output import Column, Command, Rows, show
from service.commands.work import database_address, run_command
from service.crypto import Keyring
from service.database import schema
from service.database.database import Database
from service.database.errors import POOLER_HINT
from service.database.first_connection import first_connection, is_pooled
from service.database.pool import open_pool
from service.errors import ServiceError, SettingsError, StartupError
from service.settings import Settings, load, suspicious_names
from service.settings.address import DatabaseAddress
from service.settings.hosts import ANYWHERE

State = Literal["ok", "note", "warning", "problem"]

CONNECT_TIMEOUT_S: Final = 5.0
PROCESS_CONNECTIONS: Final = 1
"""Connections of each process besides its pool."""
LOW_DISK_BYTES: Final = 1 << 30
FULL_DISK_BYTES: Final = 100 << 20
LONG_HEADER_BYTES: Final = 20_000
"""Longer than many proxies take by default, shorter than Rialto does."""
MAX_CONNECTIONS: Final = "SELECT current_setting('max_connections')::int"
DATABASE_BYTES: Final = "SELECT pg_database_size(current_database())"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a check. ``advice`` is what to do, null where nothing has to be done."""

    check: str
    state: State
    found: str
    advice: str | None = None


COLUMNS: Final = (
    Column("check", "check"),
    Column("", "state", "state"),
    Column("found", "found"),
    Column("what to do", "advice", none=""),
)


@click.command("doctor", cls=Command)
@click.option(
    "--url",
    metavar="URL",
    help="The public address, such as https://rialto.example.com, to check the proxy before it.",
)
def doctor(url: str | None) -> None:
    """Check the installation, and advise what to do. Costs nothing.

    Exits with status 1 if there is a problem.
    """
    found: list[Finding] = []

    async def work() -> None:
        settings = _read_settings(found)
        if settings is not None:
            await _check_database(settings, found)
            found.append(_check_disk(settings))
            found.extend(await _check_service(settings, url))
        show(Rows(rows=found, columns=COLUMNS))

    run_command(work())
    if any(one.state == "problem" for one in found):
        sys.exit(1)


def _read_settings(found: list[Finding]) -> Settings | None:
    """Read the settings and add what is found; None if they are wrong."""
    settings = None
    try:
        settings = load(makes_secrets=False, log_level="error")
    except SettingsError as error:
        found.extend(
            Finding(
                check="settings", state="problem", found=mistake, advice="See docs/settings.md."
            )
            for mistake in error.mistakes
        )
    for name, meant in suspicious_names().items():
        advice = f"Did you mean {meant}?" if meant else "Remove it: no setting has this name."
        found.append(
            Finding(check="settings", state="warning", found=f"{name} is unknown", advice=advice)
        )
    if settings is not None:
        configure_logs(settings)
        environment = settings.environment.value
        found.append(Finding(check="settings", state="ok", found=f"valid, for {environment}"))
    return settings


async def _check_database(settings: Settings, found: list[Finding]) -> None:
    """Check the database, and with it the keys and the clock; add each finding at once."""
    try:
        async with database_address(settings) as address:
            # Reports why the database is unreachable, which a pool cannot.
            async with first_connection(address, CONNECT_TIMEOUT_S):
                pass
            async with open_pool(settings, address) as database:
                await _check_open_database(settings, address, database, found)
    except StartupError as error:
        found.append(
            Finding(check="database", state="problem", found=str(error), advice=error.hint)
        )
    except ServiceError as error:
        advice = "Look at the log of the database."
        found.append(Finding(check="database", state="problem", found=str(error), advice=advice))


async def _check_open_database(
    settings: Settings, address: DatabaseAddress, database: Database, found: list[Finding]
) -> None:
    found.append(await _check_connections(settings, database))
    schema = await _check_schema(address)
    found.append(schema)
    if settings.database is not None:
        found.append(await _check_pooler(settings.database, settings.database_unpooled))
    found.append(await _check_clock(database))
    if schema.state == "problem":
        # What follows reads the tables.
        return
    found.append(await _check_master_key(settings, database))
    found.extend(await _check_venice_keys(settings, database))


async def _check_connections(settings: Settings, database: Database) -> Finding:
    most = await database.fetchval(MAX_CONNECTIONS)
    size_mb = await database.fetchval(DATABASE_BYTES) / 1e6
    needed = settings.processes * (settings.database_pool_max_size + PROCESS_CONNECTIONS)
    where = settings.database or "embedded"
    found = f"{where}, {size_mb:,.0f} MB; needs {needed} of {most} connections"
    if 2 * needed > most:
        return Finding(
            check="database",
            state="warning",
            found=found,
            advice="A deploy needs twice as many. Lower DATABASE_POOL_MAX_SIZE or WEB_CONCURRENCY,"
            " raise max_connections, or add PgBouncer.",
        )
    return Finding(check="database", state="ok", found=found)


async def _check_schema(address: DatabaseAddress) -> Finding:
    try:
        async with first_connection(address, CONNECT_TIMEOUT_S) as conn:
            await schema.verify(conn)
    except StartupError as error:
        return Finding(check="schema", state="problem", found=str(error), advice=error.hint)
    return Finding(check="schema", state="ok", found=f"all {len(schema.TABLES)} tables")


async def _check_pooler(address: DatabaseAddress, unpooled: DatabaseAddress | None) -> Finding:
    is_through = await is_pooled(address, CONNECT_TIMEOUT_S)
    if is_through if unpooled is None else await is_pooled(unpooled, CONNECT_TIMEOUT_S):
        found = "a pooler stands before the database"
        return Finding(check="pooler", state="problem", found=found, advice=POOLER_HINT)
    if is_through:
        found = "DATABASE_URL leads to a pooler, DATABASE_UNPOOLED_URL past it"
        return Finding(check="pooler", state="ok", found=found)
    if unpooled is not None:
        return Finding(
            check="pooler",
            state="note",
            found="DATABASE_URL leads to no pooler",
            advice="Remove DATABASE_UNPOOLED_URL: it switches prepared statements off.",
        )
    return Finding(check="pooler", state="ok", found="none")


async def _check_master_key(settings: Settings, database: Database) -> Finding:
    try:
        await accounts.check_master_key(database, Keyring(settings.encryption_keys))
    except StartupError as error:
        return Finding(check="encryption key", state="problem", found=str(error), advice=error.hint)
    return Finding(check="encryption key", state="ok", found="opens the newest data key")


async def _check_clock(database: Database) -> Finding:
    ahead_s = await measure_clock(database)
    found = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > MAX_DIFFERENCE_S:
        advice = "Synchronize the clocks of this machine and of the database (NTP)."
        return Finding(check="clock", state="warning", found=found, advice=advice)
    return Finding(check="clock", state="ok", found=found)


async def _check_venice_keys(settings: Settings, database: Database) -> list[Finding]:
    if settings.venice_api_key is None:
        return [
            Finding(
                check="Venice key",
                state="note",
                found="the sandbox replaces Venice",
                advice="Set VENICE_API_KEY for real answers.",
            )
        ]
    keyring = Keyring(settings.encryption_keys)
    pool = upstream.UpstreamKeys(await upstream.load(database, keyring, settings.venice_api_key))
    async with upstream.open_venice(
        settings, base_url=settings.venice_base_url, keys=pool
    ) as venice:
        checked = [await upstream.check(database, venice, key) for key in pool.all]
    return [
        Finding(check="Venice key", state="ok", found=f"Venice accepts {key.name!r}")
        if key.is_well
        else Finding(
            check="Venice key",
            state="problem",
            found=f"{key.name}: {key.problem}",
            advice=f"Replace it, or `rialto upstream-keys disable {key.name}`.",
        )
        for key in checked
    ]


def _check_disk(settings: Settings) -> Finding:
    """Check the disk of the embedded database, or of temporary files."""
    data = Path(settings.data_directory)
    is_embedded = settings.database is None and data.exists()
    directory = data if is_embedded else Path(tempfile.gettempdir())
    free = shutil.disk_usage(directory).free
    found = f"{free / 1e9:,.1f} GB free in {directory}"
    if free < LOW_DISK_BYTES:
        return Finding(
            check="disk",
            state="problem" if free < FULL_DISK_BYTES else "warning",
            found=found,
            advice="Make room: a full disk refuses every call.",
        )
    return Finding(check="disk", state="ok", found=found)


async def _check_service(settings: Settings, url: str | None) -> list[Finding]:
    own = probe.own_url(settings)
    try:
        answer = await probe.ask(own, "/health")
    except probe.UNREACHED as error:
        found = Finding(
            check="service",
            state="note",
            found=f"{own}: {probe.why(error)}",
            advice="Start it: scripts/run.sh, or `rialto serve`.",
        )
        return [found, _describe_cors(settings), await _check_proxy(settings, url)]
    health = answer.json()
    is_well = answer.status == 200
    return [
        Finding(
            check="service",
            state="ok" if is_well else "problem",
            found=f"{own}: {health.get('status', answer.status)}",
            advice=None if is_well else f"The database: {health.get('database')}. See its log.",
        ),
        await _check_cors(settings, own),
        await _check_proxy(settings, url),
    ]


def _describe_cors(settings: Settings) -> Finding:
    if not settings.cors_origins:
        return Finding(check="CORS", state="ok", found="no page of a browser may call")
    if "*" in settings.cors_origins:
        return Finding(
            check="CORS",
            state="warning" if settings.is_production else "note",
            found="every page may call",
            advice="List your origins in CORS_ORIGINS: a key in a page is a key that its readers"
            " have.",
        )
    return Finding(check="CORS", state="ok", found=f"for {', '.join(settings.cors_origins)}")


async def _check_cors(settings: Settings, own: str) -> Finding:
    """Ask the service as a browser would before a page makes a call."""
    described = _describe_cors(settings)
    if not settings.cors_origins or described.state != "ok":
        return described
    origin = settings.cors_origins[0]
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    answer = await probe.ask(own, "/v1/chat/completions", method="OPTIONS", headers=headers)
    if answer.headers.get("access-control-allow-origin") == origin:
        return described
    return Finding(
        check="CORS",
        state="problem",
        found=f"the service does not let {origin} call",
        advice="Restart it: it runs with another CORS_ORIGINS.",
    )


async def _check_proxy(settings: Settings, url: str | None) -> Finding:
    """Ask through the proxy, with what proxies refuse or remove by default."""
    if url is None:
        is_open = settings.is_production and settings.host in ANYWHERE
        return Finding(
            check="proxy",
            state="note",
            found="not checked",
            advice="Give --url with the public address." if is_open else None,
        )
    request_id = "rialto-doctor"
    headers = {"X-Request-Id": request_id, "X-Rialto-Tags": "padding=" + "x" * LONG_HEADER_BYTES}
    try:
        short = await probe.ask(url, "/health", headers={"X-Request-Id": request_id})
        long = await probe.ask(url, "/health", headers=headers)
    except probe.UNREACHED as error:
        advice = "Check the address, DNS and the proxy's own log."
        found = f"{url}: {probe.why(error)}"
        return Finding(check="proxy", state="problem", found=found, advice=advice)
    return _judge_proxy(settings, url, short, long, request_id)


def _judge_proxy(
    settings: Settings, url: str, short: probe.Answer, long: probe.Answer, request_id: str
) -> Finding:
    problem = None
    if short.status != 200 or short.json().get("status") != "ok":
        problem = f"/health answers {short.status}", "Let the proxy pass every path to Rialto."
    elif short.headers.get("x-request-id") != request_id:
        problem = "X-Request-Id does not come back", "Let the proxy pass headers both ways."
    elif long.status != 200:
        problem = (
            f"a header of {LONG_HEADER_BYTES // 1000} KB is refused with {long.status}",
            "Let the proxy take headers of 32 KB (nginx: large_client_header_buffers 4 32k).",
        )
    elif settings.is_production and not url.startswith("https://"):
        problem = "it has no TLS", "Let the proxy end TLS: keys are sent in headers."
    if problem is not None:
        return Finding(
            check="proxy", state="problem", found=f"{url}: {problem[0]}", advice=problem[1]
        )
    if not settings.trusted_proxies:
        return Finding(
            check="proxy",
            state="note",
            found=f"{url}: ok; every caller has the proxy's address",
            advice="Set TRUSTED_PROXIES if keys are bound to addresses.",
        )
    return Finding(check="proxy", state="ok", found=f"{url}: ok")
