"""A real PostgreSQL for every test that asks for one: a database of its own, from a template. A
sandbox, and clients of it."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import asyncpg
import openai
import psycopg
import pytest
from books import Books
from faults import OwnServer, TcpProxy
from hypothesis import settings as hypothesis_settings
from sandbox_client import KEY
from support import MODEL, limited, make_settings, running
from upstream import playing

from service.database import schema
from service.database.connections import connect_arguments, open_pool
from service.sandbox import create_sandbox

# How long a machine takes says nothing of the code.
hypothesis_settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis_settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis_settings.load_profile("quick")

CARELESS = " ".join(
    f"-c {setting}"
    for setting in (
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "wal_level=minimal",
        "max_wal_senders=0",
        "max_connections=300",
        # Each clone and each drop of a database looks through all shared buffers.
        "shared_buffers=16MB",
        # A database lives for milliseconds; its workers would only take the processor.
        "autovacuum=off",
        "jit=off",
    )
)
"""No test loses power."""
MEMORY = Path("/dev/shm")
"""Where files need no disk: a database is cloned there in a tenth of the time."""
TEMPLATE = "rialto_template"
NUMBERS = itertools.count(1)
NOTHING_SHARED = {"aliases": 0, "cooldowns": {}}
"""What all callers of a new service share."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Deal the tests that take seconds to the workers, each of which begins with its share: the run
    would wait for a worker that came to one last. xdist gives each an equal part of the list."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("slow")]
    system = Path(__file__).parent / "system"
    long += [item for item in items if item.path.parent == system and item not in long]
    others = [item for item in items if item not in set(long)]
    dealt, count = [], len(items)
    for worker in range(workers):
        share = long[worker::workers]
        room = max((count - len(dealt)) // (workers - worker) - len(share), 0)
        dealt += share + others[:room]
        del others[:room]
    items[:] = dealt + others


@contextlib.contextmanager
def running_server(*, in_memory=False, **arguments):
    """A server in a new directory with a short path, both gone afterwards."""
    parent = MEMORY if in_memory and os.access(MEMORY, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="rialto-tests-", dir=parent))
    server = OwnServer(directory / "postgres", **arguments)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@contextlib.contextmanager
def careful_server(name):
    """A server that keeps what it has acknowledged, through kill -9; and the address of a database
    on it, with all tables."""
    with running_server() as server:
        address = dataclasses.replace(server.address, database=name)
        with administration(server) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            for setting in ("fsync", "synchronous_commit"):
                (value,) = connection.execute(f"SHOW {setting}").fetchone()
                assert value == "on", f"{setting} is {value}"
        schema.apply(address)
        yield server, address


@contextlib.contextmanager
def administration(server):
    """A connection that may make and drop databases."""
    address = server.address
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, autocommit=True
    ) as connection:
        yield connection


@contextlib.contextmanager
def new_database(server, template="template1"):
    """The address of a database that exists for the length of the block."""
    name = f"test_{next(NUMBERS)}"
    with administration(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield dataclasses.replace(server.address, database=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def server():
    """The PostgreSQL of the session. To be left running; see ``own_server`` for the other kind."""
    with running_server(in_memory=True, options=CARELESS) as server:
        yield server


@pytest.fixture(scope="session")
def template(server):
    """The name of a database with all migrations applied, to be cloned."""
    with administration(server) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    schema.apply(dataclasses.replace(server.address, database=TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_address(server, template):
    """A database of the test's own, with all migrations applied."""
    with new_database(server, template) as address:
        yield address


@pytest.fixture
def empty_database_address(server):
    """A database of the test's own, without anything."""
    with new_database(server) as address:
        yield address


@pytest.fixture
def own_server():
    """A server of the test's own, running: ``stop``, ``kill``, ``restart``, ``start``."""
    with running_server() as server:
        yield server


@pytest.fixture
async def proxy(database_address):
    """A proxy before a database of the test's own, to fail as networks do."""
    async with TcpProxy(database_address) as proxy:
        yield proxy


@pytest.fixture
def proxied_address(proxy):
    """The database, by way of the proxy."""
    return proxy.address


def _shares_service(request):
    """Whether the test uses the service of its module: the nearest mark decides."""
    mark = request.node.get_closest_marker("shares_service")
    return mark is not None and mark.args != (False,)


@pytest.fixture
def upstream(request):
    """A Venice that the sandbox plays over a socket: the test's own, or that of its module."""
    return request.getfixturevalue(
        "clean_module_upstream" if _shares_service(request) else "own_upstream"
    )


@pytest.fixture
async def own_upstream():
    """A Venice of the test's own."""
    async with playing() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def module_upstream():
    """A Venice for all tests of a module."""
    async with playing() as upstream:
        yield upstream


@pytest.fixture
async def clean_module_upstream(module_upstream):
    """The module's Venice as if nobody had called it, and without faults."""
    module_upstream.calls.clear()
    yield module_upstream
    module_upstream.faults.clear()


@pytest.fixture
def service(request):
    """The service, listening, between a real PostgreSQL and a Venice on a socket; its books are
    audited afterwards. It is the test's own, unless the module is marked ``shares_service``."""
    return request.getfixturevalue("shared_service" if _shares_service(request) else "own_service")


@pytest.fixture
async def own_service(database_address, own_upstream):
    """A service of the test's own."""
    async with running(make_settings(database_address, own_upstream.url)) as service:
        yield service
        await service.audit()


class ModuleService:
    """One service for many tests. After a test that changed what all callers share, the next test
    gets a new one."""

    def __init__(self, server, template, upstream):
        self._origin = server, template
        self._upstream = upstream
        self._stack = contextlib.AsyncExitStack()
        self._service = None

    async def get(self):
        """The service that runs, or a new one."""
        if self._service is None:
            address = self._stack.enter_context(new_database(*self._origin))
            starting = running(make_settings(address, self._upstream.url))
            self._service = await self._stack.enter_async_context(starting)
            self._stack.push_async_callback(self._service.audit)
        return self._service

    async def end_if_changed(self):
        """End it if a model, an alias or a key at Venice is not as it was."""
        if self._upstream.listing.changed or await self._service.shared_state() != NOTHING_SHARED:
            self._upstream.listing.reset()
            await self.end()

    async def end(self):
        """End it, with an audit of all its books."""
        self._service = None
        await self._stack.aclose()


@pytest.fixture(scope="module")
async def module_service(server, template, module_upstream):
    """What has the service of the module."""
    service = ModuleService(server, template, module_upstream)
    yield service
    await service.end()


@pytest.fixture
async def shared_service(module_service, clean_module_upstream):
    """The service of the module."""
    yield await module_service.get()
    await module_service.end_if_changed()


@pytest.fixture
async def caller(service):
    """Somebody with a key of role inference."""
    return await service.new_caller()


@pytest.fixture
async def bounded_caller(service):
    """Somebody with a limit of each kind, wide enough for everything: each way that a call can end
    has to leave all of them right, which the audit at the end of the service proves."""
    caller = await service.new_caller()
    for limit in (
        {"unit": "usd", "period": "month"},
        {"unit": "usd", "period": "minute", "of_key": True},
        {"unit": "requests", "period": "minute"},
        {"unit": "tokens", "period": "hour", "of_key": True},
        {"unit": "tokens", "period": "day", "model": MODEL},
        {"unit": "concurrency", "of_key": True},
        {"unit": "requests", "period": "hour", "each_end_user": True},
        {"unit": "usd", "period": "lifetime", "each_end_user": True},
    ):
        ceiling = "1000000" if limit["unit"] == "usd" else 10**12
        await limited(caller, **limit, ceiling=ceiling)
    return caller


@pytest.fixture
async def books(database_address):
    """Books on a database of the test's own, audited at the end."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    try:
        async with open_pool(make_settings(database_address, "http://x"), database_address) as pool:
            books = Books(pool, connection)
            await books.prepare()
            yield books
            await books.audit()
            await books.ledger.flush(1)
    finally:
        await connection.close()


@pytest.fixture
async def venice(aiohttp_client):
    """A client of a sandbox of its own, with the key."""
    return await aiohttp_client(create_sandbox(), headers=KEY)


@pytest.fixture
async def sdk(venice):
    """OpenAI's SDK, pointed at the sandbox."""
    async with openai.AsyncOpenAI(
        base_url=str(venice.make_url("/api/v1")), api_key="sandbox", max_retries=0
    ) as client:
        yield client
