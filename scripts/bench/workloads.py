"""The workloads that the sides get."""

import dataclasses

MARKER = "0.123046875"
"""A text in every response and chunk of ``upstream.c`` and in nothing else."""
CHUNKS = 200
BURST_CHUNKS = 20
PACE = 50
WORD = "venice "
ORGANIZATIONS = 16
"""How many organizations the calls of the workloads for several processes are spread over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one kind. ``main`` is the figure in its chart, and ``per`` is the unit of CPU
    time: a response or a chunk. A stream has ``chunks``. In an open loop of ``rate`` requests a
    second, ``burst`` requests are due at once.

    With ``processes`` the calls are those of 16 organizations and go to so many processes of one
    service. Each process gets calls of all organizations, or of its own if ``is_disjoint``.
    """

    name: str
    title: str
    connections: int
    content: str = "Why are the lagoons of Venice green?"
    chunks: int = 0
    is_embedding: bool = False
    rate: int = 0
    burst: int = 1
    processes: int = 0
    is_disjoint: bool = False
    least_s: float = 0
    main: str = "gateway_cpu_us"
    per: str = "completed"

    @property
    def is_stream(self):
        """Whether the answers are streams."""
        return self.chunks > 0

    def place_of(self, connection):
        """Return the process and the organization of a connection, each a number from 0."""
        process, number = connection % self.processes, connection // self.processes
        if not self.is_disjoint:
            return process, number % ORGANIZATIONS
        own = ORGANIZATIONS // self.processes
        return process, process * own + number % own

    def body(self, side):
        """Return the request's body for a side."""
        if self.is_embedding:
            return {"model": side.embedding_model, "input": self.content}
        messages = [{"role": "user", "content": self.content}]
        body = {"model": side.model, "messages": messages, "max_tokens": 300}
        return {**body, "stream": True} if self.is_stream else body


def _of_processes(name, processes, *, is_disjoint=False):
    who = f"{processes} process{'es' if processes > 1 else ''}"
    whose = f"{ORGANIZATIONS // processes} for each" if is_disjoint else "shared by all"
    return Workload(
        name=name,
        title=f"{who}, {ORGANIZATIONS} organizations" + (f", {whose}" if processes > 1 else ""),
        connections=64 * processes,
        main="requests_per_s",
        processes=processes,
        is_disjoint=is_disjoint,
    )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="plain1", title="Plain JSON, 1 connection", connections=1),
        Workload(name="plain8", title="Plain JSON, 8 connections", connections=8),
        Workload(name="plain64", title="Plain JSON, 64 connections", connections=64),
        Workload(name="plain256", title="Plain JSON, 256 connections", connections=256),
        Workload(
            name="stream64",
            title=f"64 streams at once, {CHUNKS} chunks each, sent at once",
            connections=64,
            content=f"[chunks={CHUNKS}]",
            chunks=CHUNKS,
            main="markers_per_s",
            per="markers",
        ),
        Workload(
            name="paced64",
            title=f"64 streams at once, {CHUNKS} chunks each, {PACE} chunks a second",
            connections=64,
            content=f"[chunks={CHUNKS}] [pace={PACE}]",
            chunks=CHUNKS,
            least_s=CHUNKS / PACE + 1,
            per="markers",
        ),
        Workload(
            name="burst64",
            title="64 streams that begin at the same time, once a second",
            connections=64,
            content=f"[chunks={BURST_CHUNKS}] [pace={PACE}]",
            chunks=BURST_CHUNKS,
            rate=64,
            burst=64,
            least_s=4,
            main="first_byte_p50_ms",
            per="markers",
        ),
        Workload(
            name="prompt1mb",
            title="A prompt of 1 MB, 8 connections",
            connections=8,
            content=WORD * (1_000_000 // len(WORD)),
        ),
        Workload(
            name="embeddings64",
            title="Embeddings, 64 connections",
            connections=64,
            is_embedding=True,
        ),
        Workload(
            name="open1000",
            title="Open loop, 1,000 requests a second",
            connections=256,
            rate=1000,
            main="latency_p99_ms",
        ),
        _of_processes("single", 1),
        _of_processes("shared2", 2),
        _of_processes("disjoint2", 2, is_disjoint=True),
        _of_processes("shared4", 4),
        _of_processes("disjoint4", 4, is_disjoint=True),
    )
}
