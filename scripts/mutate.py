"""Takes out each guard of tests/mutations.py, one at a time, and runs the test that must notice."""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from mutations import MUTATIONS, Mutation  # noqa: E402

COPIED = ("migrations", "scripts", "service", "tests", "setup.cfg", "pyproject.toml")
TIMEOUT_S = 300
FAILED = 1
"""pytest's exit status for tests that failed; others mean that none ran."""


@click.command()
@click.option("--only", help="Mutations whose name has this in it.")
@click.option("--jobs", type=click.IntRange(1), default=2, help="How many at a time.")
def main(only: str | None, jobs: int) -> None:
    """Take out each guard that money or tenants depend on, and run the test that must notice. Exit
    status 1 if a mutation survives, or its line is not found exactly once."""
    chosen = [one for one in MUTATIONS if only is None or only in one.name]
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        for mutation, problem in zip(chosen, executor.map(tried, chosen), strict=True):
            survivors += problem is not None
            click.echo(f"{problem or 'noticed'}: {mutation.name}")
    click.echo(f"{len(chosen)} mutations, {survivors} not noticed")
    sys.exit(survivors > 0)


def tried(mutation: Mutation) -> str | None:
    """What is wrong when the mutation is made in a copy of the tree, or None if its test fails."""
    with tempfile.TemporaryDirectory(prefix="rialto-mutant-") as directory:
        copy = Path(directory)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        file = copy / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            return f"STALE, found {text.count(mutation.old)} times"
        file.write_text(text.replace(mutation.old, mutation.new))
        return survived(mutation, copy)


def survived(mutation: Mutation, copy: Path) -> str | None:
    """Why the test does not show the mutation, or None if it does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # It hangs where it must not.
        return None
    if done.returncode == FAILED:
        return None
    return "SURVIVED" if done.returncode == 0 else f"NOT RUN, status {done.returncode}"


if __name__ == "__main__":
    main()
