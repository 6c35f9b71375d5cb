"""Helpers of the service's tests: settings, a running service, its operator and callers."""

import asyncio
import contextlib
import dataclasses
import logging
from decimal import Decimal
from uuid import UUID

import aiohttp
import structlog
from aiohttp import web

from service import app as application
from service import audit, ledger
from service.errors import Unavailable
from service.settings import Settings
from service.settings.rules import Environment
from service.telemetry import logs

OPERATOR_KEY = "operator-key-of-the-tests-0123456789"
ENCRYPTION_KEY = "encryption-key-of-the-tests-0123456789"
MODEL = "llama-3.3-70b"
ORGANIZATIONS = "/admin/v1/organizations"
MODELS = "/admin/v1/models"


def make_settings(address, venice_url, **changes):
    """Return development settings with short timeouts, for the given database and Venice."""
    values = {
        field.name: field.metadata["variable"].development
        for field in dataclasses.fields(Settings)
        if "variable" in field.metadata
    }
    values |= {
        "environment": Environment.DEVELOPMENT,
        "database": address,
        "operator_key": OPERATOR_KEY,
        "encryption_keys": (ENCRYPTION_KEY,),
        "venice_api_key": "sandbox",
        "venice_base_url": f"{venice_url}/api/v1",
        "port": 0,
        "venice_retry_s": 0.3,
        "venice_other_paths": ("/new/*", "/unknown", "/video/transcriptions"),
        "startup_database_timeout_s": 10.0,
    }
    return Settings(**{**values, **changes})


@contextlib.contextmanager
def configured_logs(level, form, stream):
    """Configure the log of this process for the length of the block; nothing else in the tests
    does."""
    logs.configure(level, form, stream)
    # A logger that is used in the block would keep the configuration, as it does in a service.
    structlog.configure(cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.reset_defaults()
        logging.basicConfig(handlers=[], force=True)


@contextlib.asynccontextmanager
async def running(settings, *, knows_models=True):
    """Run the service on a port of its own and yield the Service. The start does not wait for
    Venice's models and prices; this does, unless a test sets ``knows_models=False``."""
    app = application.create_app(settings)
    runner = application.api.make_runner(app)
    try:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        if knows_models:
            await _sync(app[application.api.CATALOG])
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as http:
            yield Service(app, http)
    finally:
        await runner.cleanup()


async def _sync(catalog):
    """Load the models, with one retry: PostgreSQL ends a transaction that was idle for a second,
    and a busy machine may pause a test for longer."""
    try:
        await catalog.sync()
    except Unavailable:
        await catalog.sync()


class Service:
    """A running service and its operator."""

    def __init__(self, app, http):
        self.app = app
        self.http = http

    @property
    def url(self):
        """The base URL of the service."""
        return str(self.http._base_url).rstrip("/")

    async def operate(self, method, path, **arguments):
        """Send a request as the operator; return the status and the decoded body."""
        headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
        async with self.http.request(method, path, headers=headers, **arguments) as response:
            body = await response.json() if response.status != 204 else None
            return response.status, body

    async def audit(self):
        """Assert that the audit finds no fault in any organization or its audit events."""
        database = self.app[application.api.DATABASE]
        for row in await database.fetch("SELECT id FROM public.organizations"):
            await self.audit_one(row["id"])

    async def audit_one(self, organization_id):
        """Assert that the audit finds no fault in the organization or its audit events."""
        database = self.app[application.api.DATABASE]
        assert (await ledger.prove(database, organization_id)).faults == []
        assert await audit.first_break(database, organization_id) is None

    async def shared_state(self):
        """Return the state that one caller changes and another one can notice."""
        database = self.app[application.api.DATABASE]
        return {
            "aliases": await database.fetchval(
                "SELECT count(*) FROM public.models WHERE kind = 'alias'"
            ),
            "cooldowns": self.app[application.api.VENICE].keys.cooldowns(),
        }

    async def new_caller(self, name="acme", **key):
        """Create an organization and a key; return its Caller."""
        path = "/admin/v1/organizations"
        status, organization = await self.operate("POST", path, json={"name": name})
        assert status == 201, organization
        path = f"/admin/v1/organizations/{organization['id']}/keys"
        status, made = await self.operate("POST", path, json={"name": name, **key})
        assert status == 201, made
        return Caller(self, organization["id"], made)


class Caller:
    """The owner of a key."""

    def __init__(self, service, organization_id, key):
        self.service = service
        self.organization_id = organization_id
        self.key_id = key["id"]
        self.key = key["key"]
        self.headers = {"Authorization": f"Bearer {self.key}"}

    def chat(self, content="Hello", path="/v1/chat/completions", **members):
        """Post a chat completion, for use with ``async with``."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **members}
        return self.service.http.post(path, json=body, headers=self.headers)

    async def entries(self):
        """Return the organization's ledger entries, newest first."""
        path = f"/admin/v1/organizations/{self.organization_id}/ledger"
        _, body = await self.service.operate("GET", path)
        return body["entries"]

    async def only_entry(self):
        """Return the organization's single entry and assert that nothing is held."""
        (entry,) = await self.entries()
        database = self.service.app[application.api.DATABASE]
        held = "SELECT count(*) FROM public.holds WHERE organization_id = $1"
        assert await database.fetchval(held, UUID(self.organization_id)) == 0
        return entry

    async def audit(self):
        """Assert that the audit finds no fault in the organization."""
        await self.service.audit_one(UUID(self.organization_id))


def cost_of(entry):
    """Return an entry's cost as a Decimal, or None."""
    return None if entry["cost_usd"] is None else Decimal(entry["cost_usd"])


async def set_limit(caller, *, of_key=False, **limit):
    """Set a limit on the caller's organization, or on its key; return it."""
    if of_key:
        limit["api_key_id"] = caller.key_id
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    status, made = await caller.service.operate("POST", path, json=limit)
    assert status == 201, made
    return made


async def limits_of(caller):
    """Return the organization's limits as the operator sees them."""
    path = f"{ORGANIZATIONS}/{caller.organization_id}/limits"
    _, body = await caller.service.operate("GET", path)
    return body["limits"]


async def wait_for_entry(caller):
    """Wait for the single entry, which may be written after the call ended for the client; return
    it."""
    async with asyncio.timeout(5):
        while not await caller.entries():
            await asyncio.sleep(0.01)
    return await caller.only_entry()


async def assert_ledger_matches_charges(caller, upstream):
    """Assert that the entries are successful calls with the costs that Venice charged, in order."""
    entries = await caller.entries()
    assert {entry["outcome"] for entry in entries} == {"ok"}
    charged = [call.charged_nanos for call in reversed(list(upstream.calls)) if call.charged_nanos]
    assert [int(cost_of(entry) * 10**9) for entry in entries] == charged


async def set_alias(service, name, targets, organization_id=None):
    """Set an alias as the operator; return it."""
    body = {"targets": targets, "organization_id": organization_id}
    status, made = await service.operate("PUT", f"{MODELS}/{name}", json=body)
    assert status == 200, made
    return made
