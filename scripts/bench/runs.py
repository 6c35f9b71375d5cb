"""A whole bench: every side and every workload, in turns."""

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from scripts.bench import fresh, loads, machine, workloads
from scripts.bench.programs import CACHE, BenchError, Double, cores
from scripts.bench.pythons import Python
from scripts.bench.rialto import Postgres, Rialto

START_S = 4
"""The estimated duration of a start."""
FRESH_START_S = 60
"""The same from a fresh clone."""
OVERHEAD_S = 0.6
"""The duration of a run beyond its load."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured; ``soak_s``, ``starts`` and ``fresh_starts``, those from a fresh clone,
    may be 0. A process idles for ``idle_s`` before its memory is measured."""

    rounds: int
    seconds: float
    warmup_s: float
    starts: int
    fresh_starts: int
    soak_s: float
    idle_s: float = 1

    def run_s(self, workload):
        """Return the duration of one run."""
        return self.warmup_s + max(self.seconds, workload.least_s) + OVERHEAD_S

    def planned_s(self, chosen, sides):
        """Return the total duration for the sides."""
        runs_s = sum(
            self.run_s(workload) * self.rounds
            for workload in chosen
            for side in sides
            if side.takes(workload)
        )
        starts_s = (self.starts + 1) * len(sides) * START_S + self.fresh_starts * FRESH_START_S
        return runs_s + starts_s + self.soak_s


class Place:
    """The surroundings of a bench: its directory, cores, Python, upstream and PostgreSQL."""

    def __init__(self, directory, stack, python):
        self.directory, self.python = directory, python
        self.load_core, self.gateway_core = cores()
        self._stack, self._postgres = stack, None
        # The core of this process and of all that it starts without naming one: the load and
        # PostgreSQL.
        stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {self.load_core})
        self.upstream = Double(directory, self.load_core)
        stack.callback(self.upstream.stop)

    def postgres(self):
        """The PostgreSQL of this bench, started on its first use."""
        if self._postgres is None:
            self._postgres = Postgres(self.directory)
            self._stack.callback(self._postgres.stop)
        return self._postgres

    @property
    def postgres_version(self):
        """The version of PostgreSQL, or None if no side uses it."""
        return self._postgres.version if self._postgres else None


class Bench:
    """Sides and workloads with their ``results``, which are JSON.

    ``kinds`` make a side from a Place. ``python`` is the interpreter of the sides in Python; by
    default it is the one that runs the bench.
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
            "fresh_start_s": [],
        }

    def run(self):
        """Measure everything; return the results.

        :raises BenchError: if nothing can be measured.
        """
        CACHE.mkdir(exist_ok=True)
        self.results["machine"] = machine.facts(self._python)
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        directory.chmod(0o755)  # The database may run under its own account.
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            place = Place(directory, stack, self._python)
            for kind in self._kinds:
                self._enter(kind(place), stack)
            if not self._sides:
                raise BenchError(f"no side starts: {self.results['skipped']}")
            self._ends = time.monotonic() + self._extent.planned_s(self._chosen, self._sides)
            self._weigh("idle")
            self._take_turns(directory)
            self._weigh("after load")
            self._soak(directory)
            self._start_again()
            self._start_fresh(directory)
            self.results["machine"] |= {
                "load_core": place.load_core,
                "gateway_core": place.gateway_core,
                "postgres": place.postgres_version,
            }
        return self.results

    def _log(self, text):
        left_s = max(0, round(self._ends - time.monotonic()))
        click.echo(f"[{left_s // 60:3d}:{left_s % 60:02d} left] {text}", err=True)

    def _enter(self, side, stack):
        """Install and start a side; leave it out with the reason if that fails."""
        self._log(f"{side.name}: installing and starting")
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
            self.results["sides"][side.name] = {
                "version": version,
                "title": side.title or side.name,
                "about": side.about,
                "keeps": side.keeps,
            }

    def _weigh(self, when):
        """Measure the memory of every side that has its own process."""
        time.sleep(self._extent.idle_s)
        for side in self._sides:
            if side.owns_process:
                known = self.results["memory_bytes"].setdefault(side.name, {})
                known[when] = side.memory_bytes

    def _take_turns(self, directory):
        for workload in self._chosen:
            for number in range(self._extent.rounds):
                for side in filter(lambda side: side.takes(workload), self._sides):
                    self._log(f"{workload.name} {side.name} {number + 1}/{self._extent.rounds}")
                    self._measure(workload, side, number, directory)

    def _measure(self, workload, side, number, directory):
        if any((one["workload"], one["side"]) == (workload.name, side.name) for one in self._void):
            return
        facts = {"workload": workload.name, "side": side.name, "round": number}
        extent = self._extent
        try:
            result = loads.run(
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
        """Send a long, even load to Rialto, and measure its memory afterwards."""
        soak = workloads.WORKLOADS["plain64"]
        sides = (one for one in self._sides if isinstance(one, Rialto) and one.takes(soak))
        rialto = next(sides, None)
        if not self._extent.soak_s or rialto is None:
            return
        self._log(f"soak {rialto.name}, {self._extent.soak_s} s")
        facts = {"workload": "soak", "side": rialto.name, "round": 0}
        try:
            loads.run(soak, rialto, directory, warmup_s=0, seconds=self._extent.soak_s)
        except BenchError as error:
            self._void.append({**facts, "reason": str(error)})
        time.sleep(self._extent.idle_s)
        self.results["memory_bytes"][rialto.name]["after soak"] = rialto.memory_bytes

    def _start_again(self):
        for number in range(self._extent.starts):
            for side in self._sides:
                if side.owns_process:
                    self._log(f"start {side.name} {number + 1}/{self._extent.starts}")
                    side.stop()
                    known = self.results["start_s"].setdefault(side.name, [])
                    try:
                        known.append(side.start())
                    except BenchError as error:
                        facts = {"workload": "start", "side": side.name, "round": number}
                        self._void.append({**facts, "reason": str(error)})

    def _start_fresh(self, directory):
        for number in range(self._extent.fresh_starts):
            self._log(f"start from a fresh clone {number + 1}/{self._extent.fresh_starts}")
            try:
                seconds = fresh.first_answer_s(self._python.path, directory)
            except BenchError as error:
                facts = {"workload": "fresh start", "side": "rialto", "round": number}
                self._void.append({**facts, "reason": str(error)})
            else:
                self.results["fresh_start_s"].append(seconds)
