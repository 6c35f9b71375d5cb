"""Rialto's sides, and the PostgreSQL that they share."""

import functools
import json
import subprocess

import psycopg

from scripts.bench.admitting import admit_together, summary_of
from scripts.bench.programs import ROOT, SOURCES, BenchError, ask
from scripts.bench.sides import SERVING, ProgramSide
from scripts.bench.workloads import ORGANIZATIONS, WORKLOADS
from service.database.embedded import Embedded

OPERATOR_KEY = "operator-key-of-the-bench-0123456789"
OPERATOR = {"Authorization": f"Bearer {OPERATOR_KEY}"}
ENCRYPTION_KEY = "encryption-key-of-the-bench-0123456789"
LIMITS = (
    {"unit": "usd", "period": "month", "ceiling": "1000000"},
    {"unit": "usd", "period": "day", "ceiling": "1000000", "of_key": True},
    {"unit": "requests", "period": "minute", "ceiling": 10**9},
)
"""Limits on the organization and on the key, with room for everything."""
MAX_PROCESSES = max(workload.processes for workload in WORKLOADS.values())
WAL_BYTES = "SELECT pg_current_wal_insert_lsn() - '0/0'"
LEDGER_BYTES = """
    SELECT sum(pg_total_relation_size(inhrelid))
    FROM pg_inherits
    WHERE inhparent = 'public.ledger_entries'::regclass
"""


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


class Rialto(ProgramSide):
    """This service with everything on: limits of money on organization and key, a limit on
    requests, the ledger in PostgreSQL, a log."""

    name = "rialto"
    title = "Rialto"
    about = "with everything on: three limits, the ledger in PostgreSQL, the log in a file"
    keeps = "keys, three limits, holds, a durable ledger, a log"
    program = ("-m", "service")

    def __init__(self, place, tree=ROOT):
        super().__init__(place)
        self.tree = tree.resolve()
        if self.tree != ROOT:
            self.name = self.title = f"{self.name}-{self.tree.name}"
            self.about = f"of another checkout, {self.tree.name}: {self.about}"
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
            self._make_keys()
        return super().is_ready()

    def counters(self):
        """See :meth:`Side.counters`."""
        counted = {**super().counters(), "batched_calls": 0.0, "batches": 0.0}
        for text in self._metrics():
            for name, value in _batches_of(text).items():
                counted[name] += value
        with psycopg.connect(self._database_url) as connection:
            for name, query in (("wal_bytes", WAL_BYTES), ("ledger_bytes", LEDGER_BYTES)):
                counted[name] = float(connection.execute(query).fetchone()[0])
        return counted

    def _metrics(self):
        """Return the metrics of the processes, as text."""
        return [ask(self.port, "/metrics", headers=OPERATOR)[1].decode()]

    def _make_keys(self):
        self.headers = self._new_organization()["headers"]

    def _new_organization(self):
        """Create an organization with a key and limits; return their ids and the call's headers."""
        path = "/admin/v1/organizations"
        organization = self._operate(path, {"name": "bench"})
        path = f"{path}/{organization['id']}"
        key = self._operate(f"{path}/keys", {"name": "bench"})
        for limit in LIMITS:
            facts = {name: value for name, value in limit.items() if name != "of_key"}
            if "of_key" in limit:
                facts["api_key_id"] = key["id"]
            self._operate(f"{path}/limits", facts)
        return {
            "organization_id": organization["id"],
            "api_key_id": key["id"],
            "headers": {"Authorization": f"Bearer {key['key']}"},
        }

    def _operate(self, path, body):
        status, answer = ask(self.port, path, headers=OPERATOR, body=body)
        if status != 201:
            raise BenchError(f"{path} answered {status}: {answer.decode()}")
        return json.loads(answer)


class RialtoTwice(Rialto):
    """Rialto with two processes on one port."""

    name = "rialto-2"
    title = "Rialto, two processes on the core"
    about = "Rialto as two processes on the one core: what a further process costs"

    def command(self):
        """See :class:`Rialto`."""
        arguments, environment = super().command()
        return arguments, {**environment, "WEB_CONCURRENCY": "2"}


class RialtoWithoutBooks(Rialto):
    """Rialto without the ledger."""

    name = "rialto-no-books"
    title = "Rialto without its books"
    about = "Rialto with admission and settlement taken out, for comparison only: what books cost"
    keeps = "keys, a log"
    program = (str(SOURCES / "without_books.py"),)


class _OfOrganizations(Rialto):
    """A side for the workloads of several processes, whose calls are those of 16 organizations."""

    owns_process = False

    def __init__(self, place, tree=ROOT):
        super().__init__(place, tree)
        self._organizations = []

    def takes(self, workload):
        """Return whether the workload is one of several processes."""
        return workload.processes > 0

    def _make_keys(self):
        self._organizations = [self._new_organization() for _ in range(ORGANIZATIONS)]
        self.headers = self._organizations[0]["headers"]


class Replicas(_OfOrganizations):
    """Rialto as several services on one database, each on a port of its own. With
    ``WEB_CONCURRENCY`` the processes would share one port, and the kernel would choose whose calls
    each process gets."""

    name = "rialto-4"
    about = "Rialto as four services on one database and one core, each on a port of its own"

    def __init__(self, place, tree=ROOT):
        super().__init__(place, tree)
        self._replicas = []

    def start(self):
        """Start all services, one after the other; return the seconds of the first start."""
        seconds = []
        for _ in range(MAX_PROCESSES):
            seconds.append(super().start())
            self._replicas.append((self.port, self._program))
        return seconds[0]

    @property
    def pids(self):
        """The processes of all services."""
        return [program.pid for _, program in self._replicas]

    def _metrics(self):
        return [ask(port, "/metrics", headers=OPERATOR)[1].decode() for port, _ in self._replicas]

    def _targets(self, workload):
        for connection in range(workload.processes * ORGANIZATIONS):
            process, organization = workload.place_of(connection)
            yield self._replicas[process][0], self._organizations[organization]["headers"]

    def stop(self):
        """Stop all services."""
        for _, program in self._replicas:
            program.stop()
        self._replicas.clear()
        super().stop()


class LedgerAlone(_OfOrganizations):
    """Rialto's ledger without HTTP, in processes that do nothing but admit and settle. What bounds
    them is PostgreSQL, so they show what several processes cost each other there."""

    name = "ledger"
    about = "Rialto's ledger without HTTP, in processes of its own that admit and settle"

    def __init__(self, place, tree=ROOT):
        super().__init__(place, tree)
        self._counted = {"gateway_cpu_s": 0.0, "batched_calls": 0.0, "batches": 0.0}

    def start(self):
        """Prepare the database with a service, which is not needed afterwards."""
        seconds = super().start()
        self.stop()
        return seconds

    @property
    def pids(self):
        """None: the processes end with their workload."""
        return []

    def _metrics(self):
        return []

    def counters(self):
        """See :meth:`Side.counters`."""
        return {**super().counters(), **self._counted}

    def send(self, workload, directory, *, warmup_s, seconds):
        """Run the processes of the workload; return what they report, as one load."""
        _, environment = self.command()
        calls = [[] for _ in range(workload.processes)]
        for connection in range(workload.connections):
            process, number = workload.place_of(connection)
            organization = self._organizations[number]
            calls[process].append((organization["organization_id"], organization["api_key_id"]))
        reports = admit_together(
            self._interpreter,
            calls,
            core=self.place.gateway_core,
            environment=environment,
            log_path=directory / f"{self.name}.calls.log",
            warmup_s=warmup_s,
            seconds=seconds,
        )
        for report in reports:
            self._counted["gateway_cpu_s"] += report["cpu_s"]
            for name, value in _batches_of(report["metrics"]).items():
                self._counted[name] += value
        return summary_of(reports, seconds)


def _batches_of(metrics):
    """Return how many calls were admitted in batches, and in how many batches."""
    lines = [line.split() for line in metrics.splitlines()]
    values = {line[0]: float(line[1]) for line in lines if len(line) == 2}
    name = 'rialto_batch_size_{}{{kind="admission"}}'
    return {
        "batched_calls": values.get(name.format("sum"), 0),
        "batches": values.get(name.format("count"), 0),
    }
