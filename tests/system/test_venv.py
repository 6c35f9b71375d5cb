"""scripts/venv.sh with requirements that need no network."""

import os
import shutil
import signal
import subprocess
import sys
import time

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
    """Run a script that sources venv.sh; return exit status and standard error."""
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
    """An incomplete .venv of an interrupted run is created again; a complete one stays."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True, timeout=60
    )
    status, output = source(clone)
    assert status == 0, output
    assert "Making .venv" in output
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
    ("script", "output"),
    [("echo 3.10.13; exit 1", "is 3.10.13"), (None, "is not there")],
    ids=["old", "missing"],
)
def test_an_old_python_is_refused(clone, script, output):
    """An interpreter that is too old or missing is one clear line, and no .venv is created."""
    python = clone / "python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    assert source(clone, python) == (
        1,
        f"Python 3.11 or newer is needed; {python} {output}. Set PYTHON to another interpreter.\n",
    )
    assert not (clone / ".venv").exists()


@pytest.fixture
def slow_python(clone):
    """An interpreter that takes a second to create a .venv and records it; the interpreter in that
    .venv accepts every command."""
    python = clone / "slow-python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$*" in *venv*) ;; *) echo 3.11.0; exit;; esac\n'
        f"echo made >>{clone}/makings; touch {clone}/begun; sleep 1\n"
        "rm -rf .venv; mkdir -p .venv/bin\n"
        "printf '#!/bin/sh\\n' >.venv/bin/python; chmod +x .venv/bin/python\n"
    )
    python.chmod(0o755)
    return python


def begin(clone, python):
    """Start a script that sources venv.sh and continues, in its own process group."""
    return subprocess.Popen(
        ["sh", "-euc", ". scripts/venv.sh; .venv/bin/python -m pip --version"],
        cwd=clone,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Return exit status and standard error."""
    _, output = process.communicate(timeout=100)
    return process.returncode, output


def wait_for(path):
    """Wait until the file is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def left_over(clone):
    """Return the lock's files."""
    return sorted(path.name for path in clone.glob(".venv.*"))


def test_concurrent_scripts_install_once(clone, slow_python):
    """Of scripts that start concurrently one creates .venv, the others report that they wait, and
    all continue with a complete one."""
    processes = [begin(clone, slow_python) for _ in range(4)]
    ended = [finish(process) for process in processes]

    assert [status for status, _ in ended] == [0] * 4, ended
    assert (clone / "makings").read_text() == "made\n"
    output = "".join(text for _, text in ended)
    assert output.count("Making .venv ...") == 1
    assert 1 <= output.count("Waiting for another install (") <= 3
    assert left_over(clone) == []


def test_changed_requirements_are_installed_once(clone, slow_python):
    """Concurrent scripts install changed requirements once into an existing .venv."""
    assert source(clone, slow_python)[0] == 0
    (clone / "requirements" / "development.txt").write_text("# something else\n")
    ended = [finish(process) for process in [begin(clone, slow_python) for _ in range(3)]]

    assert [status for status, _ in ended] == [0] * 3, ended
    assert "".join(text for _, text in ended).count("Installing requirements/") == 1
    assert (clone / "makings").read_text() == "made\n"


@pytest.mark.parametrize("is_whole_group", [True, False], ids=["all of it", "its shell alone"])
def test_the_lock_of_a_killed_process_is_taken_over(clone, slow_python, is_whole_group):
    """A lock is taken over at once if no process of its holder's group is left; otherwise the
    others wait for what it started."""
    killed = begin(clone, slow_python)
    wait_for(clone / "begun")
    if is_whole_group:
        os.killpg(killed.pid, signal.SIGKILL)
    else:
        killed.kill()
    killed.wait(timeout=60)
    assert ".venv.lock" in left_over(clone)
    followers = [begin(clone, slow_python) for _ in range(2)]
    ended = [finish(process) for process in followers]

    assert [status for status, _ in ended] == [0, 0], ended
    assert (clone / "makings").read_text() == "made\nmade\n"
    assert left_over(clone) == []
    killed.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_signalled_releases_the_lock(clone, slow_python, number):
    """A process that is ended by a signal releases the lock and exits with the signal's status."""
    ended = begin(clone, slow_python)
    wait_for(clone / "begun")
    os.kill(ended.pid, number)
    assert finish(ended)[0] == 128 + number
    assert left_over(clone) == []
    assert finish(begin(clone, slow_python))[0] == 0


def test_nobody_waits_forever(clone):
    """The wait for the lock ends at a timeout, because its holder may run on another machine."""
    script = clone / "scripts" / "venv.sh"
    script.write_text(script.read_text().replace("max_wait_s=600", "max_wait_s=1"))
    (clone / ".venv.lock").symlink_to("another-host:1")
    status, output = source(clone)

    assert status == 1
    assert "Waiting for another install (another-host:1) ..." in output
    assert "If no install is running, remove it." in output
