"""scripts/venv.sh, with requirements that need no network."""

import os
import shutil
import subprocess
import sys

import pytest
from process import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path):
    """A directory with the script and an empty list of requirements."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "scripts" / "venv.sh", tmp_path / "scripts")
    (tmp_path / "requirements" / "development.txt").write_text("# nothing\n")
    return tmp_path


def source(clone, python=sys.executable):
    """Exit status and complaints of a script that sources venv.sh."""
    done = subprocess.run(
        ["sh", "-euc", ". scripts/venv.sh"],
        cwd=clone,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stderr


def test_an_interrupted_install_heals_itself(clone):
    """A .venv whose making or whose installation was cut short is made anew; a whole one stays."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True, timeout=60
    )
    status, said = source(clone)
    assert status == 0, said
    assert "Making .venv" in said
    pip = [".venv/bin/python", "-m", "pip", "--version"]
    assert subprocess.run(pip, cwd=clone, check=True, capture_output=True, timeout=60).stdout
    assert source(clone) == (0, "")

    requirements = clone / "requirements" / "development.txt"
    requirements.write_text("./not-there\n")
    assert source(clone)[0] != 0
    requirements.write_text("# nothing again\n")
    (clone / ".venv" / "half").touch()
    assert source(clone)[0] == 0
    assert not (clone / ".venv" / "half").exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 3.10.13; exit 1", "is 3.10.13"), (None, "is not there")],
    ids=["old", "missing"],
)
def test_an_old_python_is_told(clone, script, said):
    """An interpreter that is too old, or none, is one clear line, and nothing is made."""
    python = clone / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    assert source(clone, python) == (
        1,
        f"Python 3.11 or newer is needed; {python} {said}. Set PYTHON to another interpreter.\n",
    )
    assert not (clone / ".venv").exists()
