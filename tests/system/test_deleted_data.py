"""A development database whose files are deleted or moved while it runs, and commands without a
database."""

import asyncio
import os
import shutil
import signal
import sys

import psutil
import pytest
from process import client_of, started, variables

from service.background.watchdog import EX_WEDGED

COMMANDS = [
    ("organizations", "list"),
    ("organizations", "create", "acme"),
    ("keys", "list", "--organization", "00000000-0000-0000-0000-000000000000"),
    ("ledger", "list", "--organization", "00000000-0000-0000-0000-000000000000"),
    ("audit",),
    ("usage", "--organization", "00000000-0000-0000-0000-000000000000"),
    ("models", "list"),
    ("upstream-keys", "list"),
]


def servers(directory):
    """Return the processes of a PostgreSQL in the directory."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in part for part in process.info["cmdline"] or ())
    ]


def delete(data):
    """Delete everything as `rm -rf` does, while PostgreSQL deletes files too."""
    while data.exists():
        shutil.rmtree(data, ignore_errors=True)


def delete_the_database(data):
    """Delete only PostgreSQL's data."""
    delete(data / "postgres")


def move(data):
    """Move the directory as `mv` does."""
    data.rename(data.with_name("elsewhere"))


def replace(data):
    """Put another directory in its place at once."""
    move(data)
    shutil.copytree(
        data.with_name("elsewhere"), data, ignore=shutil.ignore_patterns(".s.*", "*.pid")
    )


@pytest.mark.parametrize("lose", [delete, delete_the_database, move, replace])
async def test_a_service_whose_database_is_deleted_ends(tmp_path, lose):
    """A service whose database's files are gone reports that and ends, and neither it nor its
    server continues to write."""
    async with started(tmp_path) as process:
        async with client_of(process) as service:
            await service.new_caller()
        assert servers(tmp_path / ".rialto")
        lose(tmp_path / ".rialto")
        assert await process.ended(timeout=20) == EX_WEDGED

    (line,) = [one for one in process.lines if one["level"] == "critical"]
    assert "deleted or moved" in line["message"]
    assert ".rialto/postgres" in line["directory"]
    async with asyncio.timeout(10):
        while servers(tmp_path / ".rialto"):
            await asyncio.sleep(0.05)


async def test_a_stopped_database_ends_nothing(tmp_path):
    """A service whose database server is stopped waits for it."""
    async with started(tmp_path) as process:
        async with client_of(process) as service:
            async with asyncio.timeout(20):
                while not any("Ctrl-C" in line for line in process.raw):
                    await asyncio.sleep(0.05)
            pid = (tmp_path / ".rialto" / "postgres" / "postmaster.pid").read_text().split()[0]
            os.kill(int(pid), signal.SIGINT)
            async with asyncio.timeout(10):
                while True:
                    async with service.http.get("/health") as response:
                        if response.status == 503:
                            break
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.5)
            assert process.is_running
        process.send()
        assert await process.ended() == 0, "".join(process.raw[-20:])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_a_command_creates_no_database(tmp_path, command):
    """A command without a database exits with 1 and reports what to do."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *command),
        cwd=tmp_path,
        env=variables(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert (process.returncode, out) == (1, b"")
    assert b"There is no development database in .rialto/postgres. Start the service first" in err
    assert not (tmp_path / ".rialto" / "postgres").exists()
