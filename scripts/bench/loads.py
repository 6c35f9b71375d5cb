"""One run: the load of a workload on a side, with what it costs."""

import json
import subprocess
import time

from scripts.bench.programs import SETTLE_S, BenchError, compiled
from scripts.bench.workloads import MARKER

LOAD_TIMEOUT_S = 270
"""How long a run may take beyond its load; the load itself gives up after 240 s."""


def run(workload, side, directory, *, warmup_s, seconds):
    """Run the load; return what ``load.c`` reports, flat, with the CPU microseconds of gateway and
    PostgreSQL per response or chunk, the mean size of the batches, and the bytes of WAL and ledger
    per response. What the side does not count is None.

    :raises BenchError: if the run is void because of an error or of a response that is not the
        upstream's.
    """
    seconds = max(seconds, workload.least_s)
    before = side.counters()
    measured = side.send(workload, directory, warmup_s=warmup_s, seconds=seconds)
    time.sleep(SETTLE_S)
    after = side.counters()
    counted = {name: after[name] - before[name] for name in before}
    return {
        **_flat(measured),
        "gateway_cpu_us": _per(counted, "gateway_cpu_s", measured[workload.per], 1e6),
        "postgres_cpu_us": _per(counted, "postgres_cpu_s", measured[workload.per], 1e6),
        "batch_size": _per(counted, "batched_calls", counted.get("batches")),
        "wal_bytes": _per(counted, "wal_bytes", measured["completed"]),
        "ledger_bytes": _per(counted, "ledger_bytes", measured["completed"]),
    }


def send(targets, workload, directory, *, path, body, warmup_s, seconds):
    """Send the workload with ``load.c`` to the targets, pairs of port and headers; return what it
    reports.

    :raises BenchError: as :func:`run`.
    """
    body_path = directory / "body.json"
    body_path.write_text(json.dumps(body))
    command = [compiled("load")]
    for port, headers in targets:
        command += ["--port", str(port)]
        for name, value in headers.items():
            command += ["--header", f"{name}: {value}"]
    arguments = {
        "path": path,
        "body": body_path,
        "marker": MARKER,
        "markers": workload.chunks or 1,
        "connections": workload.connections,
        "warmup-s": warmup_s,
        "seconds": seconds,
        "rate": workload.rate,
        "burst": workload.burst,
    }
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    timeout_s = LOAD_TIMEOUT_S + warmup_s + seconds
    try:
        ran = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the load did not end within {timeout_s:g} s") from error
    if ran.returncode:
        problem = json.loads(ran.stdout)["error"] if ran.stdout else f"the load died: {ran.stderr}"
        raise BenchError(problem)
    return json.loads(ran.stdout)


def _per(counted, name, count, factor=1):
    return counted[name] / count * factor if name in counted and count else None


def _flat(measured):
    results = {}
    for name, value in measured.items():
        if isinstance(value, dict):
            kind = name.removesuffix("_ms")
            results |= {f"{kind}_{part}_ms": figure for part, figure in value.items()}
        else:
            results[name] = value
    return results
