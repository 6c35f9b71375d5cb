"""The start logs every step, serves nothing before it is ready, and reports what to do about a
failure."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from process import MIGRATIONS, ROOT, database_url, started, variables
from support import ENCRYPTION_KEY, OPERATOR_KEY

from service.database.connections import connect_arguments
from service.database.migrator import ADVISORY_LOCK
from service.database.schema import OLD_CHAIN

TABLES = [
    "organizations",
    "api_keys",
    "limits",
    "upstream_keys",
    "models",
    "holds",
    "ledger_entries",
    "idempotency_keys",
    "generations",
    "conversations",
    "items",
    "webhook_endpoints",
    "webhook_deliveries",
    "audit_events",
]


def environment(address, upstream):
    """Return the environment that a process needs for a database and a Venice."""
    return {
        "DATABASE_URL": database_url(address),
        "VENICE_API_KEY": "sandbox",
        "VENICE_BASE_URL": f"{upstream.url}/api/v1",
    }


async def test_a_first_start_logs_each_step(tmp_path, empty_database_address, upstream):
    """The first start logs settings, database, migrations by name, each of 14 tables, pool, catalog
    and listening."""
    async with started(tmp_path, **environment(empty_database_address, upstream)) as service:
        await service.listening()
        await service.wait_for_line("catalogue refreshed")
        mapped = Path(f"/proc/{service.process.pid}/maps").read_text()

    # What migrates is in a process of its own, which has ended.
    assert "asyncpg" in mapped
    assert "psycopg" not in mapped
    messages = [line["message"] for line in service.lines]
    steps = ["settings", "database connected", "migration applied", "14/14 audit_events", "pool"]
    places = [messages.index(step) for step in [*steps, "catalogue", "listening"]]
    assert places == sorted(places)
    found = [message for message in messages if re.match(r"\d+/14 ", message)]
    assert found == [f"{number}/14 {table}" for number, table in enumerate(TABLES, start=1)]
    migrations = sorted(path.stem for path in Path("migrations").glob("*[!k].sql"))
    applied = [line["migration"] for line in service.lines_with("migration applied")]
    assert applied == [name for name in migrations if not name.endswith(".rollback")]
    assert service.lines_with("database connected")[0]["server_version"]
    assert all("duration_ms" in line for line in service.lines_with("pool"))


async def test_a_second_start_imports_nothing_it_does_not_need(
    tmp_path, database_address, upstream
):
    """With nothing pending a serving process loads neither the migrator nor the sandbox."""
    async with started(tmp_path, **environment(database_address, upstream)) as service:
        await service.listening()
        mapped = Path(f"/proc/{service.process.pid}/maps").read_text()

    assert service.lines_with("migration applied") == []
    assert "asyncpg" in mapped
    assert "psycopg" not in mapped


COLLECTS = """
import atexit, gc, runpy, sys
atexit.register(lambda: print("collects", gc.isenabled(), gc.get_freeze_count() > 0, flush=True))
sys.argv = ["service", *sys.argv[1:]]
runpy.run_module("service", run_name="__main__")
"""


@pytest.mark.parametrize(("arguments", "is_serving"), [([], True), (["keys", "--help"], False)])
async def test_garbage_is_collected_after_the_start(
    tmp_path, database_address, upstream, arguments, is_serving
):
    """A start runs without collections of garbage, and what serves or works after it with them."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", COLLECTS, *arguments],
        cwd=tmp_path,
        env=variables(tmp_path, **environment(database_address, upstream)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        if is_serving:
            while b'"listening"' not in (line := await process.stderr.readline()):
                assert line
            process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()

    assert process.returncode == 0
    assert output.decode().splitlines()[-1] == f"collects True {is_serving}"


async def test_replicas_start_concurrently(tmp_path, empty_database_address, upstream):
    """Four replicas that start on an empty database all serve, and each migration is applied
    once."""
    variables = environment(empty_database_address, upstream)
    async with (
        started(tmp_path, **variables) as one,
        started(tmp_path, **variables) as two,
        started(tmp_path, **variables) as three,
        started(tmp_path, **variables) as four,
    ):
        replicas = [one, two, three, four]
        await asyncio.gather(*(replica.listening(60) for replica in replicas))

    applied = [
        line["migration"]
        for replica in replicas
        for line in replica.lines_with("migration applied")
    ]
    assert len(applied) == len(set(applied)) == len(MIGRATIONS)


async def test_the_database_comes_later(tmp_path, proxy, proxied_address, upstream):
    """A start waits for its database, logs each attempt, and serves once it is there."""
    proxy.refuse()
    async with started(tmp_path, **environment(proxied_address, upstream)) as service:
        await service.wait_for_line("database not there yet")
        assert service.lines_with("listening") == []
        await proxy.restore()
        await service.listening()

    assert service.lines_with("database not there yet")[0]["attempt"] == 1


async def test_the_database_never_comes(tmp_path, unused_tcp_port):
    """A start without a database exits with 1, a traceback and a line that names what to do."""
    async with started(
        tmp_path,
        DATABASE_URL=f"postgresql://u:very-secret-word@127.0.0.1:{unused_tcp_port}/x",
        STARTUP_DATABASE_TIMEOUT="1",
    ) as service:
        assert await service.ended() == 1

    (traceback,) = service.lines_with("startup traceback")
    assert "Traceback" in traceback["exception"]
    failed = service.lines[-1]
    assert (failed["message"], "DATABASE_URL" in failed["hint"]) == ("start failed", True)
    assert "very-secret-word" not in "".join(service.raw)


async def test_a_database_of_the_old_chain(tmp_path, database_address, upstream):
    """A start on a database from before the baseline exits with 1 and names what to do."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    await connection.execute(
        "INSERT INTO yoyo._yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('old', $1, now() AT TIME ZONE 'UTC')",
        OLD_CHAIN,
    )
    await connection.close()
    async with started(tmp_path, **environment(database_address, upstream)) as service:
        assert await service.ended() == 1

    failed = service.lines[-1]
    assert failed["message"] == "start failed"
    assert "before the baseline" in failed["error"]
    assert "remove .rialto/" in failed["hint"]


async def test_another_encryption_key(tmp_path, database_address, upstream, service):
    """A start with an encryption key that opens nothing stored exits with 1 before it listens; with
    the old key behind it in the list it serves."""
    await service.new_caller()
    variables = environment(database_address, upstream)
    async with started(tmp_path, **variables, ENCRYPTION_KEY="n" * 32) as process:
        assert await process.ended() == 1
    assert process.lines_with("listening") == []
    (failed,) = process.lines_with("start failed")
    assert failed["hint"].startswith("Add the key that was in force to ENCRYPTION_KEY")

    both = f"{'n' * 32},{ENCRYPTION_KEY}"
    async with started(tmp_path, **variables, ENCRYPTION_KEY=both) as process:
        await process.listening()


async def test_another_encryption_key_in_development(tmp_path):
    """A start in development with another encryption key fails too, and stops the embedded database
    again."""
    for key, status in (("o" * 32, 0), ("n" * 32, 1)):
        async with started(tmp_path, ENCRYPTION_KEY=key) as process:
            if status == 0:
                await process.listening()
                async with asyncio.timeout(10):
                    while not any("Ctrl-C" in line for line in process.raw):
                        await asyncio.sleep(0.05)
                process.send()
            assert await process.ended() == status
    assert "ENCRYPTION_KEY" in process.lines_with("start failed")[0]["hint"]
    assert not (tmp_path / ".rialto" / "postgres" / "postmaster.pid").exists()


async def test_the_port_is_taken(tmp_path, database_address, upstream):
    """A taken port ends the start with 1 and one line that names PORT."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with started(
            tmp_path, **environment(database_address, upstream), PORT=str(port)
        ) as service:
            assert await service.ended() == 1

    (failed,) = service.lines_with("start failed")
    assert failed["error"] == f"Cannot listen on 127.0.0.1:{port}: Address already in use."
    assert "PORT" in failed["hint"]
    assert "Traceback" not in "".join(service.raw)
    assert service.lines_with("database connected") == []


async def test_the_port_is_taken_before_anything_is_made(tmp_path):
    """With a taken port a first start in development makes no database."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with started(tmp_path, PORT=port) as service:
            assert await service.ended() == 1
    assert not (tmp_path / ".rialto" / "postgres").exists()


@pytest.mark.parametrize("host", ["203.0.113.1", "nohost.invalid", "a..b"])
async def test_an_invalid_host(tmp_path, database_address, upstream, host):
    """An address of another machine, an unknown name and an invalid name are reported as errors of
    HOST."""
    async with started(tmp_path, **environment(database_address, upstream), HOST=host) as service:
        assert await service.ended() == 1

    assert service.lines_with("start failed")[0]["hint"].startswith("Set HOST")
    assert "Traceback" not in "".join(service.raw)


async def test_a_start_can_be_stopped(tmp_path, unused_tcp_port):
    """SIGTERM while the process waits for the database ends it at once with status 0."""
    async with started(
        tmp_path,
        DATABASE_URL=f"postgresql://u@127.0.0.1:{unused_tcp_port}/x",
        STARTUP_DATABASE_TIMEOUT="600",
    ) as service:
        await service.wait_for_line("database not there yet")
        service.send()
        assert await service.ended(timeout=5) == 0


@pytest.mark.parametrize("module", ["click", "aiohttp.web"])
async def test_ctrl_c_while_it_imports(tmp_path, module):
    """Ctrl-C during the imports ends the process without a traceback."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-X", "importtime", "-m", "service"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        while f" {module}\n".encode() not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        output = await process.stderr.read()
        assert await process.wait() == -signal.SIGINT

    assert b"Traceback" not in output
    assert not (tmp_path / ".rialto" / "postgres").exists()


async def test_a_start_can_be_stopped_while_another_migrates(
    tmp_path, empty_database_address, upstream
):
    """SIGTERM while the process waits for its turn to migrate ends it at once with status 0."""
    other = await asyncpg.connect(**connect_arguments(empty_database_address))
    await other.fetchval("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    async with started(tmp_path, **environment(empty_database_address, upstream)) as service:
        await service.wait_for_line("another process migrates")
        service.send()
        assert await service.ended(timeout=5) == 0
    await other.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="one snippet is for curl")
async def test_the_first_hour_of_a_newcomer(tmp_path):
    """Without settings a start makes its own database and a sandbox and shows a working key; a
    second start has the same key and ledger; Ctrl-C stops the database too."""
    keys = []
    for start in (1, 2):
        async with started(
            tmp_path, OPERATOR_KEY=None, ENCRYPTION_KEY=None, LOG_FORMAT="console"
        ) as service:
            async with asyncio.timeout(60):
                while not any("Ctrl-C" in line for line in service.raw):
                    await asyncio.sleep(0.05)
            shown = "".join(service.raw)
            url = re.search(r"Rialto listens on (\S+)", shown)[1]
            keys.append(re.search(r"demo key +(\S+)", shown)[1])
            for snippet in (r"(curl \S+/v1/chat.*?)\n\nor", r"(python3 - .*?\nPY\n)"):
                pasted = re.search(rf"\n{snippet}", shown, re.DOTALL)[1]
                assert "simulated" in await output_of(pasted)
            ledger = re.search(r"\n(curl -H \"Authorization.*?)\n\nCtrl-C", shown, re.DOTALL)[1]
            assert (await output_of(ledger)).count('"outcome":"ok"') == start * 2
            assert url.startswith("http://127.0.0.1:")
            service.send(2)
            assert await service.ended() == 0

    assert keys[0] == keys[1]
    assert not (tmp_path / ".rialto" / "postgres" / "postmaster.pid").exists()


async def test_the_welcome_keeps_the_users_key(tmp_path):
    """An operator key of the user's own is not printed, and with every interface as host the lines
    to paste lead to this machine."""
    async with started(tmp_path, HOST="0.0.0.0") as service:
        await service.listening()
        async with asyncio.timeout(10):
            while not any("Ctrl-C" in line for line in service.raw):
                await asyncio.sleep(0.05)
        # A killed process would leave its database running.
        service.send()
        assert await service.ended() == 0
    shown = "".join(service.raw)

    assert OPERATOR_KEY not in shown
    assert "OPERATOR_KEY in the environment" in shown
    assert 'Bearer $OPERATOR_KEY"' in shown
    assert re.search(r"Rialto listens on http://127\.0\.0\.1:\d+\n", shown)
    assert "http://0.0.0.0" not in shown


async def output_of(command):
    """Return what a shell prints when a newcomer pastes the command."""
    command = command.replace("python3 -", f"{sys.executable} -")
    process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


async def test_production(tmp_path, proxy):
    """In production the service serves without Venice, shows no key and writes no file."""
    # The name is not one of the loopback's, but still leads to this machine.
    host = socket.gethostname()
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, proxy.port, socket.AF_INET)}
    except OSError:
        addresses = set()
    if addresses != {"127.0.0.1"}:
        pytest.skip("this machine's name does not lead to 127.0.0.1, where the proxy listens")
    async with started(
        tmp_path,
        ENVIRONMENT="production",
        DATABASE_URL=f"postgresql://postgres@{host}:{proxy.port}/{proxy.address.database}",
        VENICE_API_KEY="v" * 40,
        VENICE_BASE_URL="https://127.0.0.1:1/api/v1",
        LOG_FORMAT=None,
    ) as process:
        port = await process.listening()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            async with http.get("/health") as response:
                assert (response.status, await response.text()) == (
                    200,
                    '{"status":"ok","environment":"production","database":"ok"}',
                )
            async with http.get("/health/full") as response:
                assert response.status == 503
                assert '"venice_api":"error: upstream_unreachable"' in await response.text()
        process.send()
        assert await process.ended() == 0

    assert len(process.lines) == len(process.raw), "a line that is not JSON"
    assert list(tmp_path.iterdir()) == []
