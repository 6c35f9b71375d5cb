"""The documents state what the code does."""

import inspect
import re
from pathlib import Path

import pytest
from aiohttp import web
from ruamel.yaml import YAML
from test_architecture import LEVELS, SERVICE

from service import errors
from service.api import add_routes
from service.database.schema import OLDEST_SERVER
from service.ledger import CostSource, Outcome
from service.settings import REQUIRED, variables
from service.settings.page import dotenv, markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "scripts/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
MAX_WORDS = 80
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
ITEM = re.compile(r"\n(?= *(?:[-*]|\d+\.) )")


def name_of(page):
    """The path of a page in the repository."""
    return str(page.relative_to(ROOT))


def text_of(name):
    """A page below docs/."""
    return (ROOT / "docs" / name).read_text()


def test_settings_are_current():
    """docs/settings.md and .env.example are what the declarations state."""
    assert text_of("settings.md") == markdown()
    assert (ROOT / ".env.example").read_text() == dotenv()


def test_every_route_is_described():
    """Each route has a row of docs/api.md; a path that is there under /api/v1 too has one."""
    app = web.Application()
    add_routes(app)
    paths = {route.resource.canonical for route in app.router.routes()}
    paths -= {f"/api{path}" for path in paths}
    page = text_of("api.md")

    assert [path for path in paths if f"{path}`" not in page and f"{path}?" not in page] == []


def test_every_error_is_explained():
    """Each code has a row of docs/errors.md that states what it means and what to do."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text_of("errors.md").splitlines()
        if line.startswith("| ")
    ]
    explained = {
        code
        for code_cell, meaning, advice in rows
        if meaning and advice
        for code in re.findall(r"`(\w+)`", code_cell)
    }
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServiceError)
    ]
    codes = {code for kind in kinds for code in kind.codes()}
    for path in SERVICE.rglob("*.py"):
        if "sandbox" not in path.parts:
            codes |= set(re.findall(r"\bcode=\"(\w+)\"", path.read_text()))

    assert len(codes) > 30
    assert codes - explained == set()


def test_the_tree_of_errors_is_the_modules():
    """docs/errors.md draws the tree of errors as service/errors.py does."""
    drawn = text_of("errors.md").partition("## The tree")[2].split("```")[1].strip()
    described = errors.__doc__.partition("::")[2].partition("``str(error)``")[0]

    assert drawn == inspect.cleandoc(described).strip()


def test_the_advice_to_retry_is_explained():
    """docs/errors.md lists for each kind of advice the codes that have it."""
    section = text_of("errors.md").partition("## What to retry")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`true`|`false`|none)[^|]*\|([^|]*)\|", section, re.MULTILINE)
    explained = {advice: set(re.findall(r"`(\w+)`", codes)) for advice, codes in rows}
    names = {True: "`true`", False: "`false`", None: "none"}
    given = {name: set() for name in names.values()}
    for code, advice in errors.ADVICE.items():
        given[names[advice.should_retry]].add(code)

    assert explained == given


def test_every_outcome_and_source_is_explained():
    """docs/reports.md explains how a call can end and where a cost can come from."""
    page = text_of("reports.md")
    for value in [*Outcome, *CostSource]:
        assert f"`{value}`" in page, value


def test_every_audit_event_named_is_written():
    """An audit event that a document names is one that the code writes."""
    sources = "".join(path.read_text() for path in SERVICE.rglob("*.py"))
    named = {
        (name_of(page), action)
        for page in PAGES
        for action in re.findall(
            r"`((?:api_key|ledger|limit|model|model_alias|organization|upstream_key)\.\w+)`",
            page.read_text(),
        )
    }
    # A member of an error, not an event.
    actions = {one for one in named if one[1] != "limit.implausible_entry_id"}

    assert len(actions) > 5
    assert [one for one in actions if f'"{one[1]}"' not in sources] == []


def test_every_log_line_quoted_is_written():
    """A log line that a document quotes is one that the code writes."""
    sources = "".join(path.read_text() for path in SERVICE.rglob("*.py"))
    quoted = {
        (name_of(page), line)
        for page in PAGES
        for line in re.findall(r"\blines?\s+`([a-z][a-z ]+)`", page.read_text())
    }

    assert len(quoted) > 3
    assert [one for one in quoted if f'"{one[1]}"' not in sources] == []


def test_every_metric_is_explained():
    """docs/metrics.md has a row for each metric."""
    source = "".join(path.read_text() for path in (SERVICE / "telemetry").glob("*.py"))
    names = set(re.findall(r"\"(rialto_[a-z_]+)\"", source))
    page = text_of("metrics.md")

    assert len(names) > 20
    assert [name for name in names if f"| `{name}" not in page] == []


def test_every_script_is_described():
    """scripts/README.md has a line for each script."""
    text = (ROOT / "scripts" / "README.md").read_text()
    scripts = [path.name for path in (ROOT / "scripts").iterdir() if path.suffix in (".sh", ".py")]

    assert [name for name in scripts if f"`{name}`" not in text] == []


def slug(heading):
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


def anchors_of(page):
    """The anchors of a page."""
    return {
        slug(one) for one in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    }


def test_links_lead_somewhere():
    """Each relative link of a document leads to a file that is there, and to a heading of it."""
    broken = []
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#: ]*)#?([^) ]*)\)", page.read_text()):
            if target.startswith("http"):
                continue
            file = (page.parent / target).resolve() if target else page
            if not file.exists() or (anchor and anchor not in anchors_of(file)):
                broken.append(f"{name_of(page)}: {target}#{anchor}")

    assert broken == []


def test_paths_in_the_architecture_exist():
    """Each file and folder that docs/architecture.md names is there, in service/ or at the root."""
    page = FENCE.sub("", text_of("architecture.md"))
    named = set(re.findall(r"`([\w./]+(?:/|\.py|\.md|\.sh|\.sql))`", page))

    assert len(named) > 20
    assert [
        name for name in named if not (SERVICE / name).exists() and not (ROOT / name).exists()
    ] == []


def test_every_folder_has_a_place():
    """docs/architecture.md names each folder and module of service/."""
    page = text_of("architecture.md")
    names = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in SERVICE.iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }

    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_steps_of_admission_exist():
    """Each step that docs/books.md names is an SQL function with a file of its own."""
    steps = text_of("books.md").partition("## Admission")[2].partition("It also checks")[0]
    named = re.findall(r"`([a-z]+_[a-z0-9_]+)`", steps.replace("`clock_timestamp()`", ""))

    assert len(named) > 5
    assert [
        name for name in named if not (ROOT / "migrations" / "functions" / f"{name}.sql").exists()
    ] == []


def test_the_import_rule_is_the_tests():
    """docs/architecture.md draws the levels that the test of the import rule has."""
    drawn = text_of("architecture.md").partition("## The import rule")[2].split("```")[1]
    levels = [set(line.split(" | ")) for line in drawn.strip().splitlines()]
    there = {path.name.removesuffix(".py") for path in SERVICE.iterdir()}

    assert levels[::-1] == [level & there for level in LEVELS]


def test_the_compose_file_deploys():
    """The Compose file of docs/operations.md sets what production requires, gives a process time to
    drain, and keeps the database's files in a volume."""
    block = text_of("operations.md").split("```yaml\n")[1].split("```")[0]
    services = YAML(typ="safe").load(block)["services"]
    rialto, postgres = services["rialto"], services["postgres"]
    required = {variable.name for variable in variables() if variable.production == REQUIRED}

    assert set(rialto["environment"]) == required
    assert rialto["stop_grace_period"] == "40s"
    assert {service["restart"] for service in services.values()} == {"always"}
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql"]
    major = int(postgres["image"].partition(":")[2])
    assert major >= OLDEST_SERVER


def test_the_readme_is_short():
    """README.md has at most 150 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paragraphs_are_short(page):
    """No paragraph, item of a list or cell of a table has more than 80 words."""
    pieces = []
    for block in re.split(r"\n\s*\n", FENCE.sub("", page.read_text())):
        for piece in ITEM.split(block):
            is_table = piece.lstrip().startswith("|")
            pieces += piece.split("|") if is_table else [piece]

    assert [piece[:60] for piece in pieces if len(piece.split()) > MAX_WORDS] == []


def test_each_threat_is_held_by_a_test_that_is_there():
    """docs/security.md names a test or more for each threat, by its file and its name."""
    page = text_of("security.md")
    threats = page[page.index("## Threats") : page.index("## What an administrator")]
    rows = [line for line in threats.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| threat |")]
    named = {row: re.findall(r"`(tests/\S+\.py)::(test_\w+)`", row) for row in rows}

    assert len(rows) > 20
    assert [row for row, tests in named.items() if not tests] == []
    missing = [
        (path, name)
        for tests in named.values()
        for path, name in tests
        if not (ROOT / path).exists() or f"def {name}(" not in (ROOT / path).read_text()
    ]
    assert missing == []
