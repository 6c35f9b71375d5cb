"""The SQL stays within what PostgreSQL's extensions for several nodes can run too. docs/scaling.md
has the rules and the reasons."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIGRATIONS = [
    path for path in sorted((ROOT / "migrations").glob("*.sql")) if ".rollback." not in path.name
]
FUNCTIONS = sorted((ROOT / "migrations" / "functions").glob("*.sql"))
SOURCES = sorted((ROOT / "service").rglob("*.py"))


def code_of(text):
    """Return SQL without comments and the texts within quotes."""
    return re.sub(r"--[^\n]*|'(?:[^']|'')*'", " ", text)


TABLES = "|".join(
    sorted(
        set(
            re.findall(
                r"CREATE TABLE public\.(\w+)", "".join(path.read_text() for path in MIGRATIONS)
            )
        )
    )
)


def reads_a_table_in_sql(text):
    """Return whether a function in the language SQL names a table."""
    code = code_of(text)
    return bool(
        re.search(r"\bLANGUAGE sql\b", code)
        and re.search(rf"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?public\.(?:{TABLES})\b", code)
    )


def sets_a_clock(text):
    """Return whether an UPDATE assigns the clock, which differs from row to row."""
    assigned = re.findall(
        r"\bUPDATE\s+(?:ONLY\s+)?\w+\.\w+.*?\bSET\b(.*?)(?:\bFROM\b|\bWHERE\b|;|$)", text, re.DOTALL
    )
    return any("clock_timestamp" in part for part in assigned)


def alters_twice(text):
    """Return whether an ALTER TABLE has several subcommands."""
    code = re.sub(r"\([^()]*\)", " ", code_of(text))
    actions = "ADD|ALTER|ATTACH|DETACH|DISABLE|DROP|ENABLE|OWNER|RENAME|SET|VALIDATE"
    return bool(re.search(rf"\bALTER TABLE\b[^;]*,\s*(?:{actions})\b", code))


def constants_of(path):
    """Yield the name and the text of each constant of a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            parts = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            yield ast.unparse(target), " ".join(part for part in parts if isinstance(part, str))


def test_functions_that_read_tables_are_plpgsql():
    """Their statements are planned when they run."""
    assert {path.stem for path in FUNCTIONS if reads_a_table_in_sql(path.read_text())} == set()


def test_no_update_sets_the_clock():
    """An UPDATE assigns now() or a value that was read before."""
    paths = {
        path.stem for path in FUNCTIONS + MIGRATIONS if sets_a_clock(code_of(path.read_text()))
    }
    constants = {
        (path.stem, name)
        for path in SOURCES
        for name, text in constants_of(path)
        if sets_a_clock(text)
    }

    assert paths == set()
    assert constants == set()


def test_a_statement_alters_once():
    """Each ALTER TABLE has one subcommand."""
    assert [path.name for path in FUNCTIONS + MIGRATIONS if alters_twice(path.read_text())] == []


def test_the_retention_lock_is_advisory():
    """Processes take turns at dropping months by an advisory lock, not by one of a table."""
    constants = dict(constants_of(ROOT / "service" / "ledger" / "retention.py"))

    assert "pg_try_advisory_xact_lock" in constants["TRY_LOCK"]


@pytest.mark.parametrize(
    ("check", "breaks", "keeps"),
    [
        (
            reads_a_table_in_sql,
            "LANGUAGE sql AS $$ SELECT 1 FROM public.limits l $$",
            "LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 FROM public.limits l; END $$",
        ),
        (
            sets_a_clock,
            "UPDATE public.limits SET a = 1, b = clock_timestamp() WHERE c",
            "UPDATE public.limits SET a = now() WHERE b < clock_timestamp()",
        ),
        (
            alters_twice,
            "ALTER TABLE public.limits ADD a numeric(3, 2), ADD b int;",
            "ALTER TABLE public.limits ADD CONSTRAINT c CHECK (a IN (1, 2)); SELECT 1, 2",
        ),
    ],
)
def test_the_checks_find_what_breaks_a_rule(check, breaks, keeps):
    """Each check finds its breach and nothing else."""
    assert check(breaks)
    assert not check(keeps)
