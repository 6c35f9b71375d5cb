"""Results are tables on a terminal, and JSON everywhere else."""

import asyncio
import json
import re

import asyncpg
import pytest
from command_line import ESCAPES, RIALTO, environment_of, on_terminal, rialto

from service.commands import output
from service.commands.output import Column

COLOR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
async def acme(command):
    """The command's arguments for an organization with a key and two limits."""
    await rialto("organizations", "create", "acme", **command)
    one = ("--organization", "acme")
    await rialto("keys", "create", *one, "--name", "app", **command)
    amounts = ("--usd", "5/month", "--requests", "60/minute")
    await rialto("limits", "create", *one, *amounts, **command)
    return one


async def test_a_list_is_a_table_on_a_terminal(command, acme):
    """On a terminal a list has a heading and aligned columns, money has its unit, and the next
    command follows; with --json and in a pipe each row is a JSON object and nothing follows."""
    shown = await on_terminal("limits", "list", *acme, **command)
    assert shown.status == 0
    heading, _, money, rate = [line for line in shown.lines if line.strip()][:4]
    assert heading.split()[:3] == ["limit", "binds", "used"]
    assert money.split()[:3] == ["$5.00/month", "organization", "$0.00"]
    assert rate.split()[:3] == ["60", "requests/minute", "organization"]
    assert money.index("organization") == rate.index("organization") == heading.index("binds")
    assert "Next:  rialto limits update" in shown.text

    as_json = await on_terminal("limits", "list", *acme, "--json", **command)
    assert [json.loads(line) for line in as_json.lines] == await rialto(
        "limits", "list", *acme, **command
    )


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "arguments",
    [
        ("organizations", "list"),
        ("keys", "list"),
        ("keys", "show", "app"),
        ("limits", "list", "--organization", "acme"),
        ("audit",),
        ("audit-events",),
        ("usage",),
        ("calls",),
        ("refusals",),
        ("upstream-keys", "list"),
        ("ledger", "list"),
    ],
    ids=" ".join,
)
async def test_a_result_fits_the_terminal(command, acme, arguments, columns):
    """No line of a table is wider than the terminal."""
    shown = await on_terminal(*arguments, columns=columns, **command)

    assert shown.status == 0, shown.text
    results = shown.text.partition("Next:")[0].splitlines()
    assert max(map(len, results)) <= columns


@pytest.mark.parametrize(
    ("environment", "has_colors"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
async def test_colors(command, acme, environment, has_colors):
    """A terminal gets colours, unless NO_COLOR or TERM forbids them."""
    shown = await on_terminal("organizations", "list", **command, **environment)

    colored = [code for code in COLOR.findall(shown.raw) if re.search(r"3[0-9]", code)]
    assert bool(colored) is has_colors


async def test_a_new_key_is_shown_once(command, acme):
    """A terminal shows the key with the lines for an SDK; a list never shows it."""
    shown = await on_terminal("keys", "create", *acme, "--name", "other", **command)
    (key,) = set(re.findall(r"rk_[A-Za-z0-9_-]{43}", shown.text))
    assert "shown this once" in shown.text
    assert f"export OPENAI_API_KEY={key}" in shown.text

    listed = await on_terminal("keys", "list", **command)
    assert key not in listed.text
    assert key[:10] in listed.text


async def test_an_empty_list_states_what_to_do(command):
    """A list without rows is a sentence and the first command, and nothing in a pipe."""
    shown = await on_terminal("organizations", "list", **command)

    assert "There are no organizations." in shown.text
    assert "Next:  rialto organizations create" in shown.text
    assert await rialto("organizations", "list", **command) == []


async def test_lists_are_whole(command):
    """A list has all of its rows, however many there are."""
    connection = await asyncpg.connect(command["DATABASE_URL"])
    await connection.execute(
        "INSERT INTO organizations (id, name)"
        " SELECT gen_random_uuid(), 'tenant ' || n FROM generate_series(1, 1005) n"
    )
    await connection.close()

    assert len(await rialto("organizations", "list", **command)) == 1005


async def test_a_pipe_that_is_closed(command, acme):
    """A reader that has enough ends a command without an error."""
    program = " ".join(RIALTO)
    process = await asyncio.create_subprocess_shell(
        f"{program} audit-events --limit 1000 | head -n 1",
        cwd=command["directory"],
        env=environment_of({"DATABASE_URL": command["DATABASE_URL"]}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert json.loads(out)["action"]
    assert err == b""


class Row:
    """A row with one value."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("usd", "0.000000001", "$0.000000001"),
        ("usd", "1234567.5", "$1,234,567.50"),
        ("usd", "-0.05", "-$0.05"),
        ("count", 1234567, "1,234,567"),
        ("milliseconds", 812, "812 ms"),
        ("milliseconds", 4210, "4.2 s"),
        ("milliseconds", 200_000, "3 min"),
        ("share", 0.834, "83%"),
        ("text", ["a", "b"], "a, b"),
        ("text", {"team": "a"}, "team=a"),
        ("text", True, "yes"),
        ("text", None, "–"),
        ("text", "a\x1b[31mb\x07", "a�[31mb�"),
        ("text", "[bold]x", "[bold]x"),
    ],
)
def test_a_value_is_shown_exactly(kind, value, text):
    """Money keeps every digit and has its unit, numbers have separators, and no value reaches the
    terminal with control characters or as markup."""
    assert output.cell(Column("title", "value", kind), Row(value)).plain == text


def test_escapes_are_removed():
    """The tests see a terminal's text as a person does."""
    assert ESCAPES.sub("", "\x1b[1mbold\x1b[0m") == "bold"
