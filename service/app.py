"""The application: every part of the service, in the order in which it is opened."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Collection, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import http_parser, web

from service import accounts, api
from service.accounts import CHANNEL, Callers
from service.background import jobs, memory, watchdog
from service.catalog import Catalog
from service.crypto import Keyring
from service.database import embedded, schema
from service.database.connections import first_connection, listen, open_pool
from service.database.lanes import Lanes
from service.errors import StartupError
from service.gateway import FreeRequests, Gateway
from service.ids import uuid7
from service.ledger import Ledger
from service.settings import Settings, load
from service.settings.address import DatabaseAddress
from service.shares import Shares
from service.telemetry import logs
from service.upstream import ENVIRONMENT_KEY_ID, UpstreamKey, UpstreamKeys, open_venice

log = structlog.get_logger()

FLUSH_TIMEOUT_S: Final = 5.0
WORK_ENDS_S: Final = 5.0
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
    app = web.Application(middlewares=api.MIDDLEWARES, handler_args=api.handler_arguments(settings))
    app[api.SETTINGS] = settings
    app[api.STATUS] = api.Status()
    app[api.OPEN_REQUESTS] = Shares(settings.open_requests)
    app[api.KEYRING] = Keyring(settings.encryption_keys)
    app.on_response_prepare.append(api.prepare_headers)
    app.cleanup_ctx.extend([intake, database_server, ready_schema, pool, venice, books, background])
    api.add_routes(app)
    return app


async def intake(app: web.Application) -> AsyncIterator[None]:
    """What reads the bodies of requests."""
    app[api.INTAKE] = api.Intake(app[api.SETTINGS])
    yield
    app[api.INTAKE].close()


async def database_server(app: web.Application) -> AsyncIterator[None]:
    """Where the database is: the one of the settings, or in development one of its own."""
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
    async with embedded.running(directory, watchdog.end_with_last_words) as address:
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
    with logs.step("database connected", address=str(address)) as facts:
        async with first_connection(
            address, settings.startup_database_timeout_s, must_write=True
        ) as conn:
            facts["server_version"] = conn.get_settings().server_version
            pending, _ = await schema.pending(conn)
    if pending:
        await _migrate(address, settings.startup_database_timeout_s)
    else:
        log.info("migrations", pending=0)
    async with first_connection(address, settings.startup_database_timeout_s) as conn:
        await schema.verify(conn)
    yield


async def _migrate(address: DatabaseAddress, timeout: float) -> None:
    stopped = threading.Event()
    try:
        await asyncio.to_thread(schema.apply, address, connect_timeout_s=timeout, stopped=stopped)
    finally:
        # A thread cannot be cancelled: when the start is, it is told to wait no longer.
        stopped.set()


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
    """Who calls, what it costs, and where that is written."""
    settings, database = app[api.SETTINGS], app[api.DATABASE]
    app[api.LANES] = lanes = Lanes(database)
    app[api.CALLERS] = Callers(lanes, app[api.KEYRING], settings.key_cache_s)
    app[api.CATALOG] = Catalog(app[api.VENICE].models, database)
    # A start does not wait for Venice: what it said last is in the database.
    with logs.step("catalogue") as facts:
        await app[api.CATALOG].load()
        facts["models"] = len(app[api.CATALOG].names)
    app[api.BOOKS] = ledger = Ledger(database, uuid7(), settings.most_end_users)
    with logs.step("books"):
        await jobs.rehearse_until_it_works(ledger, database, settings.startup_database_timeout_s)
    app[api.GATEWAY] = Gateway(
        ledger, app[api.CATALOG], app[api.VENICE], settings.heartbeat_s, FreeRequests(lanes)
    )
    yield
    await app[api.GATEWAY].close()
    left = await ledger.flush(FLUSH_TIMEOUT_S)
    log.info("ledger flushed", unwritten=left)


async def background(app: web.Application) -> AsyncIterator[None]:
    """What goes on beside the requests."""
    forget = app[api.CALLERS].forget
    running = [
        _named("listen", listen(app[MIGRATION_ADDRESS], CHANNEL, lambda _: forget())),
        _named("probes", app[api.VENICE].keys.keep_probed(app[api.VENICE].state)),
        _named("upstream keys", _keep_upstream_keys(app)),
        _named("catalogue", app[api.CATALOG].keep_fresh()),
        _named("aliases", app[api.CATALOG].keep_aliases()),
        _named("leases", jobs.keep_leases(app[api.BOOKS], app[api.DATABASE])),
        _named("books", jobs.keep_rehearsed(app[api.BOOKS], app[api.DATABASE])),
        _named("alerts", jobs.keep_alerts(app[api.BOOKS], app[api.DATABASE])),
        _named("generations", jobs.keep_generations(app[api.DATABASE], app[api.VENICE])),
        _named("end users", jobs.keep_end_users(app[api.DATABASE])),
        _named("partitions", jobs.keep_partitions(app[api.DATABASE])),
        _named("clock", jobs.keep_clock(app[api.DATABASE])),
        _named("memory", memory.keep_giving_back()),
    ]
    if api.METRICS_DIRECTORY in app:
        running.append(_named("metrics", api.keep_fresh(app)))
    if interval_s := app[api.SETTINGS].audit_interval_s:
        proving = jobs.keep_books_proven(app[api.DATABASE], interval_s)
        running.append(_named("audit", proving))
    if months := app[api.SETTINGS].ledger_retention_months:
        running.append(_named("retention", jobs.keep_retention(app[api.DATABASE], months)))
    yield
    await end_work(running)


async def end_work(running: Collection[asyncio.Task[None]]) -> None:
    """Cancel the tasks, and wait for their end; one that goes on after ``WORK_ENDS_S`` is left, so
    that it cannot hold up the end of the process."""
    for task in running:
        task.cancel()
    _, left = await asyncio.wait(running, timeout=WORK_ENDS_S)
    for task in left:
        log.error("background work does not end", work=task.get_name())


def _keep_upstream_keys(app: web.Application) -> Coroutine[Any, Any, None]:
    return jobs.keep_upstream_keys(
        app[api.DATABASE], app[api.KEYRING], app[api.VENICE], app[api.VENICE_KEY]
    )


def _named(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_say_if_ended)
    return task


def _say_if_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("background work ended", work=task.get_name(), exc_info=task.exception())
