"""The workloads that every side gets, and one run of them."""

import dataclasses
import json
import subprocess
import time

from scripts.bench.programs import SETTLE_S, BenchError, compiled, cpu_s

MARKER = "0.123046875"
"""A text in every response and chunk of ``upstream.c`` and in nothing else."""
CHUNKS = 200
PACE = 50
WORD = "venice "
LOAD_TIMEOUT_S = 270
"""How long a run may take beyond its load; the load itself gives up after 240 s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one kind. ``main`` is the figure in its chart, and ``per`` is the unit of CPU
    time: a response or a chunk."""

    name: str
    title: str
    connections: int
    content: str = "Why are the lagoons of Venice green?"
    is_stream: bool = False
    is_embedding: bool = False
    rate: int = 0
    least_s: float = 0
    main: str = "requests_per_s"
    per: str = "completed"

    def body(self, side):
        """Return the request's body for a side."""
        if self.is_embedding:
            return {"model": side.embedding_model, "input": self.content}
        messages = [{"role": "user", "content": self.content}]
        body = {"model": side.model, "messages": messages, "max_tokens": 300}
        return {**body, "stream": True} if self.is_stream else body


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
            is_stream=True,
            main="markers_per_s",
            per="markers",
        ),
        Workload(
            name="paced64",
            title=f"64 streams at once, {CHUNKS} chunks each, {PACE} chunks a second",
            connections=64,
            content=f"[chunks={CHUNKS}] [pace={PACE}]",
            is_stream=True,
            least_s=CHUNKS / PACE + 1,
            main="gateway_cpu_us",
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
    )
}


def run(workload, side, directory, *, warmup_s, seconds):
    """Run the load; return what ``load.c`` reports, flat, with the CPU microseconds of gateway and
    PostgreSQL per response or chunk.

    :raises BenchError: if the run is void because of an error or of a response that is not the
    upstream's.
    """
    body_path = directory / f"{side.name}.{workload.name}.json"
    body_path.write_text(json.dumps(workload.body(side)))
    path = side.embeddings_path if workload.is_embedding else side.chat_path
    seconds = max(seconds, workload.least_s)
    arguments = {
        "port": side.port,
        "path": path,
        "body": body_path,
        "marker": MARKER,
        "markers": CHUNKS if workload.is_stream else 1,
        "connections": workload.connections,
        "warmup-s": warmup_s,
        "seconds": seconds,
        "rate": workload.rate,
    }
    command = [compiled("load")]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    for name, value in side.headers.items():
        command += ["--header", f"{name}: {value}"]
    before, batches_before = _cpu_s(side), side.batches()
    ran = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=LOAD_TIMEOUT_S + warmup_s + seconds,
    )
    if ran.returncode:
        problem = json.loads(ran.stdout)["error"] if ran.stdout else f"the load died: {ran.stderr}"
        raise BenchError(problem)
    time.sleep(SETTLE_S)
    after, batches_after = _cpu_s(side), side.batches()
    results = _results(json.loads(ran.stdout), workload, before, after)
    return {**results, "batch_size": _mean(batches_before, batches_after)}


def _mean(before, after):
    """Return the mean size of the batches between two counts; None if there were none."""
    if before is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _cpu_s(side):
    return [cpu_s(pid) if pid else None for pid in (side.pid, side.postgres_pid)]


def _results(measured, workload, before, after):
    results = {}
    for name, value in measured.items():
        if isinstance(value, dict):
            kind = name.removesuffix("_ms")
            results |= {f"{kind}_{part}_ms": figure for part, figure in value.items()}
        else:
            results[name] = value
    for who, start, end in zip(("gateway", "postgres"), before, after, strict=True):
        used = None if start is None else (end - start) / measured[workload.per] * 1e6
        results[f"{who}_cpu_us"] = used
    return results
