"""The sides that are compared: Rialto, the double itself, and a bare pass-through. What others have
built is in ``peers``."""

import functools
import json
import subprocess

import psycopg

from scripts.bench.programs import ROOT, SOURCES, BenchError, Program, ask, free_port
from scripts.bench.workloads import MARKER
from service.database.embedded import Embedded

OPERATOR_KEY = "operator-key-of-the-bench-0123456789"
OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}
ENCRYPTION_KEY = "encryption-key-of-the-bench-0123456789"
READY_S = 120
SERVING = ROOT / "requirements" / "serve.txt"
"""What Rialto serves with, and nothing else: the pass-through too runs in such an environment."""
PROBE = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 300}
LIMITS = (
    {"unit": "usd", "period": "month", "ceiling": "1000000"},
    {"unit": "usd", "period": "day", "ceiling": "1000000", "of_key": True},
    {"unit": "requests", "period": "minute", "ceiling": 10**9},
)
"""On the organization and on the key, with room for everything."""


class Side:
    """Something that answers chat completions; ``port`` and ``pid`` are known once it has started.
    ``place`` is where the run happens: a directory, the cores, the Python, the upstream's port."""

    name = ""
    about = ""
    model = "llama-3.3-70b"
    embedding_model = "text-embedding-bge-m3"
    chat_path = "/v1/chat/completions"
    embeddings_path = "/v1/embeddings"
    owns_process = True
    postgres_pid = None

    def __init__(self, place):
        self.place = place
        self.headers = {}
        self.port = self.pid = self._program = None

    def install(self):
        """Make everything that it needs, once; returns its version.

        :raises BenchError: when that is not possible here.
        """
        raise NotImplementedError

    def command(self):
        """The program's arguments and its environment."""
        raise NotImplementedError

    def start(self):
        """Start it; the seconds until it passed a call on and the upstream's answer back.

        :raises BenchError: when it does not.
        """
        self.port = free_port()
        arguments, environment = self.command()
        self._program = Program(
            arguments,
            core=self.place.gateway_core,
            log_path=self.place.directory / f"{self.name}.log",
            environment=environment,
            cwd=self.place.directory,
        )
        self.pid = self._program.pid
        return self._program.wait_for(self.is_ready, READY_S)

    def batches(self):
        """How many calls were admitted so far, and in how many batches; None without books."""

    def is_ready(self):
        """Whether a call is answered with what the upstream says."""
        body = {**PROBE, "model": self.model}
        status, answer = ask(self.port, self.chat_path, headers=self.headers, body=body)
        return status == 200 and MARKER.encode() in answer

    def stop(self):
        """End it."""
        if self._program is not None:
            self._program.stop()


class Direct(Side):
    """The upstream itself: what the load and the double can do without anything between them."""

    name = "direct"
    about = "the upstream double itself, with the load on the same core"
    owns_process = False

    def install(self):
        """Nothing: it is there."""
        return "this repository's"

    def start(self):
        """Nothing: it runs."""
        self.port, self.pid = self.place.upstream.port, self.place.upstream.pid
        return 0.0

    def stop(self):
        """It belongs to the run."""


class Aiohttp(Side):
    """The framework's limit."""

    name = "aiohttp"
    about = "a bare pass-through in 40 lines of aiohttp with uvloop: the framework's limit"

    def install(self):
        """It runs in Rialto's environment."""
        versions = self.place.python.versions(SERVING)
        return f"aiohttp {versions['aiohttp']}, uvloop {versions['uvloop']}"

    def command(self):
        """See ``proxy.py``."""
        url = f"http://127.0.0.1:{self.place.upstream.port}"
        python = self.place.python.environment(SERVING)
        return [python, SOURCES / "proxy.py", self.port, url], {}


class Postgres:
    """A server of the run's own, on the load's core, as durable as PostgreSQL is by default."""

    def __init__(self, directory):
        self._server = Embedded(directory / "postgres")
        self._server.start()
        address = self._server.address
        self._connect = functools.partial(
            psycopg.connect, host=address.host, port=address.port, user=address.user
        )
        self.pid = int((self._server.directory / "postmaster.pid").read_text().split()[0])
        with self._connect() as connection:
            version = connection.info.server_version
        self.version = f"PostgreSQL {version // 10000}.{version % 10000}"

    def new_database(self, name):
        """The URL of a new, empty database."""
        with self._connect(autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        address = self._server.address
        return f"postgresql://{address.user}@/{name}?host={address.host}"

    def stop(self):
        """End it."""
        self._server.stop()


class Rialto(Side):
    """This service with everything on: a key with a limit of money on its organization, one on
    itself and a rate, the ledger in PostgreSQL, a log."""

    name = "rialto"
    about = "with everything on: three limits, the ledger in PostgreSQL, the log in a file"
    program = ("-m", "service")

    def __init__(self, place, tree=ROOT):
        super().__init__(place)
        self.tree = tree.resolve()
        if self.tree != ROOT:
            self.name = f"rialto-{self.tree.name}"
            self.about = f"Rialto of another checkout, {self.tree.name}"
        self._database_url = self._interpreter = None

    def install(self):
        """Which commit it is; each tree has an environment of what it serves with."""
        if not (self.tree / "service" / "__main__.py").exists():
            raise BenchError(f"{self.tree} is no checkout of Rialto")
        self._interpreter = self.place.python.environment(self.tree / SERVING.relative_to(ROOT))
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            check=False,
            cwd=self.tree,
            capture_output=True,
            text=True,
        )
        return f"commit {said.stdout.strip() or 'unknown'}"

    def command(self):
        """As in production, but for what production demands of addresses."""
        environment = {
            "PYTHONPATH": str(self.tree),
            "ENVIRONMENT": "development",
            "DATABASE_URL": self._database_url,
            "DATA_DIRECTORY": str(self.place.directory / self.name),
            "PORT": str(self.port),
            "OPERATOR_KEY": OPERATOR_KEY,
            "ENCRYPTION_KEY": ENCRYPTION_KEY,
            "VENICE_API_KEY": "sandbox",
            "VENICE_BASE_URL": f"http://127.0.0.1:{self.place.upstream.port}/api/v1",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info",
        }
        return [self._interpreter, *self.program], environment

    def start(self):
        """The first start makes the database, and the key with its limits."""
        if self._database_url is None:
            postgres = self.place.postgres()
            self.postgres_pid = postgres.pid
            self._database_url = postgres.new_database(self.name)
        return super().start()

    def is_ready(self):
        """Whether it answers calls of the key."""
        if not self.headers:
            if ask(self.port, "/health")[0] != 200:
                return False
            self._make_key()
        return super().is_ready()

    def batches(self):
        """See :meth:`Side.batches`."""
        _, said = ask(self.port, "/metrics", headers=OPERATOR)
        lines = [line.split() for line in said.decode().splitlines()]
        values = {line[0]: float(line[1]) for line in lines if len(line) == 2}
        name = 'rialto_batch_size_{}{{kind="admission"}}'
        return [values.get(name.format(part), 0) for part in ("sum", "count")]

    def _make_key(self):
        path = "/admin/v1/organizations"
        organization = self._operate(path, {"name": "bench"})
        path = f"{path}/{organization['id']}"
        key = self._operate(f"{path}/keys", {"name": "bench"})
        for limit in LIMITS:
            facts = {name: value for name, value in limit.items() if name != "of_key"}
            if "of_key" in limit:
                facts["api_key_id"] = key["id"]
            self._operate(f"{path}/limits", facts)
        self.headers = {"Authorization": f"Bearer {key['key']}"}

    def _operate(self, path, body):
        status, answer = ask(self.port, path, headers=OPERATOR, body=body)
        if status != 201:
            raise BenchError(f"{path} answered {status}: {answer.decode()}")
        return json.loads(answer)


class RialtoTwice(Rialto):
    """Two processes on one port."""

    name = "rialto-2"
    about = "Rialto as two processes on the one core: what a further process costs"

    def command(self):
        """See :class:`Rialto`."""
        arguments, environment = super().command()
        return arguments, {**environment, "WEB_CONCURRENCY": "2"}


class RialtoWithoutBooks(Rialto):
    """The same service, without what it is there for."""

    name = "rialto-no-books"
    about = "Rialto with admission and settlement taken out, for comparison only: what books cost"
    program = (str(SOURCES / "without_books.py"),)


OWN = {side.name: side for side in (Direct, Rialto, Aiohttp, RialtoTwice, RialtoWithoutBooks)}
QUICK = ("direct", "rialto", "aiohttp")
