"""The short form of scripts/chaos.sh: each fault a few times under load."""

import dataclasses

import chaos
import psycopg
import pytest
from conftest import running_server

from service import schema


@pytest.fixture
def careful():
    """A PostgreSQL that keeps what it has acknowledged, through kill -9."""
    with running_server() as server:
        address = dataclasses.replace(server.address, database="chaos")
        with psycopg.connect(
            host=address.host, port=address.port, user=address.user, autocommit=True
        ) as connection:
            connection.execute("CREATE DATABASE chaos")
        schema.apply(address)
        yield server, address


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("kill-service", 3),
        ("kill-postgres", 2),
        ("lose-connections", 2),
        ("reset-connections", 4),
        ("run-late", 2),
        ("freeze-service", 1),
    ],
)
async def test_the_books_survive(careful, tmp_path, name, count):
    """Whatever dies: no entry is missing, none is twice, nothing stays held, no limit is passed."""
    server, address = careful
    report = await chaos.run(server, address, tmp_path, name, count, seed=count)

    assert report.problems == []
    assert report.faults == count
    assert report.answered > 20
    assert report.refused > 0
