"""The command line: the operator's commands, on the same database as the service."""

import asyncio
import json
import re
import sys
import uuid

import asyncpg
import pytest
from command_line import rialto, run
from process import MIGRATIONS, ROOT, client_of, database_url, started
from support import MODEL, Caller

from service.database.connections import connect_arguments


async def test_keys_are_created_and_revoked(tmp_path, database_address, upstream):
    """An organization and a key created on the command line work at once in a running service, and
    so does the revocation."""
    environment = {"DATABASE_URL": database_url(database_address)}
    venice = {"VENICE_API_KEY": "sandbox", "VENICE_BASE_URL": f"{upstream.url}/api/v1"}
    async with (
        started(tmp_path, **environment, **venice) as process,
        client_of(process) as service,
    ):
        command = {"directory": tmp_path, **environment}
        (organization,) = await rialto("organizations", "create", "acme", **command)
        names = [line["name"] for line in await rialto("organizations", "list", **command)]
        assert "acme" in names
        one = ("--organization", organization["id"])
        (key,) = await rialto("keys", "create", *one, "--name", "app", **command)
        caller = Caller(service, organization["id"], key)
        async with caller.chat() as response:
            assert response.status == 200
        (entry,) = await rialto("ledger", "list", *one, **command)
        assert (entry["outcome"], entry["api_key_id"]) == ("ok", key["id"])

        (revoked,) = await rialto("keys", "revoke", key["id"], "--yes", **command)
        assert revoked["revoked_at"]
        async with caller.chat() as response:
            assert response.status == 401
        (listed,) = await rialto("keys", "list", *one, **command)
        assert "key" not in listed


async def test_aliases_are_set_and_removed(tmp_path, database_address, upstream):
    """A running service knows an alias set on the command line within seconds, also for a key that
    may use nothing else; an error is one line."""
    environment = {"DATABASE_URL": database_url(database_address)}
    command = {"directory": tmp_path, **environment}
    venice = {"VENICE_API_KEY": "sandbox", "VENICE_BASE_URL": f"{upstream.url}/api/v1"}
    async with (
        started(tmp_path, **environment, **venice) as process,
        client_of(process) as service,
    ):
        await process.wait_for_line("catalogue refreshed")
        (organization,) = await rialto("organizations", "create", "acme", **command)
        one = ("--organization", organization["id"])
        (alias,) = await rialto("models", "set", "fast", MODEL, "kimi-k2-6", *one, **command)
        assert (alias["targets"], alias["version"]) == ([MODEL, "kimi-k2-6"], 1)
        assert await rialto("models", "list", "--kind", "alias", **command) == [alias]
        assert MODEL in {line["name"] for line in await rialto("models", "list", **command)}
        named = ("--name", "app", "--model", "fast")
        (key,) = await rialto("keys", "create", *one, *named, **command)
        assert key["models"] == ["fast"]
        caller = Caller(service, organization["id"], key)
        async with asyncio.timeout(10):
            while await listed_ids(caller) != ["fast"]:
                await asyncio.sleep(0.1)

        assert await rialto("models", "delete", "fast", *one, "--yes", **command) == [alias]
        async with asyncio.timeout(10):
            while await listed_ids(caller):
                await asyncio.sleep(0.1)
    program = [sys.executable, "-m", "service", "models"]
    for bad, expected in (
        (["delete", "fast", "--yes"], "not_found: There is no such alias."),
        (["set", "fast", "lama"], "invalid_request: targets: 'lama' is not a model"),
        (["set", "fast", MODEL, "--organization", str(uuid.uuid4())], "not_found: There is no"),
    ):
        status, _, err = await run(*program, *bad, **command)
        assert status == 1
        assert expected in err


async def listed_ids(caller):
    """Return the ids of the models that the caller may use."""
    async with caller.service.http.get("/v1/models", headers=caller.headers) as response:
        return [model["id"] for model in (await response.json())["data"]]


async def test_limits_are_set_and_changed(tmp_path, database_address):
    """There is an option for each unit, with a ceiling per period; an invalid limit is one line of
    error."""
    command = {"directory": tmp_path, "DATABASE_URL": database_url(database_address)}
    (organization,) = await rialto("organizations", "create", "acme", **command)
    one = ("--organization", organization["id"])

    amounts = ("--usd", "5/month", "--requests", "60/minute", "--concurrency", "10")
    made = await rialto("limits", "create", *one, *amounts, **command)

    assert [(limit["unit"], limit["ceiling"], limit["period"]) for limit in made] == [
        ("usd", "5.00", "month"),
        ("requests", 60, "minute"),
        ("concurrency", 10, None),
    ]
    (changed,) = await rialto("limits", "update", made[0]["id"], "7.50", **command)
    assert changed["ceiling"] == "7.50"
    await rialto("limits", "delete", made[1]["id"], "--yes", **command)
    listed = await rialto("limits", "list", *one, **command)
    assert [limit["id"] for limit in listed] == [made[0]["id"], made[2]["id"]]

    checked = {line["organization_id"]: line for line in await rialto("audit", **command)}
    assert checked[organization["id"]] == {
        "organization_id": organization["id"],
        "organization_name": "acme",
        "limits": 3,
        "holds": 0,
        "entries": 0,
        "faults": [],
        "chain_breaks_at": None,
        "repaired": [],
    }
    program = [sys.executable, "-m", "service", "limits", "create", *one]
    for bad, expected in (
        (["--usd", "5/year"], "'5/year' is not a ceiling and period"),
        (["--usd", "five/day"], "invalid_request: ceiling: must be a decimal number"),
        (["--requests", "60"], "'60' has no period: minute, hour, day, month or lifetime, as 60/"),
        (["--usd", "5"], "as 5/month"),
        ([], "Give at least one of --usd"),
    ):
        status, _, err = await run(*program, *bad, **command)
        assert status != 0
        assert expected in err
        assert "Traceback" not in err


async def test_the_embedded_database_is_shared(tmp_path):
    """In development a command uses the embedded database of a running service and leaves it
    running."""
    environment = {"DATA_DIRECTORY": str(tmp_path / "data")}
    async with (
        started(tmp_path, **environment) as process,
        client_of(process) as service,
    ):
        (organization,) = await rialto(
            "organizations", "create", "acme", directory=tmp_path, **environment
        )
        _, found = await service.operate("GET", f"/admin/v1/organizations/{organization['id']}")
        assert found["name"] == "acme"
        async with service.http.get("/health") as response:
            assert response.status == 200
        process.send()
        assert await process.ended() == 0


async def test_only_the_result_is_printed(tmp_path):
    """A command logs its steps only on request, and never to standard output."""
    command = [sys.executable, "-m", "service"]
    status, _, err = await run(*command, "migrate", directory=tmp_path)
    assert status == 0, err

    quiet = await run(*command, "organizations", "create", "acme", directory=tmp_path)
    assert (quiet[0], quiet[1].count("\n"), quiet[2]) == (0, 1, "")
    _, out, err = await run(*command, "organizations", "list", directory=tmp_path, LOG_LEVEL="info")
    assert (out, "embedded database" in err) == (quiet[1], True)


async def test_mistakes_are_one_line(tmp_path, database_address):
    """A command that fails prints one line without a traceback and exits with 1."""
    status, out, err = await run(
        *[sys.executable, "-m", "service", "keys", "revoke", "--yes"],
        "00000000-0000-0000-0000-000000000001",
        directory=tmp_path,
        DATABASE_URL=database_url(database_address),
    )

    assert (status, out) == (1, "")
    assert err == "not_found: There is no such API key.\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("organizations", "create", ""), "invalid_request: name: must be 1 to 200 characters"),
        (("organizations", "create", " \t"), "invalid_request: name: must be 1 to 200 characters"),
        (("organizations", "create", "a\nb"), "invalid_request: name: must be 1 to 200 characters"),
        (("organizations", "create", b"\xff"), "invalid_request: name: must be 1 to 200"),
        (("keys", "create", "--name", "x" * 201), "invalid_request: name: must be 1 to 200"),
        (
            ("keys", "create", "--name", "app", "--expires-at", "2020-01-01T00:00:00Z"),
            "invalid_request: expires_at: must be in the future.\n",
        ),
    ],
)
async def test_the_rules_are_the_apis(tmp_path, database_address, service, command, expected):
    """The command line refuses what the API refuses, with the same text in one line."""
    if command[0] == "keys":
        command = (*command, "--organization", (await service.new_caller()).organization_id)
    status, out, err = await run(
        *[sys.executable, "-m", "service", *command],
        directory=tmp_path,
        DATABASE_URL=database_url(database_address),
    )

    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(expected)


async def test_a_key_that_expires(tmp_path, database_address, service):
    """--expires-at accepts the form that its help shows."""
    caller = await service.new_caller()
    _, text, _ = await run(
        *[sys.executable, "-m", "service", "keys", "create", "--help"], directory=tmp_path
    )
    example = re.search(r"such\s+as\s+(\S+Z)", text)[1]

    (key,) = await rialto(
        *("keys", "create", "--organization", caller.organization_id, "--name", "app"),
        *("--expires-at", example),
        directory=tmp_path,
        DATABASE_URL=database_url(database_address),
    )

    assert key["expires_at"] == example


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_no_row_is_ever_printed(tmp_path, database_address, level):
    """An unforeseen database error is one line with its class; the traceback is for debugging and
    does not have the row."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    await connection.execute(
        "ALTER TABLE public.organizations ADD CONSTRAINT x CHECK (name <> 'private-name')"
    )
    await connection.close()
    status, out, err = await run(
        *[sys.executable, "-m", "service", "organizations", "create", "private-name"],
        directory=tmp_path,
        DATABASE_URL=database_url(database_address),
        LOG_LEVEL=level,
    )

    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("internal_error: CheckViolationError.")
    assert ("Traceback" in err) is (level == "debug")
    assert "private-name" not in err


async def test_no_database(tmp_path, unused_tcp_port):
    """Without a database a command reports that, and what to check."""
    status, out, err = await run(
        *[sys.executable, "-m", "service", "organizations", "list"],
        directory=tmp_path,
        DATABASE_URL=f"postgresql://u:hush@127.0.0.1:{unused_tcp_port}/x",
        LOG_LEVEL="error",
    )

    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "DATABASE_URL" in err
    assert "hush" not in err


async def test_nothing_is_created_with_another_encryption_key(tmp_path, database_address, service):
    """With an encryption key that opens no stored data key no organization and no key can be
    created; commands that need no data key work."""
    caller = await service.new_caller()
    other = {
        "directory": tmp_path,
        "DATABASE_URL": database_url(database_address),
        "ENCRYPTION_KEY": "n" * 32,
    }
    for command in (
        ("organizations", "create", "other"),
        ("keys", "create", "--organization", caller.organization_id, "--name", "app"),
    ):
        status, out, err = await run(sys.executable, "-m", "service", *command, **other)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "Add the key that was in force to ENCRYPTION_KEY" in err

    assert len(await rialto("organizations", "list", **other)) == 1
    (revoked,) = await rialto("keys", "revoke", caller.key_id, "--yes", **other)
    assert revoked["revoked_at"]


async def test_migrate_applies_everything(tmp_path, empty_database_address):
    """scripts/migrate.sh migrates an empty database and finds the fourteen tables, and a second run
    has nothing to do."""
    environment = {"DATABASE_URL": database_url(empty_database_address), "LOG_FORMAT": "json"}
    for applied in (len(MIGRATIONS), 0):
        status, _, err = await run(
            "sh", str(ROOT / "scripts" / "migrate.sh"), directory=tmp_path, **environment
        )
        assert status == 0, err
        messages = [json.loads(line)["message"] for line in err.splitlines()]
        assert messages.count("migration applied") == applied
        assert sum(re.match(r"\d+/14 \w+", message) is not None for message in messages) == 14


@pytest.mark.parametrize("url", ["postgresql://u:hush@127.0.0.1:1/x", "mysql://u:hush@h/x"])
async def test_migrate_fails_loudly(tmp_path, url):
    """Without a database scripts/migrate.sh prints what to do and exits non-zero."""
    status, _, err = await run(
        "sh",
        str(ROOT / "scripts" / "migrate.sh"),
        directory=tmp_path,
        DATABASE_URL=url,
        STARTUP_DATABASE_TIMEOUT="1",
    )

    assert status in (1, 78)
    assert "DATABASE_URL" in err
    assert "hush" not in err
