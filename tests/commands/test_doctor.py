"""rialto doctor names what is wrong and what to do."""

import asyncio
import json

import asyncpg
import pytest
from command_line import RIALTO, on_terminal, run
from pooler import Pooler
from process import client_of, database_url, started
from upstream import running_sandbox

from service.database.connections import connect_arguments

TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_keepalives_count",
    "jit",
)
"""The settings of a connection that the pooler of the tests passes on."""


async def findings(*arguments, **command):
    """Return the exit status, and the findings by their checks."""
    status, out, err = await run(*RIALTO, "doctor", *arguments, **command)
    assert "Traceback" not in err
    found = [json.loads(line) for line in out.splitlines()]
    return status, {one["check"]: one for one in found}


async def test_a_sound_installation(command, unused_tcp_port):
    """Without problems the status is 0; what is not there is a note with what to do."""
    status, found = await findings(**command, PORT=str(unused_tcp_port))

    assert status == 0
    states = {check: one["state"] for check, one in found.items()}
    assert states == {
        "settings": "ok",
        "database": "ok",
        "schema": "ok",
        "pooler": "ok",
        "encryption key": "ok",
        "clock": "ok",
        "Venice key": "note",
        "disk": "ok",
        "service": "note",
        "CORS": "ok",
        "proxy": "note",
    }
    assert "scripts/run.sh" in found["service"]["advice"]
    assert "VENICE_API_KEY" in found["Venice key"]["advice"]


async def test_wrong_settings(tmp_path):
    """Every mistake in the settings and every misspelt name is a line with what to do."""
    status, out, _ = await run(
        *RIALTO, "doctor", directory=tmp_path, PORT="many", HEARTBEAT_SECONDS="x", VENICE_APIKEY="k"
    )

    assert status == 1
    found = [json.loads(line) for line in out.splitlines()]
    assert {one["found"].partition(":")[0] for one in found if one["state"] == "problem"} == {
        "PORT",
        "HEARTBEAT_SECONDS",
    }
    (misspelt,) = [one for one in found if one["state"] == "warning"]
    assert misspelt["advice"] == "Did you mean VENICE_API_KEY?"


async def test_no_database(tmp_path, unused_tcp_port):
    """A database that is not there, or not made yet, is a problem with what to do."""
    url = f"postgresql://u:hush@127.0.0.1:{unused_tcp_port}/x"
    status, found = await findings(directory=tmp_path, DATABASE_URL=url)
    assert (status, found["database"]["state"]) == (1, "problem")
    assert "DATABASE_URL" in found["database"]["advice"]
    assert "hush" not in str(found)

    status, found = await findings(directory=tmp_path)
    assert (status, found["database"]["state"]) == (1, "problem")
    assert "scripts/run.sh" in found["database"]["advice"]
    assert not (tmp_path / ".rialto").exists()


async def test_a_schema_that_lacks_something(command, database_address):
    """Missing tables are named, with the command that makes them."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    await connection.execute("ALTER TABLE public.limits DROP COLUMN alert_percents CASCADE")
    await connection.close()

    status, found = await findings(**command)

    assert (status, found["schema"]["state"]) == (1, "problem")
    assert "limits.alert_percents" in found["schema"]["found"]
    assert found["schema"]["advice"]


async def test_another_encryption_key(command, service):
    """An encryption key that opens nothing is a problem."""
    await service.new_caller()
    status, found = await findings(**{**command, "ENCRYPTION_KEY": "n" * 32})

    assert (status, found["encryption key"]["state"]) == (1, "problem")
    assert "ENCRYPTION_KEY" in found["encryption key"]["advice"]


async def test_a_key_that_venice_refuses(command):
    """Venice is asked about each key, at no cost."""
    async with running_sandbox() as venice:
        url = {"VENICE_BASE_URL": f"{venice.url}/api/v1"}
        status, found = await findings(**command, **url, VENICE_API_KEY="sandbox")
        assert (status, found["Venice key"]["state"]) == (0, "ok")

        status, found = await findings(**command, **url, VENICE_API_KEY="wrong")
        assert (status, found["Venice key"]["state"]) == (1, "problem")
        assert "rialto upstream-keys disable environment" in found["Venice key"]["advice"]
        assert venice.posts == []


async def test_a_running_service(tmp_path, database_address):
    """A running service is asked for its health, for CORS as a browser would, and through its
    public address."""
    environment = {"DATABASE_URL": database_url(database_address)}
    async with (
        started(tmp_path, **environment, CORS_ORIGINS="https://app.example.com") as process,
        client_of(process) as service,
    ):
        port = {"PORT": service.url.rpartition(":")[2]}
        command = {"directory": tmp_path, **environment, **port}
        own = {"CORS_ORIGINS": "https://app.example.com"}
        status, found = await findings("--url", service.url, **command, **own)
        assert (status, found["service"]["state"], found["CORS"]["state"]) == (0, "ok", "ok")
        assert found["proxy"]["found"].startswith(f"{service.url}: ok")

        other = {"CORS_ORIGINS": "https://other.example.com"}
        status, found = await findings(**command, **other)
        assert (status, found["CORS"]["state"]) == (1, "problem")
        assert "Restart it" in found["CORS"]["advice"]


REFUSES = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\n\r\n"
REMOVES = 'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
PAGE = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("short", "long", "advice"),
    [
        (None, REFUSES, "headers of 32 KB"),
        (REMOVES, REMOVES, "headers both ways"),
        (PAGE, PAGE, "every path"),
    ],
)
async def test_a_proxy_that_is_in_the_way(command, short, long, advice):
    """A proxy that refuses long headers, removes headers or does not lead to Rialto is a problem
    with what it must do."""

    async def answer(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        text = long if len(head) > 10_000 else short
        if text is None:
            request_id = head.lower().partition("x-request-id: ")[2].partition("\r\n")[0]
            text = REMOVES.replace(
                "Content-Length", f"X-Request-Id: {request_id}\r\nContent-Length"
            )
        writer.write(text.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        port = server.sockets[0].getsockname()[1]
        status, found = await findings("--url", f"http://127.0.0.1:{port}", **command)

    assert (status, found["proxy"]["state"]) == (1, "problem")
    assert advice in found["proxy"]["advice"]


async def test_the_table(command):
    """On a terminal each check is a row with what was found and what to do."""
    shown = await on_terminal("doctor", columns=120, **command)

    assert shown.status == 0
    assert "what to do" in shown.text
    assert any(line.split()[:2] == ["clock", "ok"] for line in shown.lines)


async def test_a_pooler(command, database_address):
    """A pooler without a way past it is a problem that names the variable; with one it is well."""
    async with Pooler(database_address, passes=TIMEOUTS) as pooler:
        through = {**command, "DATABASE_URL": database_url(pooler.address)}
        status, found = await findings(**through)
        assert (status, found["pooler"]["state"]) == (1, "problem")
        assert "DATABASE_UNPOOLED_URL" in found["pooler"]["advice"]

        past = {"DATABASE_UNPOOLED_URL": command["DATABASE_URL"]}
        status, found = await findings(**through, **past)
        assert (status, found["pooler"]["state"]) == (0, "ok")

    status, found = await findings(**command, **past)
    assert (status, found["pooler"]["state"]) == (0, "note")


async def test_a_database_without_tables(tmp_path, empty_database_address):
    """Nothing that was found is lost when there are no tables to read."""
    url = database_url(empty_database_address)
    status, found = await findings(directory=tmp_path, DATABASE_URL=url)

    assert status == 1
    assert (found["database"]["state"], found["schema"]["state"]) == ("ok", "problem")
    assert "clock" in found
