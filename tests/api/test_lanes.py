"""The database requests of one organization leave connections for all others."""

import asyncio
import contextlib
import secrets

import asyncpg
import pytest
from support import ORGANIZATIONS, set_limit

from service.api import DATABASE
from service.database.connections import connect_arguments

MANY = 20
"""More requests than the pool has connections."""


@contextlib.asynccontextmanager
async def locked(address, statement, *arguments):
    """Block everyone who needs what the statement locks, for the length of the block."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        async with connection.transaction():
            await connection.execute(statement, *arguments)
            yield
    finally:
        await connection.close()


def made_up():
    """Return the headers of a made-up key that has the right form."""
    return {"Authorization": f"Bearer rk_{secrets.token_urlsafe(32)}"}


async def administrator(service, caller):
    """Return the headers of an administrator of the caller's organization."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/keys"
    _, made = await service.operate("POST", path, json={"name": "a", "role": "admin"})
    return {"Authorization": f"Bearer {made['key']}"}


async def ask(service, method, path, headers, **arguments):
    """Send a request; return the status."""
    async with service.http.request(method, path, headers=headers, **arguments) as response:
        await response.read()
        return response.status


@contextlib.asynccontextmanager
async def waiting(*requests):
    """Start so many requests and wait until they are blocked."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in tasks)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def in_use(service):
    """Return how many connections of the pool are in use."""
    size, idle = service.app[DATABASE].connections
    return size - idle


@pytest.mark.parametrize(
    ("table", "who", "asked"),
    [
        ("api_keys", "nobody", ("GET", "/v1/models", None)),
        ("limits", "caller", ("GET", "/v1/models", None)),
        ("limits", "caller", ("GET", "/v1/limits", None)),
        ("limits", "caller", ("GET", "/v1/billing/balance", None)),
        ("ledger_entries", "caller", ("POST", "/v1/video/retrieve", {"queue_id": "a"})),
        ("ledger_entries", "caller", ("GET", "/v1/usage", None)),
        ("limits", "administrator", ("GET", "{organization}/limits", None)),
        ("ledger_entries", "administrator", ("GET", "{organization}/ledger", None)),
        ("ledger_entries", "administrator", ("GET", "{organization}/usage", None)),
        ("api_keys", "administrator", ("POST", "{organization}/keys", {"name": "x"})),
        ("models", "administrator", ("GET", "/admin/v1/models", None)),
    ],
)
async def test_requests_of_one_organization_have_one_connection(
    service, caller, database_address, table, who, asked
):
    """However many requests an organization sends, with a known or unknown key, they use one
    connection."""
    method, path, body = asked
    path = path.format(organization=f"{ORGANIZATIONS}/{caller.organization_id}")
    await set_limit(caller, unit="requests", period="minute", ceiling=1000)
    headers = caller.headers
    if who == "administrator":
        headers = await administrator(service, caller)
    if who != "nobody":
        assert await ask(service, "GET", "/v1/nothing", headers) == 404
        await ask(service, method, path, headers, json=body)

    lock = f"LOCK TABLE public.{table} IN ACCESS EXCLUSIVE MODE"
    async with locked(database_address, lock):
        requests = [
            ask(service, method, path, made_up() if who == "nobody" else headers, json=body)
            for _ in range(MANY)
        ]
        async with waiting(*requests), asyncio.timeout(5):
            # The requests keep what they have. Work beside them takes one more for a moment.
            while in_use(service) > 1:
                await asyncio.sleep(0.02)


async def test_changes_of_one_organization_keep_no_other_waiting(service, caller, database_address):
    """Changes of one organization wait for each other without delaying other organizations."""
    victim = await service.new_caller("victim")
    headers = await administrator(service, caller)
    path = f"{ORGANIZATIONS}/{caller.organization_id}"
    assert await ask(service, "PATCH", path, headers, json={"settings": {}}) == 200
    async with victim.chat() as response:
        assert response.status == 200

    lock = "SELECT FROM public.organizations WHERE id = $1 FOR UPDATE"
    async with locked(database_address, lock, caller.organization_id):
        changes = [ask(service, "PATCH", path, headers, json={"settings": {}}) for _ in range(MANY)]
        async with waiting(*changes), asyncio.timeout(1.5), victim.chat() as response:
            assert response.status == 200
