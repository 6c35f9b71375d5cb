"""The sides that are compared: the upstream itself and bare pass-throughs. Rialto's are in
``rialto``, those of others in ``peers``."""

import abc

from scripts.bench import loads
from scripts.bench.programs import ROOT, SOURCES, Program, ask, cpu_s, free_port, memory_bytes
from scripts.bench.workloads import MARKER

READY_S = 120
SERVING = ROOT / "requirements" / "serve.txt"
"""The requirements that serve Rialto, and nothing else; the pass-through has them too."""
PROBE = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 300}


class Side(abc.ABC):
    """A server of chat completions.

    ``port`` and ``pids`` are known once it has started. ``place`` is the run's directory, cores,
    Python and upstream port. ``title`` is its name for readers, if that is another, and ``keeps``
    what it keeps of a call.
    """

    name = ""
    title = ""
    about = ""
    keeps = "nothing"
    model = "llama-3.3-70b"
    embedding_model = "text-embedding-bge-m3"
    chat_path = "/v1/chat/completions"
    embeddings_path = "/v1/embeddings"
    owns_process = True
    postgres_pid = None

    def __init__(self, place):
        self.place = place
        self.headers = {}
        self.port = None

    @abc.abstractmethod
    def install(self):
        """Install everything that it needs once; return its version.

        :raises BenchError: if that is not possible here.
        """

    @abc.abstractmethod
    def start(self):
        """Start it; return the seconds until a call was answered with the upstream's response.

        :raises BenchError: if it does not start.
        """

    @property
    @abc.abstractmethod
    def pids(self):
        """The processes that serve."""

    @abc.abstractmethod
    def stop(self):
        """Stop it."""

    @property
    def memory_bytes(self):
        """The resident memory of all processes that serve."""
        return sum(map(memory_bytes, self.pids))

    def counters(self):
        """Return what has been counted since the start: CPU seconds of gateway and PostgreSQL,
        calls and batches of the ledger, bytes of WAL and ledger, as far as the side has them."""
        counted = {"gateway_cpu_s": sum(map(cpu_s, self.pids))}
        if self.postgres_pid:
            counted["postgres_cpu_s"] = cpu_s(self.postgres_pid)
        return counted

    def takes(self, workload):
        """Return whether the workload is for this side."""
        return not workload.processes

    def send(self, workload, directory, *, warmup_s, seconds):
        """Send the workload; return what the load reports.

        :raises BenchError: if an answer is an error or not the upstream's.
        """
        return loads.send(
            list(self._targets(workload)),
            workload,
            directory,
            path=self.embeddings_path if workload.is_embedding else self.chat_path,
            body=workload.body(self),
            warmup_s=warmup_s,
            seconds=seconds,
        )

    def _targets(self, _):
        """Return the port and the headers for each connection of the workload, in turns."""
        return [(self.port, self.headers)]

    def is_ready(self):
        """Return whether a call is answered with the upstream's response."""
        body = {**PROBE, "model": self.model}
        status, answer = ask(self.port, self.chat_path, headers=self.headers, body=body)
        return status == 200 and MARKER.encode() in answer


class ProgramSide(Side):
    """A side that is a program of its own, on the gateway's core."""

    def __init__(self, place):
        super().__init__(place)
        self._program = None

    @abc.abstractmethod
    def command(self):
        """Return the program's arguments and environment."""

    def start(self):
        """See :meth:`Side.start`."""
        self.port = free_port()
        arguments, environment = self.command()
        self._program = Program(
            arguments,
            core=self.place.gateway_core,
            log_path=self.place.directory / f"{self.name}.log",
            environment=environment,
            cwd=self.place.directory,
        )
        return self._program.wait_for(self.is_ready, READY_S)

    @property
    def pids(self):
        """The program's process; its children are counted with it."""
        return [self._program.pid]

    def stop(self):
        """Stop the program."""
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
        self.port = self.place.upstream.port
        return 0.0

    @property
    def pids(self):
        """The process of the upstream."""
        return [self.place.upstream.pid]

    def stop(self):
        """Do nothing: the run owns the upstream."""


class Aiohttp(ProgramSide):
    """A bare pass-through, which shows the framework's limit."""

    name = "aiohttp"
    title = "bare pass-through (aiohttp)"
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


class Lean(Aiohttp):
    """A pass-through without aiohttp's client, which shows what the framework's server allows."""

    name = "lean"
    title = "lean pass-through (aiohttp's server, httptools)"
    about = "aiohttp's server with an upstream client of 60 lines: the practical limit in Python"

    def install(self):
        """Return the versions; it runs in Rialto's environment."""
        return f"{super().install()}, httptools {self.place.python.versions(SERVING)['httptools']}"

    def command(self):
        """See ``lean.py``."""
        python = self.place.python.environment(SERVING)
        return [python, SOURCES / "lean.py", self.port, self.place.upstream.port], {}
