"""The sides that are compared: Rialto, the upstream itself and a bare pass-through. Those of others
are in ``peers``."""

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
"""The requirements that serve Rialto, and nothing else; the pass-through has them too."""
PROBE = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 300}
LIMITS = (
    {"unit": "usd", "period": "month", "ceiling": "1000000"},
    {"unit": "usd", "period": "day", "ceiling": "1000000", "of_key": True},
    {"unit": "requests", "period": "minute", "ceiling": 10**9},
)
"""Limits on the organization and on the key, with room for everything."""


class Side:
    """A server of chat completions.

    ``port`` and ``pid`` are known once it has started. ``place`` is the run's directory, cores,
    Python and upstream port.
    """

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
        """Install everything that it needs once; return its version.

        :raises BenchError: if that is not possible here.
        """
        raise NotImplementedError

    def command(self):
        """Return the program's arguments and environment."""
        raise NotImplementedError

    def start(self):
        """Start it; return the seconds until a call was answered with the upstream's response.

        :raises BenchError: if it does not start.
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
        """Return how many calls were admitted so far, and in how many batches; None without a
        ledger."""

    def is_ready(self):
        """Return whether a call is answered with the upstream's response."""
        body = {**PROBE, "model": self.model}
        status, answer = ask(self.port, self.chat_path, headers=self.headers, body=body)
        return status == 200 and MARKER.encode() in answer

    def stop(self):
        """Stop it."""
        if self._program is not None:
            self._program.stop()


class Direct(Side):
    """The upstream itself, which shows what the load and the upstream can do alone."""

    name = "direct"
    about = "the upstream double itself, with the load on the same core"
    owns_process = False

    def install(self):
        """Do nothing: the upstream is installed already."""
        return "this repository's"

    def start(self):
        """Do nothing: the upstream runs already."""
        self.port, self.pid = self.place.upstream.port, self.place.upstream.pid
        return 0.0

    def stop(self):
        """Do nothing: the run owns the upstream."""


class Aiohttp(Side):
    """A bare pass-through, which shows the framework's limit."""

    name = "aiohttp"
    about = "a bare pass-through in 40 lines of aiohttp with uvloop: the framework's limit"

    def install(self):
        """Return the version; it runs in Rialto's environment."""
        versions = self.place.python.versions(SERVING)
        return f"aiohttp {versions['aiohttp']}, uvloop {versions['uvloop']}"

    def command(self):
        """See ``proxy.py``."""
        url = f"http://127.0.0.1:{self.place.upstream.port}"
        python = self.place.python.environment(SERVING)
        return [python, SOURCES / "proxy.py", self.port, url], {}


class Postgres:
    """The run's own PostgreSQL, on the load's core, with PostgreSQL's default durability."""

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
        """Create an empty database; return its URL."""
        with self._connect(autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        address = self._server.address
        return f"postgresql://{address.user}@/{name}?host={address.host}"

    def stop(self):
        """Stop the server."""
        self._server.stop()


class Rialto(Side):
    """This service with everything on: limits of money on organization and key, a limit on
    requests, the ledger in PostgreSQL, a log."""

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
        """Return the commit; each tree has an environment with its own requirements."""
        if not (self.tree / "service" / "__main__.py").exists():
            raise BenchError(f"{self.tree} is no checkout of Rialto")
        self._interpreter = self.place.python.environment(self.tree / SERVING.relative_to(ROOT))
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            check=False,
            cwd=self.tree,
            capture_output=True,
            text=True,
        )
        return f"commit {revision.stdout.strip() or 'unknown'}"

    def command(self):
        """Return the command as in production, except for production's rules about addresses."""
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
        """Start the service; the first start creates the database and the key with its limits."""
        if self._database_url is None:
            postgres = self.place.postgres()
            self.postgres_pid = postgres.pid
            self._database_url = postgres.new_database(self.name)
        return super().start()

    def is_ready(self):
        """Return whether it answers calls of the key."""
        if not self.headers:
            if ask(self.port, "/health")[0] != 200:
                return False
            self._make_key()
        return super().is_ready()

    def batches(self):
        """See :meth:`Side.batches`."""
        _, metrics = ask(self.port, "/metrics", headers=OPERATOR)
        lines = [line.split() for line in metrics.decode().splitlines()]
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
    """Rialto with two processes on one port."""

    name = "rialto-2"
    about = "Rialto as two processes on the one core: what a further process costs"

    def command(self):
        """See :class:`Rialto`."""
        arguments, environment = super().command()
        return arguments, {**environment, "WEB_CONCURRENCY": "2"}


class RialtoWithoutBooks(Rialto):
    """Rialto without the ledger."""

    name = "rialto-no-books"
    about = "Rialto with admission and settlement taken out, for comparison only: what books cost"
    program = (str(SOURCES / "without_books.py"),)


OWN = {side.name: side for side in (Direct, Rialto, Aiohttp, RialtoTwice, RialtoWithoutBooks)}
QUICK = ("direct", "rialto", "aiohttp")
