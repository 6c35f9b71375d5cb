"""The documents say what the code does."""

import re
from pathlib import Path

from aiohttp import web

from service.api import add_routes
from service.ledger import CostSource, Outcome
from service.settings.page import markdown

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_settings_are_current():
    """docs/settings.md is what the declarations say."""
    assert (ROOT / "docs" / "settings.md").read_text() == markdown()


def test_every_route_is_in_the_readme():
    """Each route stands in the table of the README; what is there under /api/v1 too once."""
    app = web.Application()
    add_routes(app)
    paths = {route.resource.canonical for route in app.router.routes()}
    paths -= {f"/api{path}" for path in paths}

    assert [path for path in paths if f"{path}`" not in README and f"{path}?" not in README] == []


def test_every_outcome_and_source_is_in_the_readme():
    """How a call can end and where a cost can come from is told."""
    for value in [*Outcome, *CostSource]:
        assert f"`{value}`" in README, value


def test_every_script_is_told():
    """scripts/README.md has a line for each script."""
    text = (ROOT / "scripts" / "README.md").read_text()
    scripts = [path.name for path in (ROOT / "scripts").iterdir() if path.suffix in (".sh", ".py")]

    assert [name for name in scripts if f"`{name}`" not in text] == []


def test_links_lead_somewhere():
    """Each relative link of a document leads to a file that is there."""
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("scripts/*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]

    assert broken == []


def test_each_threat_is_held_by_a_test_that_is_there():
    """docs/security.md names a test or more for each threat, by its file and its name."""
    page = (ROOT / "docs" / "security.md").read_text()
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
