"""The bill of materials, and how the result of its audit is reported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVE = ROOT / "requirements" / "serve.txt"


def run(script, *arguments, text=None):
    """Return exit status and output of a script."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_bill_has_every_requirement():
    """The bill has every requirement with version and digests, in CycloneDX format, and is the same
    each time."""
    status, text = run("sbom.py", SERVE)
    bill = json.loads(text)
    assert (status, bill["bomFormat"], bill["specVersion"]) == (0, "CycloneDX", "1.6")
    pinned = dict(
        re.findall(r"^([\w.-]+)(?:\[.*\])?==([^\s;\\]+)", SERVE.read_text(), re.MULTILINE)
    )
    assert {one["name"]: one["version"] for one in bill["components"]} == {
        name.lower().replace("_", "-"): version for name, version in pinned.items()
    }
    for one in bill["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
        assert one["externalReferences"][0]["hashes"]
    assert run("sbom.py", SERVE)[1] == text


@pytest.mark.parametrize("line", ["aiohttp>=3", "aiohttp==3.14.5", "-r other.txt"])
def test_an_unpinned_requirement_is_refused(tmp_path, line):
    """A requirement without a pinned version or digest makes no bill."""
    lock = tmp_path / "lock.txt"
    lock.write_text(line + "\n")
    assert run("sbom.py", lock)[0] != 0


SAFE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        ([SAFE], 0, "0 of 1 requirements are vulnerable"),
        ([SAFE, BAD], 1, "b 2: PYSEC-1; fixed in 3"),
        ([UNKNOWN, BAD], 1, "1 of 2 skipped"),
        ([UNKNOWN], 0, "1 of 1 skipped"),
    ],
)
def test_an_audit(found, status, words):
    """Only a vulnerability fails the audit, and requirements that were not audited are reported."""
    ended, output = run("audited.py", "lock.txt", text=json.dumps({"dependencies": found}))
    assert (ended, words in output) == (status, True), output


@pytest.mark.parametrize("text", ["", "no network", "[]", "{}"])
def test_an_audit_that_cannot_run(text):
    """An audit that cannot run is skipped with a notice."""
    status, output = run("audited.py", "lock.txt", text=text)
    assert (status, "skipped" in output) == (0, True)
