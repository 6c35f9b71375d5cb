"""Prometheus instruments of this process, on a registry of their own.

They are for watching, and count from the start of the process: the books are the ledger. No label
takes what a caller can choose. ``docs/metrics.md`` tells what each is for.

Where several processes serve on one port, PROMETHEUS_MULTIPROC_DIR is set for each of them, and the
Prometheus client keeps every value in a file there. Whichever process is asked adds them up.
"""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from service import __version__
from service.errors import Unavailable
from service.telemetry import logs, metric_files

I = TypeVar("I", Counter, Histogram)  # noqa: E741 - the kind of instrument

metric_files.use_allocated_files()
REGISTRY: Final = CollectorRegistry()
MILLISECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 1, 5)
SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MOST_NOTED: Final = 256
"""Which are taken over in less than a millisecond."""


_noted: Final[list[tuple[Counter | Histogram, float, tuple[str | int, ...]]]] = []


def note(instrument: Counter | Histogram, amount: float, *labels: str | int) -> None:
    """Count, or observe, the amount before the instruments are looked at next. What a call has for
    them is taken over together with what many others have: the instruments of several processes are
    in files, and going there and back for each cost a call some 4 % more. For the event loop's
    thread alone.
    """
    _noted.append((instrument, amount, labels))
    if len(_noted) >= MOST_NOTED:
        take_over()


def take_over() -> None:
    """Let the instruments have what was noted."""
    LOG_LINES_DROPPED.inc(logs.take_dropped())
    noted = _noted.copy()
    _noted.clear()
    for instrument, amount, labels in noted:
        one = _child(instrument, *labels) if labels else instrument
        if isinstance(one, Counter):
            one.inc(amount)
        else:
            one.observe(amount)


@functools.lru_cache(maxsize=4096)
def _child(instrument: I, *labels: str | int) -> I:
    """The instrument for these labels, looked up once: its own ``labels`` takes a lock and makes
    texts of them each time."""
    found: I = instrument.labels(*labels)
    return found


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(
    name: str, text: str, *labels: str, of_all: Literal["sum", "max", "mostrecent"]
) -> Gauge:
    """``of_all`` tells what the values of several processes make together."""
    return Gauge(name, text, labels, registry=REGISTRY, multiprocess_mode=of_all)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


# Not an Info, which looks the same and does not work with several processes.
BUILD: Final = _gauge("rialto_build_info", "The version that runs.", "version", of_all="max")
BUILD.labels(__version__).set(1)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

REQUEST_SECONDS: Final = _histogram(
    "rialto_request_duration_seconds",
    "Requests, from their headers to the end of their answer.",
    SECONDS,
    "method",
    "route",
    "status",
)
TURNED_AWAY: Final = _counter(
    "rialto_turned_away_total",
    "Requests and connections that were ended so that others have room.",
    "reason",
)
MALFORMED: Final = _counter(
    "rialto_malformed_requests_total", "What came in place of a request.", "code"
)
CALLS: Final = _counter(
    "rialto_calls_total", "Admitted calls that have ended.", "endpoint", "outcome"
)
OPEN_CALLS: Final = _gauge("rialto_open_calls", "Calls under way.", of_all="sum")
FIRST_BYTE_SECONDS: Final = _histogram(
    "rialto_first_byte_seconds", "From admission to Venice's first byte.", SECONDS, "endpoint"
)
ADMISSION_SECONDS: Final = _histogram(
    "rialto_admission_seconds", "How long calls waited for their admission.", MILLISECONDS
)
BATCH_SIZE: Final = _histogram(
    "rialto_batch_size", "Calls that went to the database together.", SIZES, "kind"
)
REFUSALS: Final = _counter(
    "rialto_refusals_total", "Calls that a limit refused.", "code", "unit", "scope"
)
SETTLED_USD: Final = _counter(
    "rialto_settled_usd_total", "What calls cost, in US dollars, as far as it is known."
)
ABOVE_BOUND: Final = _counter(
    "rialto_above_bound_total", "Calls that cost more than the most they could by the catalogue."
)
IMPLAUSIBLE: Final = _counter(
    "rialto_implausible_total",
    "Counts, and costs, that Venice stated and the model cannot have.",
    "what",
)
SETTLEMENT_RETRIES: Final = _counter(
    "rialto_settlement_retries_total", "Batches of settlements that had to wait for the database."
)
UNWRITTEN: Final = _counter(
    "rialto_settlements_unwritten_total", "Settlements that the books could not take."
)
CORRECTIONS: Final = _counter(
    "rialto_corrections_total", "Settlements that came after the sweeper's and corrected it."
)
SWEPT: Final = _counter(
    "rialto_swept_total", "Calls whose process had gone, settled at their bound."
)
ALERTS: Final = _counter(
    "rialto_limit_alerts_total", "Thresholds that limits of money have reached.", "percent"
)
UPSTREAM: Final = _counter(
    "rialto_upstream_answers_total", "What Venice answered: a status, or how it failed.", "status"
)
UPSTREAM_BALANCE_USD: Final = _gauge(
    "rialto_upstream_balance_usd",
    "What a Venice key may still spend, when last asked.",
    "key",
    of_all="mostrecent",
)
UPSTREAM_RESTING: Final = _gauge(
    "rialto_upstream_keys_resting", "Venice keys that are invalid or spent.", of_all="max"
)
LOG_LINES_DROPPED: Final = _counter(
    "rialto_log_lines_dropped_total", "Log lines that could not be written in time, or at all."
)
POOL: Final = _gauge("rialto_pool_connections", "Connections of the pool.", "state", of_all="sum")
STRAY_ENTRIES: Final = _gauge(
    "rialto_ledger_stray_entries",
    "Entries outside of any month: there should be none.",
    of_all="mostrecent",
)
CLOCK_AHEAD: Final = _gauge(
    "rialto_clock_ahead_seconds",
    "How far this machine's clock is ahead of the database's, when last compared.",
    of_all="mostrecent",
)
AUDIT_FAULTS: Final = _gauge(
    "rialto_audit_faults", "Faults that the last audit found.", of_all="mostrecent"
)
AUDIT_FINISHED: Final = _gauge(
    "rialto_audit_finished_timestamp_seconds",
    "When the last audit ended, in Unix time.",
    of_all="mostrecent",
)
AUDIT_SECONDS: Final = _gauge(
    "rialto_audit_duration_seconds", "How long the last audit took.", of_all="mostrecent"
)


def exposition(directory: Path | None = None) -> bytes:
    """The instruments in Prometheus's text format: those of this process, or of all that keep their
    values in ``directory``, added up.

    :raises Unavailable: when the files of this process are gone, and so may be those of others.
    """
    if directory is None:
        return generate_latest(REGISTRY)
    if not any(directory.glob(f"*_{os.getpid()}.db")):
        raise Unavailable(
            f"The files of the metrics in {directory} were deleted. Start the service again, and"
            " set TMPDIR to a directory that nothing cleans."
        )
    registry = CollectorRegistry()
    registry.register(metric_files.Values(directory))
    registry.register(_Processes(directory))
    PlatformCollector(registry=registry)
    return generate_latest(registry)


class _Processes(Collector):
    """What ProcessCollector says of one process, of all that serve and the one that started them:
    the earliest start, and the sums of everything else."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = self._directory.glob("counter_*.db")
        together: dict[str, Metric] = {}
        for pid in (str(os.getppid()), *(file.stem.rpartition("_")[2] for file in files)):
            for metric in _of_process(pid):
                known = together.setdefault(metric.name, metric)
                if known is not metric:
                    (one,), (other,) = known.samples, metric.samples
                    is_start = metric.name == "process_start_time_seconds"
                    value = min(one.value, other.value) if is_start else one.value + other.value
                    known.samples = [one._replace(value=value)]
        return together.values()


def _of_process(pid: str) -> Iterable[Metric]:
    """Nothing of one that has ended."""
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
