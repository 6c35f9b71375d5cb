"""Runs ``calls.py`` in several processes at the same time."""

import contextlib
import json
import os
import statistics
import subprocess
import threading
import time

from scripts.bench.programs import KEPT, SOURCES, BenchError

READY_S = 60
START_S = 0.1
DRAIN_S = 60


def admit_together(interpreter, calls, *, core, environment, log_path, warmup_s, seconds):
    """Run a process for each member of ``calls``, which lists the organization and the key of every
    call that the process has in flight at the same time. Return the report of each process.

    :raises BenchError: if a process fails or takes too long, with the end of its output.
    """
    command = ["taskset", "-c", str(core), interpreter, SOURCES / "calls.py"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(log_path.open("ab"))
        running = []
        for _ in calls:
            process = subprocess.Popen(
                command,
                env={**{name: os.environ.get(name, "") for name in KEPT}, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        deadline = threading.Timer(
            READY_S + warmup_s + seconds + DRAIN_S, lambda: [one.kill() for one in running]
        )
        deadline.start()
        stack.callback(deadline.cancel)
        for process, own in zip(running, calls, strict=True):
            _write(process, own)
        for process in running:
            _read(process, log_path)
        start_s = time.monotonic() + START_S
        for process in running:
            _write(process, {"start_s": start_s, "warmup_s": warmup_s, "seconds": seconds})
        return [_read(process, log_path) for process in running]


def _write(process, message):
    # If the process has ended, reading reports it.
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(message), file=process.stdin, flush=True)


def _read(process, log_path):
    line = process.stdout.readline()
    if not line:
        output = " ".join(log_path.read_text(errors="replace").split())[-400:]
        raise BenchError(f"a process that admits calls ended: {output}")
    return json.loads(line)


def summary_of(reports, seconds):
    """Return the reports as ``load.c`` would for all of their calls together."""
    latencies = sorted(latency for report in reports for latency in report["latencies_ms"])
    if len(latencies) < 2:
        raise BenchError(f"no call ended within {seconds:g} s")

    def at(share):
        return latencies[int((len(latencies) - 1) * share)]

    completed = sum(report["completed"] for report in reports)
    return {
        "completed": completed,
        "requests": len(latencies),
        "requests_per_s": len(latencies) / seconds,
        "markers": completed,
        "never_sent": 0,
        "latency_ms": {
            "mean": statistics.fmean(latencies),
            "p50": at(0.5),
            "p99": at(0.99),
            "p99_9": at(0.999),
            "max": latencies[-1],
        },
    }
