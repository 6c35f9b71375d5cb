"""Health reports whether a call could be admitted now, and recovers without one."""

import asyncio
import contextlib
import dataclasses

import asyncpg
import pytest
from postgres import durable_server
from process import database_url, started
from support import make_settings, running

from service import app as application
from service.background import rehearsal
from service.database.connections import connect_arguments

NO_ROOM = """
    CREATE FUNCTION public.no_room() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER no_room BEFORE INSERT ON public.{table}
    FOR EACH ROW EXECUTE FUNCTION public.no_room()
"""
ROOM = "DROP FUNCTION public.no_room CASCADE"
NO_MONTHS = """
    DO $$
    DECLARE month regclass;
    BEGIN
        FOR month IN SELECT inhrelid::regclass FROM pg_inherits
                     WHERE inhparent = 'public.ledger_entries'::regclass
        LOOP
            EXECUTE format('ALTER TABLE public.ledger_entries DETACH PARTITION %s', month);
        END LOOP;
    END $$
"""
SHUT = """
    ALTER DATABASE {database} SET default_transaction_read_only = on;
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
OPEN = """
    SET default_transaction_read_only = off;
    ALTER DATABASE {database} RESET default_transaction_read_only;
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
RENAME = "ALTER TABLE public.{} RENAME TO {}"
GRANT = "GRANT {} ON public.{} TO rialto_clerk"
REVOKE = "REVOKE {} ON public.{} FROM rialto_clerk"
BREAKS = {
    "read-only": (SHUT, OPEN, "ReadOnlySQLTransactionError"),
    "no room for holds": (NO_ROOM.format(table="holds"), ROOM, "DiskFullError"),
    "no room for entries": (NO_ROOM.format(table="ledger_entries"), ROOM, "DiskFullError"),
    "no table": (RENAME.format("holds", "h"), RENAME.format("h", "holds"), "Undefined"),
    "no column": (
        "ALTER TABLE public.holds RENAME tags TO t",
        "ALTER TABLE public.holds RENAME t TO tags",
        "Undefined",
    ),
    "no limits": (
        RENAME.format("limits", "l"),
        RENAME.format("l", "limits"),
        "Undefined",
    ),
    "may not hold": (
        REVOKE.format("INSERT", "holds"),
        GRANT.format("INSERT", "holds"),
        "InsufficientPrivilegeError",
    ),
    "may not settle": (
        REVOKE.format("INSERT", "ledger_entries"),
        GRANT.format("INSERT", "ledger_entries"),
        "InsufficientPrivilegeError",
    ),
    "may not end a hold": (
        REVOKE.format("DELETE", "holds"),
        GRANT.format("DELETE", "holds"),
        "InsufficientPrivilegeError",
    ),
}
EVERYTHING = """
    DO $$
    BEGIN
        CREATE ROLE rialto_clerk LOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END $$;
    GRANT USAGE ON SCHEMA public, ledger_partitions, derived, yoyo TO rialto_clerk;
    GRANT ALL ON ALL TABLES IN SCHEMA public, ledger_partitions, derived, yoyo TO rialto_clerk;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public, yoyo TO rialto_clerk;
"""


@pytest.fixture
async def owner(database_address):
    """A connection of the database's owner."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    yield connection
    await connection.close()


@pytest.fixture
async def clerks_address(owner, database_address):
    """The address for a database user who has the service's privileges and owns nothing."""
    await owner.execute(EVERYTHING)
    return dataclasses.replace(database_address, user="rialto_clerk")


async def health(service):
    """Return the status and the body."""
    async with service.http.get("/health") as response:
        return response.status, await response.json()


async def becomes(service, status):
    """Wait for this status; return the body."""
    async with asyncio.timeout(20):
        while True:
            now, body = await health(service)
            if now == status:
                return body
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "is_idle"),
    [(how, False) for how in BREAKS]
    + [(how, True) for how in ("read-only", "no room for entries", "no column", "may not hold")],
)
async def test_health_is_whether_calls_can_be_admitted(
    clerks_address, owner, upstream, monkeypatch, how, is_idle
):
    """Health is a 503 with the class of the obstacle, before and after a call meets it, and a 200
    again once it is gone, without a call. Health itself writes nothing."""
    if is_idle:
        monkeypatch.setattr(rehearsal, "IDLE_S", 0.1)
    breaking, mending, error = (
        text.replace("{database}", clerks_address.database) for text in BREAKS[how]
    )
    async with running(make_settings(clerks_address, upstream.url)) as service:
        await service.app[application.api.CATALOG].sync()
        caller = await service.new_caller()
        assert (await health(service))[0] == 200
        await owner.execute(breaking)
        if not is_idle:
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(3), caller.chat() as response:
                    await response.read()
        async with asyncio.timeout(20):
            # While connections are ending, the first error may differ from the lasting one.
            while error not in (body := await becomes(service, 503))["database"]:
                await asyncio.sleep(0.05)
        assert list(body) == ["status", "environment", "database"]
        assert body["status"] == "error"
        await owner.execute(mending)
        assert (await becomes(service, 200))["database"] == "ok"
        async with caller.chat() as response:
            assert response.status == 200


async def test_commits_that_wait_for_a_standby(upstream, monkeypatch):
    """Health is a 503 while commits wait for a synchronous standby that is gone."""
    monkeypatch.setattr(rehearsal, "IDLE_S", 0.1)
    monkeypatch.setattr(rehearsal, "REHEARSAL_S", 0.5)
    with durable_server("standby") as (_, address):
        owner = await asyncpg.connect(**connect_arguments(address))
        async with running(make_settings(address, upstream.url)) as service:
            caller = await service.new_caller()
            assert (await health(service))[0] == 200
            await owner.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
            await owner.execute("SELECT pg_reload_conf()")
            assert (await becomes(service, 503))["database"] == "error: TimeoutError"
            for _ in range(20):
                assert (await health(service))[0] == 503
                await asyncio.sleep(0.1)
            await owner.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await owner.execute("SELECT pg_reload_conf()")
            await becomes(service, 200)
            async with caller.chat() as response:
                assert response.status == 200
        await owner.close()


async def test_a_rehearsal_leaves_no_trace(service, owner):
    """The rehearsed admission leaves no hold, no entry and no event."""
    tables = await owner.fetch(
        "SELECT oid::regclass::text AS name FROM pg_class"
        " WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        " AND relname NOT IN ('upstream_keys', 'models')"
    )

    async def contents():
        return [await owner.fetch(f"SELECT r::text FROM {table['name']} r") for table in tables]

    before = await contents()
    books, database = service.app[application.api.BOOKS], service.app[application.api.DATABASE]
    await rehearsal.rehearse(books, database, rehearsal.BALLAST_BYTES)

    assert len(tables) == 12
    assert await contents() == before


async def test_one_calls_bad_data_does_not_fail_health(service, caller, owner):
    """Data of one call that the database rejects does not change health."""
    condition = service.app[application.api.BOOKS].condition
    for statement in ("SELECT 'x'::integer", "SELECT 1 / 0"):
        with pytest.raises(asyncpg.DataError) as caught:
            await owner.fetch(statement)
        condition.failed(caught.value)
    assert condition.problem is None


@pytest.mark.parametrize(
    ("breaking", "error"),
    [
        (NO_ROOM.format(table="holds"), "DiskFullError"),
        (REVOKE.format("INSERT", "ledger_entries"), "InsufficientPrivilegeError"),
        (NO_MONTHS, "CheckViolationError"),
        ("ALTER DATABASE {} SET default_transaction_read_only = on", "ReadOnlySQLTransactionError"),
    ],
)
async def test_a_start_without_books_fails(
    tmp_path, clerks_address, owner, upstream, breaking, error
):
    """A service that cannot admit calls at its start exits with 1 and the reason, and never
    listens."""
    await owner.execute(breaking.replace("{}", clerks_address.database))
    async with started(
        tmp_path,
        DATABASE_URL=database_url(clerks_address),
        VENICE_API_KEY="sandbox",
        VENICE_BASE_URL=f"{upstream.url}/api/v1",
        STARTUP_DATABASE_TIMEOUT="1",
    ) as process:
        assert await process.ended() == 1

    assert not process.lines_with("listening")
    (failed,) = process.lines_with("start failed")
    assert error in failed["error"]
    assert "DATABASE_URL" in failed["hint"]


async def test_a_start_waits_for_a_database_that_can_be_written(
    tmp_path, database_address, owner, upstream
):
    """A start waits until the database can be written."""
    await owner.execute(NO_ROOM.format(table="holds"))
    async with started(
        tmp_path,
        DATABASE_URL=database_url(database_address),
        VENICE_API_KEY="sandbox",
        VENICE_BASE_URL=f"{upstream.url}/api/v1",
    ) as process:
        line = await process.wait_for_line("the books cannot be written yet")
        assert line["error"] == "DiskFullError"
        await owner.execute(ROOM)
        await process.listening()
