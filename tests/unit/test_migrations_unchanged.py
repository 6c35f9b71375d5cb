"""scripts/migrations_unchanged.sh, in small repositories of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "migrations_unchanged.sh"
FIRST = "migrations/0001_first.sql"
BASELINE = "0001_organizations"


def git(repository, *arguments):
    """Run git as nobody in particular, without this machine's configuration."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(repository),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "x@example.com"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    subprocess.run(
        ["git", *arguments], cwd=repository, env=environment, check=True, capture_output=True
    )


def commit(repository, **files):
    """Write files, in ``migrations/``, and commit them."""
    for name, text in files.items():
        (repository / "migrations" / f"{name}.sql").write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "--allow-empty", "-m", f"Brings {', '.join(files)}")


def check(repository):
    """Run the script; returns its status and output."""
    result = subprocess.run(
        ["sh", "scripts/migrations_unchanged.sh"],
        cwd=repository,
        env={"PATH": os.environ["PATH"], "HOME": str(repository)},
        check=False,
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def repository(tmp_path):
    """A repository with one merged migration."""
    repository = tmp_path / "repository"
    for name in ("migrations", "scripts"):
        (repository / name).mkdir(parents=True)
    shutil.copy(SCRIPT, repository / "scripts")
    git(repository, "init", "--initial-branch=main")
    commit(repository, **{"0001_first": "SELECT 1;\n"})
    return repository


def test_what_was_added_is_fine(repository):
    """Migrations that are as they came, and new ones that are not committed yet, pass."""
    commit(repository, **{"0002_second": "SELECT 2;\n"})
    (repository / "migrations/0003_third.sql").write_text("SELECT 3;\n")

    assert check(repository) == (0, "")


def test_a_repository_without_commits_is_fine(tmp_path):
    """Before the first commit nothing is merged."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    git(tmp_path, "init", "--initial-branch=main")

    assert check(tmp_path) == (0, "")


@pytest.mark.parametrize("is_committed", [False, True])
def test_an_edit_is_refused(repository, is_committed):
    """A merged migration that was edited is named, committed or not."""
    (repository / FIRST).write_text("SELECT 'something else';\n")
    if is_committed:
        commit(repository)
    status, output = check(repository)

    assert status == 1
    assert f"{FIRST} was changed; it came with" in output
    assert "(Brings 0001_first)" in output


@pytest.mark.parametrize("is_committed", [False, True])
def test_a_deletion_is_refused(repository, is_committed):
    """A merged migration that is gone is named, even when it came back as another."""
    (repository / FIRST).unlink()
    if is_committed:
        commit(repository)
        assert check(repository)[0] == 1
        commit(repository, **{"0001_first": "SELECT 'something else';\n"})
        assert f"{FIRST} was changed" in check(repository)[1]
    else:
        assert f"{FIRST} was deleted" in check(repository)[1]


def test_a_branch_may_change_its_own(repository):
    """On a branch, what main does not have may be edited, and what main has may not."""
    git(repository, "checkout", "-b", "branch")
    commit(repository, **{"0002_second": "SELECT 2;\n"})
    commit(repository, **{"0002_second": "SELECT 3;\n"})
    assert check(repository) == (0, "")

    git(repository, "checkout", "main")
    git(repository, "merge", "--no-ff", "-m", "Merges branch", "branch")
    assert check(repository) == (0, "")

    (repository / FIRST).write_text("SELECT 2;\n")
    (repository / "migrations/0002_second.sql").write_text("SELECT 4;\n")
    output = check(repository)[1]
    assert "0001_first.sql was changed" in output
    assert "0002_second.sql was changed; it came with" in output


def test_what_main_got_since_is_no_deletion(repository):
    """A branch lacks the migrations that main has got since it began."""
    git(repository, "checkout", "-b", "branch")
    commit(repository, **{"0002_second": "SELECT 2;\n"})
    git(repository, "checkout", "main")
    commit(repository, **{"0003_third": "SELECT 3;\n"})
    git(repository, "checkout", "branch")
    assert check(repository) == (0, "")

    (repository / FIRST).write_text("SELECT 2;\n")
    assert "0001_first.sql was changed" in check(repository)[1]


@pytest.mark.parametrize("is_merged", [False, True])
def test_the_baseline_replaces_what_was_before_it(repository, is_merged):
    """The branch that brings the baseline may delete all migrations and edit its own, and so may
    main take it; from then on merged migrations do not change, those of the baseline neither."""
    git(repository, "checkout", "-b", "branch")
    (repository / FIRST).unlink()
    commit(repository, **{BASELINE: "SELECT 1;\n", "0002_second": "SELECT 2;\n"})
    commit(repository, **{"0002_second": "SELECT 3;\n"})
    assert check(repository) == (0, "")

    git(repository, "checkout", "main")
    if is_merged:
        git(repository, "merge", "--no-ff", "-m", "Merges branch", "branch")
    else:
        git(repository, "merge", "--ff-only", "branch")
        # Not merged as one, so what main saw first of the second counts.
        commit(repository, **{"0002_second": "SELECT 2;\n"})
    assert check(repository) == (0, "")
    commit(repository, **{"0003_third": "SELECT 3;\n"})
    assert check(repository) == (0, "")

    for name in (BASELINE, "0002_second", "0003_third"):
        path = repository / "migrations" / f"{name}.sql"
        text = path.read_text()
        path.write_text("SELECT 4;\n")
        assert f"{name}.sql was changed" in check(repository)[1]
        path.unlink()
        assert f"{name}.sql was deleted" in check(repository)[1]
        path.write_text(text)
    assert check(repository) == (0, "")


def test_functions_may_change(repository):
    """The text of a function is applied again when it changes, and a migration drops one."""
    (repository / "migrations/functions").mkdir()
    commit(repository, **{"functions/one": "SELECT 1;\n"})
    commit(repository, **{"functions/one": "SELECT 2;\n"})
    (repository / "migrations/functions/one.sql").unlink()

    assert check(repository) == (0, "")


@pytest.fixture
def released(repository):
    """A repository with a release that calls one function and keeps another for the one before."""
    for name in ("migrations/functions", "service"):
        (repository / name).mkdir()
    (repository / "service/calls.py").write_text('"SELECT public.one(1)"')
    head = "CREATE OR REPLACE FUNCTION public.{}(a int)\nRETURNS int\nLANGUAGE sql AS"
    names = ("one", "two")
    functions = {f"functions/{name}": f"-- x\n{head.format(name)} 'SELECT 1';\n" for name in names}
    commit(repository, **functions)
    git(repository, "tag", "v0.1.0")
    return repository


def test_a_release_goes_on_beside_the_next(released):
    """Bodies, functions that the release does not call, and those of no release may change."""
    commit(released, **{"functions/three": "-- x\nCREATE OR REPLACE FUNCTION public.three()"})
    commit(released, **{"functions/three": "-- x\nCREATE OR REPLACE FUNCTION public.three(a int)"})
    one = released / "migrations/functions/one.sql"
    one.write_text(one.read_text().replace("-- x", "-- y").replace("SELECT 1", "SELECT 2"))
    (released / "migrations/functions/two.sql").unlink()

    assert check(released) == (0, "")


def test_what_a_release_calls_stays(released):
    """A function that the newest release calls keeps its signature until the release after."""
    one = released / "migrations/functions/one.sql"
    one.write_text(one.read_text().replace("a int", "a int, b int"))
    status, output = check(released)
    assert status == 1
    assert "functions/one.sql has another signature" in output
    assert "v0.1.0" in output
    one.unlink()
    assert "functions/one.sql was deleted" in check(released)[1]


def test_a_shallow_clone_is_an_error(repository, tmp_path):
    """A fresh clone checks as well; a shallow one cannot, and fails with what to do."""
    commit(repository, **{"0002_second": "SELECT 2;\n"})
    (repository / FIRST).write_text("SELECT 'edited';\n")
    commit(repository)
    git(tmp_path, "clone", repository.as_uri(), "full")
    git(tmp_path, "clone", "--depth=1", repository.as_uri(), "shallow")

    assert "0001_first.sql was changed" in check(tmp_path / "full")[1]
    status, output = check(tmp_path / "shallow")
    assert status == 1
    assert "git fetch --unshallow" in output


def test_a_copy_without_history_is_fine(repository):
    """An unpacked archive has nothing to compare with, which is reported."""
    shutil.rmtree(repository / ".git")
    status, output = check(repository)

    assert status == 0
    assert "no git clone" in output
