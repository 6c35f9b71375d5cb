"""scripts/venv.sh with requirements that need no network, and run.sh in a fresh clone."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from process import ROOT

pytestmark = pytest.mark.slow

PATH = os.pathsep.join(
    directory
    for directory in os.environ["PATH"].split(os.pathsep)
    if not Path(directory, "uv").exists()
)
"""Without uv."""
UV = Path(sys.executable).with_name("uv")
DEVELOPMENT = ". scripts/venv.sh"
RUN = f"requirements=requirements/run.txt; {DEVELOPMENT}"


@pytest.fixture
def clone(tmp_path):
    """A directory with the script and an empty list of requirements."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "scripts" / "venv.sh", tmp_path / "scripts")
    for name in ("run", "development", "uv"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("# nothing\n")
    return tmp_path


@pytest.fixture(params=["uv", "pip"])
def path(request, tmp_path):
    """A PATH with uv, and one without."""
    if request.param == "pip":
        return PATH
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").symlink_to(UV)
    return f"{tmp_path / 'bin'}{os.pathsep}{PATH}"


def source(clone, python=sys.executable, *, script=DEVELOPMENT, path=PATH):
    """Run a script that sources venv.sh; return exit status and standard error."""
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=clone,
        env={"PATH": path} | ({"PYTHON": str(python)} if python else {}),
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
        env={"PATH": PATH, "PYTHON": str(python)},
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


def package(directory, name):
    """Make a wheel with one module of that name; return a requirement that pins its digest."""
    wheel = directory / f"{name}-1-py3-none-any.whl"
    about = f"{name}-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr(f"{name}.py", "")
        files.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        files.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        files.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/RECORD,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name} @ {wheel.as_uri()} --hash=sha256:{digest}\n"


def has(clone, name):
    """Return whether the module is in .venv."""
    return bool(list(clone.glob(f".venv/lib/python*/site-packages/{name}.py")))


def test_a_smaller_set_is_enough_for_its_script(clone, path):
    """A script that needs a part of the requirements installs only that; a script of development
    adds the others, and then there is nothing to do for either."""
    run, development = (clone / "requirements" / f"{name}.txt" for name in ("run", "development"))
    run.write_text(package(clone, "part"))
    development.write_text(run.read_text() + package(clone, "pytest_rest"))

    status, output = source(clone, script=RUN, path=path)
    assert status == 0, output
    assert "Installing requirements/run.txt ..." in output
    assert (has(clone, "part"), has(clone, "pytest_rest")) == (True, False)
    (part,) = clone.glob(".venv/lib/python*/site-packages/part.py")
    installed_at = part.stat().st_ctime_ns
    assert source(clone, script=RUN, path=path) == (0, "")

    status, output = source(clone, path=path)
    assert status == 0, output
    assert "Making .venv" not in output
    assert has(clone, "pytest_rest")
    assert part.stat().st_ctime_ns == installed_at
    assert source(clone, script=RUN, path=path) == source(clone, path=path) == (0, "")


def test_an_environment_of_development_stays_one(clone, path):
    """When the requirements have changed, run.sh brings an environment of development up to date
    as a whole, because others of its packages may not go with the new ones."""
    development = clone / "requirements" / "development.txt"
    development.write_text(package(clone, "pytest_rest"))
    assert source(clone, path=path)[0] == 0
    development.write_text(development.read_text() + package(clone, "added"))
    status, output = source(clone, script=RUN, path=path)

    assert status == 0, output
    assert "Installing requirements/development.txt ..." in output
    assert has(clone, "added")
    assert source(clone, path=path) == (0, "")


def test_a_package_with_another_digest_is_refused(clone, path):
    """A package whose digest is not the locked one is not installed, and the script fails."""
    requirement = package(clone, "part")
    wrong = requirement[:-9] + ("0" * 8 if requirement[-9:-1] != "0" * 8 else "1" * 8) + "\n"
    for name in ("run", "development"):
        (clone / "requirements" / f"{name}.txt").write_text(wrong)

    for script in (RUN, DEVELOPMENT):
        status, output = source(clone, script=script, path=path)
        assert status != 0
        assert "HASH" in output.upper()
        assert not has(clone, "part")
        assert not (clone / ".venv" / "installed.txt").exists()


def test_pip_installs_where_uv_cannot(clone):
    """If uv fails, as it does where only pip is set up for the registry, pip installs."""
    (clone / "bin").mkdir()
    uv = clone / "bin" / "uv"
    uv.write_text("#!/bin/sh\necho no registry >&2\nexit 2\n")
    uv.chmod(0o755)
    (clone / "requirements" / "development.txt").write_text(package(clone, "part"))
    status, output = source(clone, path=f"{uv.parent}{os.pathsep}{PATH}")

    assert status == 0, output
    assert "no registry" in output
    assert has(clone, "part")


def test_pip_shows_how_far_it_is(clone, slow_python):
    """While pip works, the number of the packages so far and of all is printed."""
    slow_python.write_text(
        slow_python.read_text().replace(
            "'#!/bin/sh\\n'",
            "'#!/bin/sh\\ncase \"$*\" in *install*) echo Collecting a==1; sleep 4;; esac\\n'",
        )
    )
    (clone / "requirements" / "development.txt").write_text("a==1\nb==1\n")
    status, output = source(clone, slow_python)

    assert status == 0, output
    assert "Installing requirements/development.txt ...\n  1 of 2\n" in output


def fake_python(clone, name, script):
    """Put an interpreter into the clone's own directory of programs."""
    program = clone / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


NO_VENV = 'case "$*" in *ensurepip*) exit 1;; esac; echo 3.13.1'


def test_the_newest_python_makes_the_environment(clone, slow_python):
    """Without PYTHON the newest interpreter is used that runs and can make an environment."""
    fake_python(clone, "python3.14", "exit 127")
    fake_python(clone, "python3.13", NO_VENV)
    fake_python(clone, "python3.12", f'exec {slow_python} "$@"')
    fake_python(clone, "python3", "exit 1")
    status, output = source(clone, None, path=f"{clone / 'bin'}{os.pathsep}{PATH}")

    assert status == 0, output
    assert (clone / "makings").read_text() == "made\n"


def test_a_python_without_ensurepip_is_named(clone):
    """An interpreter that cannot make an environment is one clear line."""
    fake_python(clone, "python", NO_VENV)
    status, output = source(clone, clone / "bin" / "python")

    assert status == 1
    assert "is 3.13.1 without ensurepip, which Debian has in python3-venv." in output
    assert not (clone / ".venv").exists()


def test_the_command_line_is_there(clone):
    """Whatever is installed, .venv/bin/rialto leads to the command line of the checkout."""
    shutil.copy(ROOT / "scripts" / "rialto", clone / "scripts")
    for _ in range(2):
        assert source(clone)[0] == 0
        assert (clone / ".venv" / "bin" / "rialto").resolve() == clone / "scripts" / "rialto"
        (clone / ".venv" / "bin" / "rialto").unlink()


def test_migrations_in_a_fresh_clone(clone):
    """migrate.sh installs what it runs in a fresh clone, and nothing where an environment is."""
    shutil.copy(ROOT / "scripts" / "migrate.sh", clone / "scripts")
    (clone / "requirements" / "run.txt").write_text(package(clone, "part"))
    (clone / "service").mkdir()
    (clone / "service" / "__main__.py").write_text("import sys; print(sys.argv[1:])\n")
    for outputs in (("Making .venv", "Installing requirements/run.txt"), ()):
        ran = subprocess.run(
            ["sh", "scripts/migrate.sh"],
            cwd=clone,
            env={"PATH": PATH, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert ran.stdout.splitlines()[-1] == "['migrate']"
        assert all(output in ran.stderr for output in outputs)
        assert bool(outputs) is ("Making" in ran.stderr)
    assert has(clone, "part")


@pytest.mark.timeout(300)
def test_a_fresh_clone_answers(tmp_path):
    """In a fresh clone run.sh installs what it runs, and the demo key that it prints works, and so
    does the command line."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    with subprocess.Popen(
        ["sh", "scripts/run.sh"],
        cwd=tmp_path,
        env=environment | {"PATH": PATH, "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as service:
        printed = []
        try:
            for line in service.stdout:
                printed.append(line)
                if line.startswith("Ctrl-C"):
                    break
            shown = "".join(printed)
            url = shown.partition("listens on ")[2].split()[0]
            key = shown.partition("demo key")[2].split()[0]
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                b'{"model": "llama-3.3-70b", "messages": [{"role": "user", "content": "Hello"}]}',
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert b"simulated" in response.read()
            listed = subprocess.run(
                [tmp_path / ".venv" / "bin" / "rialto", "ledger", "list"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert '"outcome":"ok"' in listed.stdout
        finally:
            service.terminate()
            rest, _ = service.communicate(timeout=60)
    assert service.returncode == 0, "".join(printed) + rest
    assert not list(tmp_path.glob(".venv/lib/python*/site-packages/pytest"))
