"""PostgreSQL servers and databases of the tests."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import psycopg
from faults import OwnServer

from service.database import schema

NO_DURABILITY = " ".join(
    f"-c {setting}"
    for setting in (
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "wal_level=minimal",
        "max_wal_senders=0",
        "max_connections=300",
        # PostgreSQL scans all shared buffers for each clone and each drop of a database.
        "shared_buffers=16MB",
        # A database lives for milliseconds; autovacuum would only take processor time.
        "autovacuum=off",
        "jit=off",
    )
)
"""Server options that trade durability for speed; no test with this server cuts the power."""
MEMORY = Path("/dev/shm")
"""A directory in memory, where cloning a database takes a tenth of the time."""
NUMBERS = itertools.count(1)


@contextlib.contextmanager
def running_server(*, in_memory=False, **arguments):
    """Run a server in a new directory with a short path; remove both afterwards."""
    parent = MEMORY if in_memory and os.access(MEMORY, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="rialto-tests-", dir=parent))
    server = OwnServer(directory / "postgres", **arguments)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@contextlib.contextmanager
def durable_server(name):
    """Run a server that keeps what it acknowledged even when it is killed; yield it and the address
    of a database with all tables."""
    with running_server() as server:
        address = dataclasses.replace(server.address, database=name)
        with administration(server) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            for setting in ("fsync", "synchronous_commit"):
                (value,) = connection.execute(f"SHOW {setting}").fetchone()
                assert value == "on", f"{setting} is {value}"
        schema.apply(address)
        yield server, address


@contextlib.contextmanager
def administration(server):
    """Open a connection that may create and drop databases."""
    address = server.address
    with psycopg.connect(
        host=address.host, port=address.port, user=address.user, autocommit=True
    ) as connection:
        yield connection


@contextlib.contextmanager
def new_database(server, template="template1"):
    """Create a database for the length of the block; yield its address."""
    name = f"test_{next(NUMBERS)}"
    with administration(server) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield dataclasses.replace(server.address, database=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
