"""The interpreter that every side in Python runs on, and the environments that are made with it."""

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
                run_step(self.path, "-m", "venv", home)
                pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
                run_step(*pip, "--require-hashes", "--requirement", requirements)
                stamp.write_text(named)
        return python

    def versions(self, requirements):
        """Of aiohttp and uvloop in that environment."""
        return _last_line_of(self.environment(requirements), VERSIONS)

    @functools.cached_property
    def facts(self):
        """Its version, and whether its build says that it used a profile (PGO) and optimised across
        files (LTO).

        :raises BenchError: when it does not run.
        """
        return _last_line_of(self.path, FACTS)

    @property
    def build(self):
        """In a few words; one without PGO and LTO takes a fifth more time than one with them."""
        if (package := _debian_package(self.path)) is not None:
            # Debian's has both, and its configuration does not say so.
            return f"Debian's package {package}"
        pgo, lto = ("with" if self.facts[name] else "WITHOUT" for name in ("has_pgo", "has_lto"))
        return f"built {pgo} PGO and {lto} LTO"


def _last_line_of(python, program):
    """The JSON that the program ends with; before it may come warnings."""
    return json.loads(run_step(python, "-c", program).splitlines()[-1])


def _debian_package(path):
    """The package that the file is of, with its version; None where it is of none."""
    try:
        owner = run_step("dpkg-query", "--search", path).partition(":")[0]
        return run_step("dpkg-query", "--show", owner).replace("\t", " ").strip()
    except BenchError:
        return None
