"""A connection pooler in transaction mode in DATABASE_URL, with and without
DATABASE_UNPOOLED_URL."""

import asyncio
import sys

import pytest
from pooler import Pooler
from process import database_url, started, variables
from structlog.testing import capture_logs
from support import make_settings

from service.database import schema
from service.database.errors import POOLED, translated
from service.database.first_connection import first_connection
from service.database.listening import listen
from service.database.pool import open_pool
from service.errors import StartupError, Unavailable

TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "jit",
)
WAYS = {
    "refuses settings": {},
    "ignores settings": {"ignores": TIMEOUTS},
    "loses statements": {"loses_statements": True},
    "loses both": {"ignores": TIMEOUTS, "loses_statements": True},
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_start_names_the_pooler_and_the_variable(
    tmp_path, database_address, upstream, way
):
    """Whatever the pooler does to a connection, the start ends soon with one sentence and a
    hint."""
    async with Pooler(database_address, **WAYS[way]) as pooler:
        environment = {
            "DATABASE_URL": database_url(pooler.address),
            "VENICE_API_KEY": "sandbox",
            "VENICE_BASE_URL": f"{upstream.url}/api/v1",
        }
        async with started(tmp_path, **environment) as service:
            assert await service.ended() == 1
            failed = service.lines_with("start failed")[0]
            assert "PgBouncer" in failed["error"]
            assert "DATABASE_UNPOOLED_URL" in failed["hint"]
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "organizations", "list"),
            cwd=tmp_path,
            env=variables(tmp_path, **environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, output = await command.communicate()
    assert command.returncode == 1
    assert b"PgBouncer" in output
    assert b"DATABASE_UNPOOLED_URL" in output


@pytest.mark.parametrize("way", WAYS)
async def test_with_the_variable_the_pooler_serves(database_address, way):
    """With DATABASE_UNPOOLED_URL all kinds of statements and a transaction with its timeouts work
    through the pooler."""
    async with Pooler(database_address, **WAYS[way]) as pooler:
        settings = make_settings(pooler.address, "http://x", database_unpooled=database_address)
        async with open_pool(settings, pooler.address) as database:
            assert await database.fetchval("SELECT $1::integer", 7) == 7
            assert await database.fetchval("SELECT $1::integer", 8) == 8
            async with database.transaction() as conn:
                waits = "SELECT current_setting('lock_timeout')"
                assert await conn.fetchval(waits) == "3s"


async def test_migrations_name_the_pooler_too(empty_database_address):
    """The migrations' driver reports the pooler in the same way."""
    async with Pooler(empty_database_address, loses_statements=True) as pooler:
        with pytest.raises(StartupError, match="PgBouncer") as refused:
            await asyncio.to_thread(schema.apply, pooler.address, connect_timeout_s=5)
    assert "DATABASE_UNPOOLED_URL" in refused.value.hint


async def test_a_pooler_that_passes_settings_is_reported(tmp_path, database_address, upstream):
    """A pooler that passes the settings on loses only notifications, and the start warns of it."""
    async with Pooler(database_address, passes=TIMEOUTS) as pooler:
        await starts_with_a_warning(tmp_path, upstream, DATABASE_URL=database_url(pooler.address))


@pytest.mark.parametrize("way", ["refuses settings", "ignores settings", "loses both"])
async def test_a_variable_that_also_leads_to_the_pooler(tmp_path, database_address, upstream, way):
    """A DATABASE_UNPOOLED_URL that leads to the pooler switches the checks of DATABASE_URL off, and
    the start warns that it is pooled."""
    async with Pooler(database_address, **WAYS[way]) as pooler:
        url = database_url(pooler.address)
        await starts_with_a_warning(tmp_path, upstream, DATABASE_URL=url, DATABASE_UNPOOLED_URL=url)


async def starts_with_a_warning(directory, upstream, **databases):
    """Assert that the start warns of the pooler and continues."""
    venice = {"VENICE_API_KEY": "sandbox", "VENICE_BASE_URL": f"{upstream.url}/api/v1"}
    async with started(directory, **databases, **venice) as service:
        await service.listening()
    warnings = service.lines_with("a pooler stands before the database")
    assert warnings
    assert all("DATABASE_UNPOOLED_URL" in line["hint"] for line in warnings)


async def test_a_pooler_that_comes_later_is_named_in_the_log(database_address, monkeypatch):
    """Statements that a later pooler breaks are a 503 and a log line with the hint, and listening
    is retried."""
    monkeypatch.setattr("service.database.listening.CHECK_S", 0.05)
    async with Pooler(database_address, loses_statements=True) as pooler:
        async with first_connection(database_address, 5) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        with capture_logs() as lines:
            listening = asyncio.create_task(listen(pooler.address, "c", lambda _: None))
            async with asyncio.timeout(10):
                while not [line for line in lines if "hint" in line]:
                    await asyncio.sleep(0.05)
            assert not listening.done()
            listening.cancel()
    for kind in POOLED:
        with (
            capture_logs() as lines,
            pytest.raises(Unavailable),
            translated(),
        ):
            raise kind("prepared statement does not exist")
        assert "DATABASE_UNPOOLED_URL" in lines[0]["hint"]


async def test_no_pooler_no_warning(database_address):
    """A start with a plain server does not warn of a pooler."""
    with capture_logs() as lines:
        async with open_pool(make_settings(database_address, "http://x"), database_address):
            pass
        async with first_connection(database_address, 5):
            pass
    assert lines == []
