"""SQL functions: applied after the migrations when their text is new, all of them or none."""

import re

import asyncpg
import pytest
from structlog.testing import capture_logs
from test_migrations import (
    FUNCTIONS,
    ask,
    connect,
    create,
    finish,
    go,
    kill,
    marked,
    migrating,
    tables,
    until,
    verify,
    write,
)

from service.database import schema
from service.database.connections import connect_arguments
from service.database.functions import read_functions
from service.errors import StartupError
from service.ids import uuid7

RECORDED = "SELECT name FROM yoyo.functions ORDER BY name"


@pytest.fixture
def directory(tmp_path):
    """A directory with one migration and a place for functions."""
    (tmp_path / "functions").mkdir()
    write(tmp_path, a=create("a"))
    return tmp_path


@pytest.fixture
def address(empty_database_address):
    return empty_database_address


def write_function(directory, name, body="SELECT 1", arguments="", returns="int"):
    """Write a function in SQL."""
    (directory / "functions" / f"{name}.sql").write_text(
        f"-- A test's.\nCREATE OR REPLACE FUNCTION public.{name}({arguments}) RETURNS {returns}\n"
        f"LANGUAGE sql AS $$\n    {body}\n$$;\n"
    )


def apply(address, directory, **options):
    """Apply; returns the names of the functions that were applied."""
    with capture_logs() as lines:
        schema.apply(address, directory=directory, **options)
    return [
        name for line in lines if line["event"] == "functions applied" for name in line["names"]
    ]


async def pending(address, directory):
    """What the database lacks, and what it has that is newer."""
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        return await schema.pending(connection, directory)
    finally:
        await connection.close()


async def test_a_function_is_applied_when_its_text_is_new(address, directory):
    """Functions come after the migrations that they need; a second run finds nothing to apply, and
    a later one applies the text that has changed."""
    write_function(directory, "one", "SELECT count(*)::int FROM public.a")
    write_function(directory, "two")
    assert await pending(address, directory) == (["a", "function one", "function two"], [])

    assert apply(address, directory) == ["one", "two"]
    assert await pending(address, directory) == ([], [])
    assert apply(address, directory) == []
    assert ask(address, RECORDED) == ["one", "two"]

    write_function(directory, "two", "SELECT 2")
    assert await pending(address, directory) == (["function two"], [])
    assert apply(address, directory) == ["two"]
    assert ask(address, "SELECT public.two()") == [2]


async def test_a_function_that_is_gone_is_made_again(address, directory):
    """What the bookkeeping has and the database has not is applied again."""
    write_function(directory, "one")
    apply(address, directory)
    with connect(address) as connection:
        connection.execute("DROP FUNCTION public.one()")

    assert await pending(address, directory) == (["function one"], [])
    assert apply(address, directory) == ["one"]


def test_functions_call_each_other(address, directory):
    """The order of their names does not matter."""
    write_function(directory, "one", "SELECT public.two() + 1")
    write_function(directory, "two", "SELECT CASE WHEN false THEN public.one() ELSE 2 END")

    assert apply(address, directory) == ["one", "two"]
    assert ask(address, "SELECT public.one()") == [3]


@pytest.mark.parametrize("body", ["SELECT public.nowhere()", "SELECT FROM WHERE"])
def test_a_function_that_fails(address, directory, body):
    """It is named, and no function changes; the migrations stay applied."""
    write_function(directory, "one")
    apply(address, directory)
    write_function(directory, "one", "SELECT 2")
    write_function(directory, "two", body)
    write(directory, b=create("b"))
    with pytest.raises(StartupError, match=r"Function two failed: .* Nothing of it is applied"):
        apply(address, directory)

    assert ask(address, "SELECT public.one()") == [1]
    assert ask(address, RECORDED) == ["one"]
    assert tables(address) == marked(address) == {"a", "b"}
    write_function(directory, "two")
    assert apply(address, directory) == ["one", "two"]


@pytest.mark.parametrize("changed", [{"returns": "bigint"}, {"arguments": "number int"}])
def test_a_signature_does_not_change(address, directory, changed):
    """Processes of the release before call the old one: the new one gets a name of its own."""
    write_function(directory, "one")
    apply(address, directory)
    write_function(directory, "one", **changed)
    with pytest.raises(StartupError, match="Function one") as raised:
        apply(address, directory)

    assert "one_v2" in raised.value.hint
    assert ask(address, FUNCTIONS) == ["one"]
    assert ask(address, "SELECT public.one()") == [1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "-- x\nCREATE OR REPLACE FUNCTION public.other() RETURNS int",
            "does not create public.one",
        ),
        ("CREATE OR REPLACE FUNCTION public.one() RETURNS int", "does not create public.one"),
        ("-- x\nCREATE FUNCTION public.one() RETURNS int", "does not create public.one"),
        ("-- x\nCREATE OR REPLACE FUNCTION one() RETURNS int", "does not create public.one"),
    ],
)
def test_a_file_creates_the_function_of_its_name(address, directory, text, reason):
    """Anything else is refused before anything is applied."""
    (directory / "functions" / "one.sql").write_text(f"{text} LANGUAGE sql AS 'SELECT 1';")
    with pytest.raises(StartupError, match=reason):
        schema.apply(address, directory=directory)

    assert tables(address) == set()


def test_a_file_has_one_statement(address, directory):
    """A second statement would be run again whenever the text changes."""
    write_function(directory, "one")
    with (directory / "functions" / "one.sql").open("a") as file:
        file.write("DROP TABLE public.a;\n")
    with pytest.raises(StartupError, match="more than one statement"):
        schema.apply(address, directory=directory)

    assert tables(address) == set()


def test_a_kill_between_a_function_and_its_record(address, directory):
    """kill -9 when the functions are made and not yet recorded: both are undone, and the next run
    does both."""
    write_function(directory, "one")
    apply(address, directory)
    write_function(directory, "one", "SELECT 2")
    with connect(address) as connection, connection.transaction():
        connection.execute("LOCK TABLE yoyo.functions IN EXCLUSIVE MODE")
        process = migrating(address, directory)
        go(process)
        waiting = "wait_event_type = 'Lock' AND query LIKE '%INSERT INTO yoyo.functions%'"
        until(lambda: ask(address, f"SELECT 1 FROM pg_stat_activity WHERE {waiting}"))
        kill(process)

    assert ask(address, "SELECT public.one()") == [1]
    assert apply(address, directory) == ["one"]
    assert ask(address, "SELECT public.one()") == [2]


async def test_the_release_before_leaves_newer_functions_alone(
    address, directory, tmp_path_factory
):
    """A process of the release before that starts during a rollout keeps the newer text, which the
    log states; a deployment of that release brings its own text back."""
    newer = tmp_path_factory.mktemp("newer")
    (newer / "functions").mkdir()
    write(newer, a=create("a"))
    write_function(directory, "one")
    write_function(newer, "one", "SELECT 2")
    for release in (directory, newer):
        assert apply(address, release) == ["one"]

    assert await pending(address, directory) == ([], ["function one"])
    assert apply(address, directory) == []
    assert ask(address, "SELECT public.one()") == [2]
    assert apply(address, directory, restore=True) == ["one"]
    assert ask(address, "SELECT public.one()") == [1]
    assert await pending(address, newer) == ([], ["function one"])


async def test_newer_functions_are_logged(database_address):
    """A start on functions of a newer release warns of them."""
    name = read_functions(schema.MIGRATIONS_DIRECTORY)[0].name
    with connect(database_address) as connection:
        connection.execute(
            "INSERT INTO yoyo.functions VALUES (%s, 'newer', now() + interval '1 h')", [name]
        )
    lines = await verify(database_address)

    assert {
        "event": "database is newer than the code",
        "log_level": "warning",
        "migrations": [f"function {name}"],
    } in lines


async def test_a_prepared_statement_takes_the_new_text(address, directory):
    """A connection that has called a function goes on with its new text, without an error."""
    write_function(directory, "one")
    apply(address, directory)
    connection = await asyncpg.connect(**connect_arguments(address))
    try:
        statement = await connection.prepare("SELECT public.one()")
        assert await statement.fetchval() == 1
        write_function(directory, "one", "SELECT 2")
        apply(address, directory)
        assert await statement.fetchval() == 2
    finally:
        await connection.close()


def test_a_rollback_drops_functions_first(address, directory):
    """A function that needs what a migration made does not keep it, and is made again with it."""
    write_function(directory, "one", arguments="item public.a")
    apply(address, directory)

    assert schema.rollback(address, directory=directory) == ["a"]
    assert ask(address, FUNCTIONS) == []
    assert apply(address, directory) == ["one"]


def test_replicas_apply_functions_once(address, directory):
    """Of processes that start together, one applies them."""
    write_function(directory, "one")
    processes = [migrating(address, directory) for _ in range(3)]
    for process in processes:
        go(process)
    logs = "".join(finish(process)[1] for process in processes)

    assert logs.count("functions applied") == 1


def test_migrations_call_no_functions():
    """A function that a migration called would be another one when the migration runs later."""
    names = [function.name for function in read_functions(schema.MIGRATIONS_DIRECTORY)]
    calls = re.compile(rf"\b({'|'.join(names)})\s*\(")
    found = [
        f"{path.name}: {match[1]}"
        for path in schema.MIGRATIONS_DIRECTORY.glob("*.sql")
        for match in calls.finditer(re.sub(r"--[^\n]*", "", path.read_text()))
    ]

    assert names
    assert found == []


ROW_TYPES = """
    SELECT DISTINCT p.proname
    FROM pg_proc p
    CROSS JOIN LATERAL unnest(
        coalesce(p.proallargtypes, p.proargtypes::oid[]) || p.prorettype
    ) AS used (type)
    JOIN pg_type t ON t.oid = used.type
    JOIN pg_type e ON e.oid = coalesce(nullif(t.typelem, 0), t.oid)
    JOIN pg_class c ON c.oid = e.typrelid AND c.relkind <> 'c'
    WHERE p.pronamespace = 'public'::regnamespace
"""


async def test_no_function_takes_the_row_of_a_table(database_address):
    """Functions have row types of their own, so that a table may grow while they run."""
    assert ask(database_address, ROW_TYPES) == []


async def test_a_new_column_breaks_no_function(books):
    """Calls are admitted and settled, and credits given, on a new connection by the functions of
    before a table has grown."""
    for table in ("limits", "holds", "ledger_entries"):
        await books.connection.execute(f"ALTER TABLE {table} ADD COLUMN a_new_one text")
    limit_id = await books.limit("usd", "month", 100)
    await books.limit("tokens", "minute", 100)
    hold = books.hold(10)

    await books.ledger.admit(hold)
    await books.ledger.move(hold)
    await books.settle(hold, 5)

    assert await books.state(limit_id) == ("0.000000005", "0.00")
    verdict = "SELECT verdict FROM public.credit($1, $2, $3, 3, 'note')"
    assert (
        await books.connection.fetchval(verdict, books.organization_id, hold.id, uuid7())
        == "credited"
    )
    assert await books.state(limit_id) == ("0.000000002", "0.00")
