"""Fixtures: a PostgreSQL database for each test, cloned from a template; a service; a sandbox and
its clients."""

import contextlib
import dataclasses
import os
from pathlib import Path

import asyncpg
import openai
import pytest
import structlog
from books import Books
from faults import TcpProxy
from hypothesis import settings as hypothesis_settings
from postgres import NO_DURABILITY, administration, new_database, running_server
from sandbox_client import KEY
from support import MODEL, make_settings, running, set_limit
from upstream import running_sandbox

from service.database import schema
from service.database.connections import connect_arguments
from service.database.pool import open_pool
from service.sandbox import create_sandbox

# Deadlines would measure the machine, not the code.
hypothesis_settings.register_profile("quick", deadline=None, max_examples=20)
hypothesis_settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis_settings.load_profile("quick")

TEMPLATE = "rialto_template"
UNCHANGED_STATE = {"aliases": 0, "cooldowns": {}}
"""The state that all callers share, as a new service has it."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Give each worker its share of the slow tests first, so that no worker starts one at the end
    of the run.

    xdist gives each worker an equal part of the list.
    """
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


@pytest.fixture(autouse=True)
def unconfigured_log():
    """Fail a test that leaves the log configured, which :func:`support.configured_logs` ends."""
    before = structlog.get_config()["logger_factory"]
    yield
    assert structlog.get_config()["logger_factory"] is before


@pytest.fixture(scope="session")
def server():
    """The PostgreSQL server of the session. Tests must not stop it; see ``own_server``."""
    with running_server(in_memory=True, options=NO_DURABILITY) as server:
        yield server


@pytest.fixture(scope="session")
def template(server):
    """The name of a database with all migrations applied, for cloning."""
    with administration(server) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    schema.apply(dataclasses.replace(server.address, database=TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database_address(server, template):
    """The address of a new database with all migrations applied."""
    with new_database(server, template) as address:
        yield address


@pytest.fixture
def empty_database_address(server):
    """The address of a new, empty database."""
    with new_database(server) as address:
        yield address


@pytest.fixture
def own_server():
    """A running server that only this test uses and may ``stop``, ``kill``, ``restart`` and
    ``start``."""
    with running_server() as server:
        yield server


@pytest.fixture
async def proxy(database_address):
    """A proxy before the test's database that can fail as networks do."""
    async with TcpProxy(database_address) as proxy:
        yield proxy


@pytest.fixture
def proxied_address(proxy):
    """The address of the database behind the proxy."""
    return proxy.address


def _shares_service(request):
    """Return whether the test uses its module's service; the nearest mark decides."""
    mark = request.node.get_closest_marker("shares_service")
    return mark is not None and mark.args != (False,)


@pytest.fixture
def upstream(request):
    """A sandbox that plays Venice over a socket: the test's own, or its module's."""
    return request.getfixturevalue(
        "clean_module_upstream" if _shares_service(request) else "own_upstream"
    )


@pytest.fixture
async def own_upstream():
    """A sandbox that only this test uses."""
    async with running_sandbox() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def module_upstream():
    """A sandbox for all tests of a module."""
    async with running_sandbox() as upstream:
        yield upstream


@pytest.fixture
async def clean_module_upstream(module_upstream):
    """The module's sandbox with its list of calls cleared, and without faults."""
    module_upstream.calls.clear()
    yield module_upstream
    module_upstream.faults.clear()


@pytest.fixture
def service(request):
    """A running service between a real PostgreSQL and a sandbox; its books are audited afterwards.
    It is the test's own, unless the module is marked ``shares_service``."""
    return request.getfixturevalue("shared_service" if _shares_service(request) else "own_service")


@pytest.fixture
async def own_service(database_address, own_upstream):
    """A service that only this test uses."""
    async with running(make_settings(database_address, own_upstream.url)) as service:
        yield service
        await service.audit()


class ModuleService:
    """One service for many tests. After a test that changed state that callers share, the next test
    gets a new service."""

    def __init__(self, server, template, upstream):
        self._origin = server, template
        self._upstream = upstream
        self._stack = contextlib.AsyncExitStack()
        self._service = None

    async def get(self):
        """Return the running service, or start a new one."""
        if self._service is None:
            address = self._stack.enter_context(new_database(*self._origin))
            starting = running(make_settings(address, self._upstream.url))
            self._service = await self._stack.enter_async_context(starting)
            self._stack.push_async_callback(self._service.audit)
        return self._service

    async def end_if_changed(self):
        """End the service if a model, an alias or an upstream key has changed."""
        if self._upstream.listing.changed or await self._service.shared_state() != UNCHANGED_STATE:
            self._upstream.listing.reset()
            await self.end()

    async def end(self):
        """Audit all books and end the service."""
        self._service = None
        await self._stack.aclose()


@pytest.fixture(scope="module")
async def module_service(server, template, module_upstream):
    """The ModuleService of the module."""
    service = ModuleService(server, template, module_upstream)
    yield service
    await service.end()


@pytest.fixture
async def shared_service(module_service, clean_module_upstream):
    """The module's service."""
    yield await module_service.get()
    await module_service.end_if_changed()


@pytest.fixture
async def caller(service):
    """A caller with a key of role inference."""
    return await service.new_caller()


@pytest.fixture
async def bounded_caller(service):
    """A caller with a limit of each kind, none of which it can reach. The audit at the end proves
    that every way of ending a call leaves all of them right."""
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
        await set_limit(caller, **limit, ceiling=ceiling)
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
    """An HTTP client of a new sandbox, with a valid key."""
    return await aiohttp_client(create_sandbox(), headers=KEY)


@pytest.fixture
async def sdk(venice):
    """OpenAI's SDK with the sandbox as its base URL."""
    async with openai.AsyncOpenAI(
        base_url=str(venice.make_url("/api/v1")), api_key="sandbox", max_retries=0
    ) as client:
        yield client
