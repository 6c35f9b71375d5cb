"""The interpreter of all sides in Python, and the environments that are made with it."""

import fcntl
import functools
import hashlib
import json
import shutil
from pathlib import Path

from scripts.bench.programs import CACHE, BenchError, run_step

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
print(json.dumps({name: metadata.version(name) for name in ("aiohttp", "uvloop", "httptools")}))
"""


class Python:
    """An interpreter at a path."""

    def __init__(self, path):
        self.path = Path(path).resolve()

    def environment(self, requirements):
        """Return the interpreter of an environment with exactly the named requirements, as Rialto's
        image has it. It is made once.

        :raises BenchError: if it cannot be made.
        """
        named = f"{self.path} {self.facts['version']} {requirements.read_text()}"
        home = CACHE / "environments" / hashlib.sha256(named.encode()).hexdigest()[:12]
        stamp, python = home / "installed", home / "bin" / "python"
        home.parent.mkdir(parents=True, exist_ok=True)
        # Of several concurrent benches one makes it, and the others wait.
        with home.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                shutil.rmtree(home, ignore_errors=True)
                run_step(self.path, "-m", "venv", home)
                pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
                run_step(*pip, "--require-hashes", "--requirement", requirements)
                stamp.write_text(named)
        return python

    def versions(self, requirements):
        """Return the versions of aiohttp, uvloop and httptools in that environment."""
        return _last_line_of(self.environment(requirements), VERSIONS)

    @functools.cached_property
    def facts(self):
        """Return the version, and whether the build reports the use of a profile (PGO) and of
        optimization across files (LTO).

        :raises BenchError: if the interpreter does not run.
        """
        return _last_line_of(self.path, FACTS)

    @property
    def minor(self):
        """The second number of the version."""
        return int(self.facts["version"].split(".")[1])

    @property
    def build(self):
        """Describe the build in a few words; one without PGO and LTO takes a fifth more time."""
        if (package := _debian_package(self.path)) is not None:
            # Debian's build has both without reporting it.
            return f"Debian's package {package}"
        pgo, lto = ("with" if self.facts[name] else "WITHOUT" for name in ("has_pgo", "has_lto"))
        return f"built {pgo} PGO and {lto} LTO"


def _last_line_of(python, program):
    """Return the JSON on the program's last line, which warnings may precede."""
    return json.loads(run_step(python, "-c", program).splitlines()[-1])


def _debian_package(path):
    """Return the package with the file and its version, or None if it is not from a package."""
    try:
        owner = run_step("dpkg-query", "--search", path).partition(":")[0]
        return run_step("dpkg-query", "--show", owner).replace("\t", " ").strip()
    except BenchError:
        return None
