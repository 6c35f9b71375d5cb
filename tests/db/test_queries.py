"""Every statement of the service, prepared against the migrated schema."""

import importlib
import pkgutil

import asyncpg
import pytest

import service
from service.db import connect_arguments

STATEMENT = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


def statements():
    """Name and text of each constant that is a statement."""
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if module.name.startswith("service.sandbox") or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            words = value.split() if name.isupper() and isinstance(value, str) else []
            if words and words[0] in STATEMENT and ":key" not in value:
                yield pytest.param(value, id=f"{module.name}.{name}")


@pytest.mark.parametrize("sql", list(statements()))
async def test_statements_fit_the_schema(database_address, sql):
    """Each names tables, columns and types that there are."""
    connection = await asyncpg.connect(**connect_arguments(database_address))
    try:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS yoyo")
        await connection.prepare(sql)
    finally:
        await connection.close()
