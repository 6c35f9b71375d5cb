"""What Rialto aims at, and what a run found."""

import dataclasses
import statistics
from collections.abc import Callable

NONE = "–"


class Rounds:
    """The figures of a run's results, round by round. A missing figure is left out, and so is a
    round that one of two compared sides does not have."""

    def __init__(self, results):
        self._results = results
        self._runs = {(run["workload"], run["side"], run["round"]): run for run in results["runs"]}
        self._void = {(one["workload"], one["side"]) for one in results["void"]}

    def each(self, workload, side, key):
        """Return the figure by round."""
        if (workload, side) in self._void:
            return {}
        return {
            number: run[key]
            for (of, its, number), run in self._runs.items()
            if (of, its) == (workload, side) and run.get(key) is not None
        }

    def ratio(self, workload, key, side, than):
        """Return the side's figure divided by the other's, for each round: the sides take turns, so
        the two runs are neighbours, and what slowed one down did so to the other."""
        return self._compared(workload, key, side, than, lambda a, b: a / b)

    def difference(self, workload, key, side, than):
        """Return the side's figure less the other's, for each round."""
        return self._compared(workload, key, side, than, lambda a, b: a - b)

    def _compared(self, workload, key, side, than, compute):
        mine, other = self.each(workload, side, key), self.each(workload, than, key)
        return [compute(mine[number], other[number]) for number in mine if other.get(number)]

    def between(self, first, second, key, side):
        """Return the side's figure in one workload divided by that in another, for each round."""
        mine, other = self.each(first, side, key), self.each(second, side, key)
        return [mine[number] / other[number] for number in mine if other.get(number)]

    def memory_mb(self, when):
        """Return Rialto's resident memory."""
        known = self._results["memory_bytes"].get("rialto", {})
        return [known[when] / 1e6] if when in known else []

    def start_s(self):
        """Return the durations of Rialto's starts on an existing database."""
        return self._results["start_s"].get("rialto", [])

    def fresh_start_s(self):
        """Return the durations from a fresh clone to the first answer."""
        return self._results.get("fresh_start_s", [])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aim:
    """One figure that is aimed at. ``before`` is what it was when the aim was set, as text.
    ``find`` returns the figure of each round."""

    title: str
    before: str
    aim: float
    find: Callable[[Rounds], list]
    stretch: float | None = None
    is_least: bool = False
    unit: str = ""

    def is_met(self, found, bound):
        """Return whether the found figure is within the bound."""
        return found >= bound if self.is_least else found <= bound


def _of(workload, key):
    """Return a function of rounds: Rialto's own figure."""
    return lambda rounds: list(rounds.each(workload, "rialto", key).values())


def _ratio(workload, key, than, side="rialto"):
    return lambda rounds: rounds.ratio(workload, key, side, than)


def _added(workload, key):
    return lambda rounds: rounds.difference(workload, key, "rialto", "aiohttp")


def _shared(processes, side):
    key = "requests_per_s"
    return lambda rounds: rounds.between(f"shared{processes}", f"disjoint{processes}", key, side)


AIMS = (
    Aim(
        title="CPU a request at 64 connections ÷ bare aiohttp",
        before="2.7",
        aim=1.25,
        stretch=1.0,
        find=_ratio("plain64", "gateway_cpu_us", "aiohttp"),
    ),
    Aim(
        title="requests/s ÷ TensorZero (books off)",
        before="0.30–0.57",
        aim=0.8,
        stretch=1.0,
        is_least=True,
        find=_ratio("plain64", "requests_per_s", "tensorzero"),
    ),
    Aim(
        title="requests/s ÷ LiteLLM (no database)",
        before="24",
        aim=40,
        is_least=True,
        find=_ratio("plain64", "requests_per_s", "litellm"),
    ),
    Aim(
        title="requests/s ÷ Portkey",
        before="3.0",
        aim=5,
        is_least=True,
        find=_ratio("plain64", "requests_per_s", "portkey"),
    ),
    Aim(
        title="p50 added at 1 connection",
        before="5.6 ms",
        aim=2,
        stretch=1,
        unit=" ms",
        find=_added("plain1", "latency_p50_ms"),
    ),
    Aim(
        title="p50 added at 1,000 requests/s, open loop",
        before="25 ms",
        aim=3,
        unit=" ms",
        find=_added("open1000", "latency_p50_ms"),
    ),
    Aim(
        title="p99 added at 1,000 requests/s, open loop",
        before="58 ms",
        aim=15,
        unit=" ms",
        find=_added("open1000", "latency_p99_ms"),
    ),
    Aim(
        title="chunks/s of streams sent at once ÷ bare aiohttp",
        before="0.66",
        aim=1.0,
        stretch=1.5,
        is_least=True,
        find=_ratio("stream64", "markers_per_s", "aiohttp"),
    ),
    Aim(
        title="CPU a paced chunk ÷ bare aiohttp",
        before="1.06",
        aim=0.7,
        find=_ratio("paced64", "gateway_cpu_us", "aiohttp"),
    ),
    Aim(
        title="first byte added, 64 streams that begin at once",
        before="15 ms",
        aim=6,
        unit=" ms",
        find=_added("burst64", "first_byte_p50_ms"),
    ),
    Aim(
        title="requests/s with a prompt of 1 MB ÷ bare aiohttp",
        before="0.38",
        aim=0.76,
        is_least=True,
        find=_ratio("prompt1mb", "requests_per_s", "aiohttp"),
    ),
    Aim(
        title="PostgreSQL's CPU a call, 1 connection",
        before="1,800 µs",
        aim=700,
        unit=" µs",
        find=_of("plain1", "postgres_cpu_us"),
    ),
    Aim(
        title="PostgreSQL's CPU a call, 64 connections",
        before="120 µs",
        aim=60,
        unit=" µs",
        find=_of("plain64", "postgres_cpu_us"),
    ),
    Aim(
        title="ledger of 2 processes: calls/s on shared ÷ own organizations",
        before=NONE,
        aim=0.8,
        is_least=True,
        find=_shared(2, "ledger"),
    ),
    Aim(
        title="ledger of 4 processes: calls/s on shared ÷ own organizations",
        before="0.20–0.49",
        aim=0.8,
        is_least=True,
        find=_shared(4, "ledger"),
    ),
    Aim(
        title="2 services: requests/s on shared ÷ own organizations",
        before=NONE,
        aim=0.8,
        is_least=True,
        find=_shared(2, "rialto-4"),
    ),
    Aim(
        title="4 services: requests/s on shared ÷ own organizations",
        before=NONE,
        aim=0.8,
        is_least=True,
        find=_shared(4, "rialto-4"),
    ),
    Aim(
        title="a second process: CPU a request ÷ one process",
        before="1.2",
        aim=1.1,
        find=_ratio("plain64", "gateway_cpu_us", "rialto", side="rialto-2"),
    ),
    Aim(
        title="memory after the soak",
        before="86 MB",
        aim=80,
        unit=" MB",
        find=lambda rounds: rounds.memory_mb("after soak"),
    ),
    Aim(
        title="memory, idle",
        before="76 MB",
        aim=65,
        unit=" MB",
        find=lambda rounds: rounds.memory_mb("idle"),
    ),
    Aim(
        title="start on an existing database",
        before="0.45 s",
        aim=0.4,
        unit=" s",
        find=Rounds.start_s,
    ),
    Aim(
        title="from a fresh clone to the first answer",
        before="48 s",
        aim=20,
        stretch=10,
        unit=" s",
        find=Rounds.fresh_start_s,
    ),
)
HEAD = ("aim", "before", "aimed at", "stretch", "found", "least – most", "rounds", "")


def rows(results):
    """Return a row of text for every aim: met, missed or not measured."""
    rounds = Rounds(results)
    return [_row(aim, aim.find(rounds)) for aim in AIMS]


def _row(aim, found):
    sign = "≥" if aim.is_least else "≤"
    stretch = NONE if aim.stretch is None else f"{aim.stretch:g}{aim.unit}"
    known = [aim.title, aim.before, f"{sign} {aim.aim:g}{aim.unit}", stretch]
    if not found:
        return [*known, NONE, NONE, "0", "not measured"]
    middle = statistics.median(found)
    spread = f"{_shown(min(found), '')} – {_shown(max(found), '')}"
    return [*known, _shown(middle, aim.unit), spread, str(len(found)), _verdict(aim, middle)]


def _verdict(aim, found):
    if aim.stretch is not None and aim.is_met(found, aim.stretch):
        return "stretch"
    return "met" if aim.is_met(found, aim.aim) else "missed"


def _shown(value, unit):
    """Format a figure with three digits, so that rounding hides no missed aim."""
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}{unit}"
