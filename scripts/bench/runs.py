"""A whole bench: every side, every workload, in turns."""

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from scripts.bench import machine, workloads
from scripts.bench.programs import CACHE, BenchError, Double, cores, memory_bytes
from scripts.bench.pythons import Python
from scripts.bench.sides import Postgres, Rialto

START_S = 4
"""What a start is reckoned with in the time that is left."""
OVERHEAD_S = 0.6
"""What a run takes besides the load."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured; ``soak_s`` and ``starts`` may be 0. A process is idle for ``idle_s``
    before its memory is read."""

    rounds: int
    seconds: float
    warmup_s: float
    starts: int
    soak_s: float
    idle_s: float = 1

    def run_s(self, workload):
        """How long one run takes."""
        return self.warmup_s + max(self.seconds, workload.least_s) + OVERHEAD_S

    def planned_s(self, chosen, sides):
        """How long all takes, for so many sides."""
        runs_s = sum(self.run_s(workload) for workload in chosen) * self.rounds * sides
        return runs_s + (self.starts + 1) * sides * START_S + self.soak_s


class Place:
    """Where a bench takes place: its directory, its cores, its Python, its upstream and its
    PostgreSQL."""

    def __init__(self, directory, stack, python):
        self.directory, self.python = directory, python
        self.load_core, self.gateway_core = cores()
        self._stack, self._postgres = stack, None
        # This process, and what it starts without saying where: the load and PostgreSQL.
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {self.load_core})
        self.upstream = Double(directory, self.load_core)
        stack.callback(self.upstream.stop)

    def postgres(self):
        """The run's server, started when it is first asked for."""
        if self._postgres is None:
            self._postgres = Postgres(self.directory)
            self._stack.callback(self._postgres.stop)
        return self._postgres

    @property
    def postgres_version(self):
        """None when no side has asked for it."""
        return self._postgres.version if self._postgres else None


class Bench:
    """Sides and workloads, and what came of them: ``results``, which is JSON.

    ``kinds`` make a side of a Place. ``python`` is the interpreter of the sides in Python, without
    which it is the one that runs the bench.
    """

    def __init__(self, kinds, chosen, extent, python=None):
        self._kinds, self._chosen, self._extent = kinds, chosen, extent
        self._python = Python(python or sys.executable)
        self._sides = []
        self._ends = time.monotonic()
        self.results = {
            "machine": {},
            "extent": dataclasses.asdict(extent),
            "sides": {},
            "skipped": {},
            "void": [],
            "runs": [],
            "memory_bytes": {},
            "start_s": {},
        }

    def run(self):
        """Measure everything; returns the results.

        :raises BenchError: when nothing can be measured.
        """
        CACHE.mkdir(exist_ok=True)
        self.results["machine"] = machine.facts(self._python)
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        directory.chmod(0o755)  # the database may run as an account of its own
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            place = Place(directory, stack, self._python)
            for kind in self._kinds:
                self._enter(kind(place), stack)
            if not self._sides:
                raise BenchError(f"no side starts: {self.results['skipped']}")
            self._ends = time.monotonic() + self._extent.planned_s(self._chosen, len(self._sides))
            self._weigh("idle")
            self._take_turns(directory)
            self._weigh("after load")
            self._soak(directory)
            self._start_again()
            self.results["machine"] |= {
                "load_core": place.load_core,
                "gateway_core": place.gateway_core,
                "postgres": place.postgres_version,
            }
        return self.results

    def _say(self, text):
        left_s = max(0, round(self._ends - time.monotonic()))
        click.echo(f"[{left_s // 60:3d}:{left_s % 60:02d} left] {text}", err=True)

    def _enter(self, side, stack):
        """Install and start a side; one that does not is left out, and the reason said."""
        self._say(f"{side.name}: installing and starting")
        stack.callback(side.stop)
        try:
            version = side.install()
            side.start()
        except BenchError as error:
            self.results["skipped"][side.name] = str(error)
            click.echo(f"{side.name} is left out: {error}", err=True)
            side.stop()
        else:
            self._sides.append(side)
            self.results["sides"][side.name] = {"version": version, "about": side.about}

    def _weigh(self, when):
        """The memory of every side that has a process of its own."""
        time.sleep(self._extent.idle_s)
        for side in self._sides:
            if side.owns_process:
                known = self.results["memory_bytes"].setdefault(side.name, {})
                known[when] = memory_bytes(side.pid)

    def _take_turns(self, directory):
        for workload in self._chosen:
            for number in range(self._extent.rounds):
                for side in self._sides:
                    self._say(f"{workload.name} {side.name} {number + 1}/{self._extent.rounds}")
                    self._measure(workload, side, number, directory)

    def _measure(self, workload, side, number, directory):
        if any((one["workload"], one["side"]) == (workload.name, side.name) for one in self._void):
            return
        facts = {"workload": workload.name, "side": side.name, "round": number}
        extent = self._extent
        try:
            result = workloads.run(
                workload, side, directory, warmup_s=extent.warmup_s, seconds=extent.seconds
            )
        except BenchError as error:
            self._void.append({**facts, "reason": str(error)})
            click.echo(f"void: {workload.name} of {side.name}: {error}", err=True)
        else:
            self.results["runs"].append({**facts, **result})

    @property
    def _void(self):
        return self.results["void"]

    def _soak(self, directory):
        """A long, even load on Rialto; its memory is read after it."""
        rialto = next((side for side in self._sides if isinstance(side, Rialto)), None)
        if not self._extent.soak_s or rialto is None:
            return
        self._say(f"soak {rialto.name}, {self._extent.soak_s} s")
        soak = workloads.WORKLOADS["plain64"]
        facts = {"workload": "soak", "side": rialto.name, "round": 0}
        try:
            workloads.run(soak, rialto, directory, warmup_s=0, seconds=self._extent.soak_s)
        except BenchError as error:
            self._void.append({**facts, "reason": str(error)})
        time.sleep(self._extent.idle_s)
        self.results["memory_bytes"][rialto.name]["after soak"] = memory_bytes(rialto.pid)

    def _start_again(self):
        for number in range(self._extent.starts):
            for side in self._sides:
                if side.owns_process:
                    self._say(f"start {side.name} {number + 1}/{self._extent.starts}")
                    side.stop()
                    known = self.results["start_s"].setdefault(side.name, [])
                    try:
                        known.append(side.start())
                    except BenchError as error:
                        facts = {"workload": "start", "side": side.name, "round": number}
                        self._void.append({**facts, "reason": str(error)})
