"""Prepares every statement of the service against the migrated schema."""

import importlib
import pkgutil
import re

import asyncpg
import pytest
from postgres import new_database

import service
from service.database.connections import connect_arguments

STATEMENT = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
NAMED_PARAMETER = re.compile(r"(?<![:\w]):[a-z]")
"""The migrator's statements have these, which yoyo replaces."""
PLACE = re.compile(r"{\w*}")
"""Statements that code completes have these; the tests of that code run them."""


def statements():
    """Yield name and text of each constant that is a statement."""
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if module.name.startswith("service.sandbox") or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            words = value.split() if name.isupper() and isinstance(value, str) else []
            if not words or words[0] not in STATEMENT:
                continue
            if not NAMED_PARAMETER.search(value) and not PLACE.search(value):
                yield pytest.param(value, id=f"{module.name}.{name}")


@pytest.fixture(scope="module")
def migrated_address(server, template):
    """One database for all statements, because preparing them changes nothing."""
    with new_database(server, template) as address:
        yield address


@pytest.mark.parametrize("sql", list(statements()))
async def test_statements_fit_the_schema(migrated_address, sql):
    """Each statement names existing tables, columns and types."""
    connection = await asyncpg.connect(**connect_arguments(migrated_address))
    try:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS yoyo")
        await connection.prepare(sql)
    finally:
        await connection.close()
