"""The development PostgreSQL is started, shared, killed, found again, and stopped by its last
user."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
import pytest
from faults import OwnServer

from service.database import embedded
from service.database.embedded import Embedded
from service.errors import StartupError

ROOT = Path(__file__).resolve().parents[2]

USER_OF_THE_SERVER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from service.database import embedded

async def main():
    async with embedded.running(Path(sys.argv[1])) as address:
        print("ready", flush=True)
        try:
            await asyncio.sleep(60)
        finally:
            connection = await asyncpg.connect(
                host=address.host, port=address.port, user=address.user, database=address.database
            )
            print(await connection.fetchval("SELECT 'still there'"), flush=True)
            await connection.close()

asyncio.run(main())
"""


def ask(server, query):
    """Return the first column of the first row."""
    address = server.address
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, dbname=address.database
    ) as connection:
        return connection.execute(query).fetchone()[0]


def is_running(server):
    """Return whether a process of the server is left."""
    return embedded._works_in(server.directory)


@contextlib.contextmanager
def temporary_directory():
    """A directory with a short path."""
    name = tempfile.mkdtemp(prefix="rialto-tests-")
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


@contextlib.contextmanager
def started(directory):
    """Start a server; stop it at the end of the block."""
    server = Embedded(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
    assert not is_running(server)


@pytest.fixture(scope="module")
def data():
    """The data directory of a server that is not running."""
    with temporary_directory() as directory:
        server = OwnServer(directory / "postgres")
        server.start()
        server.stop()
        yield server.directory


@pytest.fixture
def server(data):
    """A server that is not running; it is stopped afterwards."""
    server = OwnServer(data)
    yield server
    server.stop()
    assert not is_running(server)


@contextlib.contextmanager
def user_process(directory, **options):
    """Run another process that uses the server."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER_OF_THE_SERVER, str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        while (line := process.stdout.readline()) != "ready\n":
            assert line, process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_a_second_start_finds_the_data(server):
    """Data written before a stop is there after the next start."""
    server.start()
    with psycopg.connect(host=server.address.host, user="postgres") as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    server.stop()
    assert not is_running(server)
    server.start()

    assert ask(server, "SELECT n FROM kept") == 7


def test_the_last_user_stops_it(server):
    """Of two processes that share the server, the first leaves it running and the last stops it."""
    server.start()
    pid = server.pid
    other = Embedded(server.directory)
    other.start()
    server.stop()

    assert ask(other, "SELECT 1") == 1
    server.start()
    assert server.pid == pid
    other.stop()
    assert ask(server, "SELECT 1") == 1
    server.stop()
    server.stop()
    assert not is_running(server)


def test_a_killed_user_blocks_nobody(server):
    """After a process that uses the server was killed, the next one uses the server and stops
    it."""
    with user_process(server.directory) as process:
        process.kill()
        process.wait()
    assert is_running(server)
    pid = server.pid
    server.start()

    assert server.pid == pid
    server.stop()
    assert not is_running(server)


def test_a_killed_server_starts_again(server):
    """After the server itself was killed, the next start recovers it."""
    server.start()
    server.kill()
    server.start()

    assert ask(server, "SELECT 1") == 1


def test_another_process_got_the_servers_id(server):
    """In a new container another process may have the old server's id: it is not taken for the
    server and does not prevent a start."""
    server.start()
    server.kill()
    # PostgreSQL checks only processes of its own account.
    account = dict(zip(("user", "group"), server._account or (), strict=False))
    with subprocess.Popen(["sleep", "60"], **account) as stranger:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            path = server.directory / name
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        try:
            server.start()
            assert ask(server, "SELECT 1") == 1
        finally:
            stranger.kill()


def test_a_killed_initdb_starts_again():
    """Data that a killed first start left behind is created anew."""
    with temporary_directory() as directory:
        half = directory / "postgres.new"
        half.mkdir()
        (half / "PG_VERSION").write_text("18\n")
        with started(directory / "postgres") as server:
            assert ask(server, "SELECT 1") == 1
        assert not half.exists()


@pytest.mark.parametrize("name", ["with a space", "with, a comma", "x" * 120])
def test_paths_of_any_kind(data, name):
    """Paths may have spaces and commas and be too long for a socket's address."""
    with temporary_directory() as directory:
        (directory / name).mkdir()
        subprocess.run(["cp", "-Rp", data, directory / name / "postgres"], check=True)
        with started(directory / name / "postgres") as server:
            assert ask(server, "SELECT 1") == 1
            sockets = Path(server.address.host)
        assert sockets == server.directory or not sockets.exists()


def test_ctrl_c_reaches_the_service_only(server):
    """After Ctrl-C, which goes to the whole foreground process group, the server still answers
    during the cleanup, then stops."""
    with user_process(server.directory) as process:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=10)

    assert "still there" in output
    assert not is_running(server)


async def test_a_cancelled_start_leaves_nothing(server):
    """A service that is stopped while it starts the server leaves none behind."""

    async def use():
        async with embedded.running(server.directory):
            raise AssertionError("not reached")

    task = asyncio.create_task(use())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not is_running(server)


async def test_the_loop_is_not_blocked(server):
    """The server starts and stops in a thread."""
    longest_s = 0.0

    async def watch():
        nonlocal longest_s
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - started)

    watching = asyncio.create_task(watch())
    began = time.monotonic()
    async with embedded.running(server.directory) as address:
        assert address.host == str(server.directory)
    duration_s = time.monotonic() - began
    watching.cancel()

    assert longest_s < duration_s / 3


def test_the_server_knows_no_secrets(server, monkeypatch):
    """The server does not inherit the service's environment, which has keys."""
    monkeypatch.setenv("OPERATOR_KEY", "operator-key-of-the-tests")
    server.start()

    assert "operator-key-of-the-tests" not in str(psutil.Process(server.pid).environ())


def test_a_failed_start_reports_why(data):
    """The error has the server's own message, nothing is left running, and the next start works."""
    with pytest.raises(StartupError, match="no_such_setting") as raised:
        Embedded(data, options="-c no_such_setting=1").start()

    assert str(data / "log") in raised.value.hint
    with started(data) as server:
        assert ask(server, "SELECT 1") == 1


def test_a_directory_with_other_data_is_refused(tmp_path):
    """A directory with other content is refused and left unchanged."""
    directory = tmp_path / "postgres"
    directory.mkdir()
    (directory / "PG_VERSION").write_text("12\n")
    with pytest.raises(StartupError, match="PostgreSQL 12"):
        Embedded(directory).start()

    (directory / "PG_VERSION").rename(directory / "precious")
    with pytest.raises(StartupError) as raised:
        Embedded(directory).start()
    assert "DATABASE_URL" in raised.value.hint
    assert (directory / "precious").exists()


def test_without_the_extra(tmp_path, monkeypatch):
    """Without the wheel the error states what to set or to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StartupError, match="not installed") as raised:
        Embedded(tmp_path / "postgres").start()

    assert "DATABASE_URL" in raised.value.hint
    assert "rialto[embedded]" in raised.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run without root here")
def test_without_root():
    """A user other than root runs the server under their own account."""
    account = pwd.getpwnam("nobody")
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "import psutil\n"
        "from service.database.embedded import Embedded\n"
        "os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))\n"
        "server = Embedded(Path(sys.argv[1]) / 'postgres')\n"
        "server.start()\n"
        "print(psutil.Process(int(server._pid_lines()[0])).username())\n"
        "server.stop()\n"
        "print(server._pid_lines())\n"
    )
    with temporary_directory() as directory:
        os.chown(directory, account.pw_uid, account.pw_gid)
        output = subprocess.check_output(
            [sys.executable, "-c", program, directory, str(account.pw_uid), str(account.pw_gid)],
            cwd=ROOT,
            text=True,
        )

    assert output.splitlines()[-3:][0] == "nobody"
    assert output.splitlines()[-1] == "[]"
