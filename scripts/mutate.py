"""Removes each guard in tests/mutations.py, one at a time, and runs the test that must fail."""

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
"""pytest's exit status for failed tests; other statuses mean that no test ran."""


@click.command()
@click.option("--only", help="Only mutations whose name contains this.")
@click.option("--jobs", type=click.IntRange(1), default=2, help="Tests that run concurrently.")
def main(only: str | None, jobs: int) -> None:
    """Remove each guard that protects money or tenants, and run the test that must fail.

    The exit status is 1 if a mutation survives, or if its line does not occur exactly once.
    """
    chosen = [one for one in MUTATIONS if only is None or only in one.name]
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        for mutation, problem in zip(chosen, executor.map(problem_with, chosen), strict=True):
            survivors += problem is not None
            click.echo(f"{problem or 'detected'}: {mutation.name}")
    click.echo(f"{len(chosen)} mutations, {survivors} not detected")
    sys.exit(survivors > 0)


def problem_with(mutation: Mutation) -> str | None:
    """Apply the mutation in a copy of the tree; return what is wrong, or None if its test fails."""
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
        return reason_to_survive(mutation, copy)


def reason_to_survive(mutation: Mutation, copy: Path) -> str | None:
    """Run the test; return why it does not detect the mutation, or None if it does."""
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
        # The mutation makes the test hang, so it is detected.
        return None
    if done.returncode == FAILED:
        return None
    return "SURVIVED" if done.returncode == 0 else f"NOT RUN, status {done.returncode}"


if __name__ == "__main__":
    main()
