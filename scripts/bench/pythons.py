"""The interpreter that every side in Python runs on, and the environments that are made with it."""

import fcntl
import functools
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from scripts.bench.programs import CACHE, BenchError

INSTALL_S = 900
FACTS = """
import json, platform, sysconfig
arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps({
    "version": platform.python_version(),
    "has_pgo": "--enable-optimizations" in arguments,
    "has_lto": "--with-lto" in arguments,
}))
"""
VERSIONS = """
import json
from importlib import metadata
print(json.dumps({name: metadata.version(name) for name in ("aiohttp", "uvloop")}))
"""


class Python:
    """An interpreter, by its path."""

    def __init__(self, path):
        self.path = Path(path).resolve()

    def environment(self, requirements):
        """The interpreter of an environment with what the file of requirements names and nothing
        else: Rialto's own serving environment, as its image has it. Made once.

        :raises BenchError: when it cannot be made.
        """
        named = f"{self.path} {self.facts['version']} {requirements.read_text()}"
        home = CACHE / "environments" / hashlib.sha256(named.encode()).hexdigest()[:12]
        stamp, python = home / "installed", home / "bin" / "python"
        home.parent.mkdir(parents=True, exist_ok=True)
        # Of several benches at a time one makes it, and the others wait.
        with home.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                shutil.rmtree(home, ignore_errors=True)
                _said(self.path, "-m", "venv", home)
                pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
                _said(*pip, "--require-hashes", "--requirement", requirements)
                stamp.write_text(named)
        return python

    def versions(self, requirements):
        """Of aiohttp and uvloop in that environment."""
        return json.loads(_said(self.environment(requirements), "-c", VERSIONS))

    @functools.cached_property
    def facts(self):
        """Its version, and whether its build says that it used a profile (PGO) and optimised across
        files (LTO).

        :raises BenchError: when it does not run.
        """
        return json.loads(_said(self.path, "-c", FACTS))

    @property
    def build(self):
        """In a few words; one without PGO and LTO takes a fifth more time than one with them."""
        if (package := _debian_package(self.path)) is not None:
            # Debian's has both, and its configuration does not say so.
            return f"Debian's package {package}"
        pgo, lto = ("with" if self.facts[name] else "WITHOUT" for name in ("has_pgo", "has_lto"))
        return f"built {pgo} PGO and {lto} LTO"


def _said(*command):
    """:raises BenchError: when the command fails, with its last words."""
    try:
        ran = subprocess.run(
            list(map(str, command)),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(str(error)) from error
    if ran.returncode:
        said = " ".join(ran.stderr.split())[-300:]
        raise BenchError(f"{' '.join(map(str, command[:4]))} failed: {said}")
    return ran.stdout


def _debian_package(path):
    """The package that the file is of, with its version; None where it is of none."""
    try:
        owner = _said("dpkg-query", "--search", path).partition(":")[0]
        return _said("dpkg-query", "--show", owner).replace("\t", " ").strip()
    except BenchError:
        return None
