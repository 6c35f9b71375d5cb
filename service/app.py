"""The application: every part of the service, in the order in which it is opened."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from aiohttp import http_parser, web

from service import accounts, api, dashboard
from service.accounts import CHANNEL, Callers
from service.background import (
    clocks,
    memory,
    proofs,
    queued_jobs,
    records,
    rehearsal,
    repeated,
    upkeep,
    upstream_keys,
    usage,
    watchdog,
)
from service.background.repeated import every
from service.catalog import ALIASES_EVERY_S, Catalog
from service.crypto import Keyring
from service.database import embedded, migration_process, schema
from service.database.first_connection import first_connection
from service.database.lanes import Lanes
from service.database.listening import listen
from service.database.pool import open_pool
from service.derived import Recorder
from service.errors import StartupError
from service.gateway import FreeRequests, Gateway
from service.ids import uuid7
from service.ledger import Ledger
from service.settings import Settings, load
from service.settings.address import DatabaseAddress
from service.settings.rules import Environment
from service.shares import Shares
from service.telemetry import logs
from service.upstream import ENVIRONMENT_KEY_ID, UpstreamKey, UpstreamKeys, open_venice

log = structlog.get_logger()

FLUSH_TIMEOUT_S: Final = 5.0
RECORDS_TIMEOUT_S: Final = 1.0
"""How long the end of the process waits for records, which can be lost."""
SANDBOX_KEY: Final = "sandbox"

ADDRESS: Final = web.AppKey("ADDRESS", DatabaseAddress)
MIGRATION_ADDRESS: Final = web.AppKey("MIGRATION_ADDRESS", DatabaseAddress)
SANDBOX_URL: Final = web.AppKey("SANDBOX_URL", str)
"""Of a sandbox that is there already, as the processes on one port share one."""


def create_app(settings: Settings | None = None) -> web.Application:
    """The whole service. Without settings they are read from the environment.

    :raises SettingsError: when the environment is no valid configuration.
    """
    if settings is None:
        settings = load()
        logs.configure(settings.log_level, settings.log_format)
    app = web.Application(
        middlewares=[api.answer_preflights] if settings.cors_origins else [],
        handler_args=api.handler_arguments(settings),
    )
    app[api.SETTINGS] = settings
    app[api.STATUS] = api.Status()
    app[api.OPEN_REQUESTS] = Shares(settings.open_requests)
    app[api.KEYRING] = Keyring(settings.encryption_keys)
    app.on_response_prepare.append(api.prepare_headers)
    app.cleanup_ctx.extend([intake, database_server, ready_schema, pool, venice, books, background])
    dashboard.add_routes(app, api.add_routes(app))
    return app


async def intake(app: web.Application) -> AsyncIterator[None]:
    """What reads the bodies of requests."""
    app[api.INTAKE] = api.Intake(app[api.SETTINGS])
    yield
    app[api.INTAKE].close()


async def database_server(app: web.Application) -> AsyncIterator[None]:
    """Set the database address. Development without DATABASE_URL starts the embedded server."""
    settings = app[api.SETTINGS]
    log.info(
        "settings",
        environment=settings.environment.value,
        database=str(settings.database or "embedded"),
        pool=settings.database_pool_max_size,
    )
    _check_parser()
    if settings.database is not None:
        app[ADDRESS] = settings.database
        app[MIGRATION_ADDRESS] = settings.migration_database or settings.database
        yield
        return
    directory = Path(settings.data_directory) / "postgres"
    async with embedded.running(directory, watchdog.flush_and_end_process) as address:
        app[ADDRESS] = app[MIGRATION_ADDRESS] = address
        yield


def _check_parser() -> None:
    """aiohttp also ships without its C parser, which is slow and reads HTTP in a way of its own."""
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise StartupError(
            "aiohttp runs without its C parser.",
            "Install the requirements from requirements/serve.txt, with wheels for this platform.",
        )


async def ready_schema(app: web.Application) -> AsyncIterator[None]:
    """Migrations and the fourteen tables, before anything is served."""
    settings, address = app[api.SETTINGS], app[MIGRATION_ADDRESS]
    timeout_s = settings.startup_database_timeout_s
    # In development, whoever goes back to an earlier commit wants the functions of that commit.
    restore = settings.environment is Environment.DEVELOPMENT
    with logs.step("database connected", address=str(address)) as facts:
        async with first_connection(address, timeout_s, must_write=True) as conn:
            facts["server_version"] = conn.get_settings().server_version
            lacking, newer = await schema.pending(conn)
    if lacking or (newer and restore):
        await migration_process.apply(
            migration_process.Order(address=address, connect_timeout_s=timeout_s, restore=restore)
        )
    else:
        log.info("migrations", pending=0)
    # A connection of its own, since behind a pooler one cannot repeat a statement.
    async with first_connection(address, timeout_s) as conn:
        await schema.verify(conn)
    yield


async def pool(app: web.Application) -> AsyncIterator[None]:
    """The connection pool, and whether what it reads can be decrypted."""
    settings = app[api.SETTINGS]
    async with contextlib.AsyncExitStack() as stack:
        with logs.step("pool", size=settings.database_pool_max_size):
            app[api.DATABASE] = await stack.enter_async_context(open_pool(settings, app[ADDRESS]))
        await accounts.check_master_key(app[api.DATABASE], app[api.KEYRING])
        yield
        log.info("closing pool")


async def venice(app: web.Application) -> AsyncIterator[None]:
    """The client for Venice, or for the sandbox that plays it in development."""
    settings = app[api.SETTINGS]
    async with contextlib.AsyncExitStack() as stack:
        base_url, api_key = settings.venice_base_url, settings.venice_api_key
        if api_key is None:
            api_key = SANDBOX_KEY
            if SANDBOX_URL in app:
                base_url = app[SANDBOX_URL]
            else:
                base_url = await stack.enter_async_context(sandbox(settings))
        app[api.VENICE_KEY] = api_key
        key = UpstreamKey(id=ENVIRONMENT_KEY_ID, name="environment", secret=api_key)
        client = open_venice(settings, base_url=base_url, keys=UpstreamKeys([key]))
        app[api.VENICE] = await stack.enter_async_context(client)
        yield


@contextlib.asynccontextmanager
async def sandbox(settings: Settings) -> AsyncIterator[str]:
    """The sandbox on a port of its own; its base URL.

    :raises StartupError: in production.
    """
    if settings.is_production:
        raise StartupError("The sandbox is not for production.", "Set VENICE_API_KEY.")
    # Not imported where it is not needed.
    from service.sandbox import create_sandbox  # noqa: PLC0415

    runner = web.AppRunner(
        create_sandbox([SANDBOX_KEY]), access_log=None, handler_cancellation=True
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        log.info("sandbox plays Venice: answers are simulated", port=port)
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        await runner.cleanup()


async def books(app: web.Application) -> AsyncIterator[None]:
    """Open the callers, the catalogue, the ledger and the gateway."""
    settings, database = app[api.SETTINGS], app[api.DATABASE]
    app[api.LANES] = lanes = Lanes(database)
    app[api.CALLERS] = Callers(lanes, app[api.KEYRING], settings.key_cache_s)
    app[api.CATALOG] = Catalog(app[api.VENICE].models, database)
    # The start does not wait for Venice. The database has its last list.
    with logs.step("catalogue") as facts:
        await app[api.CATALOG].load()
        facts["models"] = len(app[api.CATALOG].names)
    app[api.BOOKS] = ledger = Ledger(database, uuid7(), settings.max_end_users)
    with logs.step("books"):
        await rehearsal.rehearse_until_it_works(
            ledger, database, settings.startup_database_timeout_s
        )
    app[api.RECORDER] = recorder = Recorder(database)
    app[api.GATEWAY] = Gateway(
        ledger,
        app[api.CATALOG],
        app[api.VENICE],
        settings.heartbeat_s,
        FreeRequests(lanes),
        recorder,
    )
    yield
    await app[api.GATEWAY].close()
    left = await ledger.flush(FLUSH_TIMEOUT_S)
    log.info("ledger flushed", unwritten=left)
    if not left:
        # A database that does not take the ledger takes no records.
        await recorder.flush(RECORDS_TIMEOUT_S)


async def background(app: web.Application) -> AsyncIterator[None]:
    """The work that goes on beside the requests."""
    settings, database, ledger = app[api.SETTINGS], app[api.DATABASE], app[api.BOOKS]
    client, catalog = app[api.VENICE], app[api.CATALOG]
    forget = app[api.CALLERS].forget
    running = [
        repeated.start("listen", listen(app[MIGRATION_ADDRESS], CHANNEL, lambda _: forget())),
        repeated.start("probes", client.keys.probe_out_of_service_keys(client.state)),
        upstream_keys.keep_upstream_keys(database, app[api.KEYRING], client, app[api.VENICE_KEY]),
        repeated.start("catalogue", catalog.keep_fresh()),
        every(ALIASES_EVERY_S, catalog.load_aliases, "aliases", waits_first=True),
        upkeep.keep_leases(ledger, database),
        rehearsal.keep_rehearsed(ledger, database),
        upkeep.keep_alerts(ledger, database),
        queued_jobs.keep_queued_jobs(database, client),
        upkeep.keep_end_users(database),
        upkeep.keep_partitions(database),
        records.keep_writing(app[api.RECORDER]),
        records.keep_trimmed(
            database, settings.record_retention_days, settings.record_retention_rows
        ),
        usage.keep_usage(database),
        clocks.keep_clock(database),
        memory.keep_giving_back(),
    ]
    if api.METRICS_DIRECTORY in app:
        running.append(every(api.REFRESH_S, partial(api.refresh, app), "metrics"))
    if interval_s := settings.audit_interval_s:
        running.append(proofs.keep_books_proven(database, interval_s))
    if months := settings.ledger_retention_months:
        running.append(upkeep.keep_retention(database, months))
    yield
    await repeated.end(running)
