"""Prometheus instruments of this process, on their own registry.

They count from the start of the process and are meant for monitoring; the ledger holds the exact
amounts. No label has a value that a caller can choose. ``docs/metrics.md`` describes each of them.

When several processes serve one port, PROMETHEUS_MULTIPROC_DIR is set for each, and the Prometheus
client keeps every value in a file there. The process that is scraped adds them up.
"""

import bisect
import collections
import functools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service import __version__
from service.errors import Unavailable
from service.telemetry import logs, metric_files

metric_files.use_allocated_files()
REGISTRY: Final = CollectorRegistry()
MILLISECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 1, 5)
SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_NOTED: Final = 256
"""Recording this many takes a tenth of a millisecond."""


class Histogram(prometheus_client.Histogram):
    """Prometheus's histogram, which can take many observations at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observe each amount."""
        bounds, buckets = self._upper_bounds, self._buckets
        counts = collections.Counter(bisect.bisect_left(bounds, amount) for amount in amounts)
        for bucket, count in counts.items():
            buckets[bucket].inc(count)
        self._sum.inc(sum(amounts))


I = TypeVar("I", Counter, Histogram)  # noqa: E741 - the kind of instrument
noted: Final[list[tuple[Counter | Histogram, float, tuple[str | int, ...]]]] = []
"""The queued increments and observations, each with its labels. The parts of a request append to it
directly. Each request ends with :func:`note`, which bounds it."""


def note(instrument: Counter | Histogram, amount: float, *labels: str | int) -> None:
    """Queue an increment or observation until the next scrape or :data:`MAX_NOTED` entries.

    An update of an instrument locks it and, with several processes, writes to a file. So each
    instrument is updated once for all that was noted. Only the event loop's thread may call this.
    """
    noted.append((instrument, amount, labels))
    if len(noted) >= MAX_NOTED:
        flush_noted()


def flush_noted() -> None:
    """Apply the queued increments and observations to the instruments."""
    LOG_LINES_DROPPED.inc(logs.take_dropped())
    amounts = collections.defaultdict[Any, list[float]](list)
    for instrument, amount, labels in noted:
        amounts[instrument, labels].append(amount)
    noted.clear()
    for (instrument, labels), those in amounts.items():
        one = _child(instrument, labels) if labels else instrument
        if type(one) is Histogram:
            one.observe_all(those)
        else:
            one.inc(sum(those))


@functools.lru_cache(maxsize=4096)
def _child(instrument: I, labels: tuple[str | int, ...]) -> I:
    """Return the instrument for these labels, cached because ``labels`` locks and formats them."""
    found: I = instrument.labels(*labels)
    return found


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(
    name: str, text: str, *labels: str, of_all: Literal["sum", "max", "mostrecent"]
) -> Gauge:
    """Create a gauge. ``of_all`` is how the values of several processes are combined."""
    return Gauge(name, text, labels, registry=REGISTRY, multiprocess_mode=of_all)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


# Not an Info, which looks the same but does not work with several processes.
BUILD: Final = _gauge("rialto_build_info", "The running version.", "version", of_all="max")
BUILD.labels(__version__).set(1)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

REQUEST_SECONDS: Final = _histogram(
    "rialto_request_duration_seconds",
    "Requests, from their headers to the end of the response.",
    SECONDS,
    "method",
    "route",
    "status",
)
TURNED_AWAY: Final = _counter(
    "rialto_turned_away_total",
    "Requests and connections ended to make room for others.",
    "reason",
)
MALFORMED: Final = _counter("rialto_malformed_requests_total", "Malformed requests.", "code")
CALLS: Final = _counter("rialto_calls_total", "Admitted calls that ended.", "endpoint", "outcome")
OPEN_CALLS: Final = _gauge("rialto_open_calls", "Calls in flight.", of_all="sum")
FIRST_BYTE_SECONDS: Final = _histogram(
    "rialto_first_byte_seconds", "From admission to Venice's first byte.", SECONDS, "endpoint"
)
ADMISSION_SECONDS: Final = _histogram(
    "rialto_admission_seconds", "Time that calls waited for admission.", MILLISECONDS
)
BATCH_SIZE: Final = _histogram(
    "rialto_batch_size", "Calls written to the database in one batch.", SIZES, "kind"
)
REFUSALS: Final = _counter(
    "rialto_refusals_total", "Calls refused by a limit.", "code", "unit", "scope"
)
SETTLED_USD: Final = _counter("rialto_settled_usd_total", "Known cost of calls in US dollars.")
ABOVE_BOUND: Final = _counter(
    "rialto_above_bound_total", "Calls that cost more than their bound by the catalogue."
)
IMPLAUSIBLE: Final = _counter(
    "rialto_implausible_total",
    "Token counts and costs that Venice reported above the model's maximum.",
    "what",
)
SETTLEMENT_RETRIES: Final = _counter(
    "rialto_settlement_retries_total", "Batches of settlements that waited for the database."
)
UNWRITTEN: Final = _counter(
    "rialto_settlements_unwritten_total", "Settlements that the ledger could not write."
)
CORRECTIONS: Final = _counter(
    "rialto_corrections_total", "Settlements that corrected an earlier one by the sweeper."
)
SWEPT: Final = _counter("rialto_swept_total", "Calls of dead processes, settled at their bound.")
ALERTS: Final = _counter(
    "rialto_limit_alerts_total", "Alert thresholds reached by money limits.", "percent"
)
UPSTREAM: Final = _counter(
    "rialto_upstream_answers_total", "Venice's responses, by status or kind of failure.", "status"
)
UPSTREAM_BALANCE_USD: Final = _gauge(
    "rialto_upstream_balance_usd",
    "Balance of a Venice key when last checked.",
    "key",
    of_all="mostrecent",
)
UPSTREAM_RESTING: Final = _gauge(
    "rialto_upstream_keys_resting", "Venice keys that are out of service.", of_all="max"
)
UNRECORDED: Final = _counter(
    "rialto_unrecorded_total", "Refusals and attempts that were not recorded.", "table", "reason"
)
LOG_LINES_DROPPED: Final = _counter(
    "rialto_log_lines_dropped_total", "Log lines that were dropped."
)
POOL: Final = _gauge(
    "rialto_pool_connections", "Connections in the database pool.", "state", of_all="sum"
)
STRAY_ENTRIES: Final = _gauge(
    "rialto_ledger_stray_entries",
    "Entries without a monthly partition. Should be 0.",
    of_all="mostrecent",
)
CLOCK_AHEAD: Final = _gauge(
    "rialto_clock_ahead_seconds",
    "Seconds that this machine's clock is ahead of the database's.",
    of_all="mostrecent",
)
USAGE_LAG: Final = _gauge(
    "rialto_usage_lag_seconds",
    "Seconds by which the roll-ups of usage are behind the ledger.",
    of_all="mostrecent",
)
AUDIT_FAULTS: Final = _gauge(
    "rialto_audit_faults", "Faults found by the last audit.", of_all="mostrecent"
)
AUDIT_FINISHED: Final = _gauge(
    "rialto_audit_finished_timestamp_seconds",
    "Unix time when the last audit ended.",
    of_all="mostrecent",
)
AUDIT_SECONDS: Final = _gauge(
    "rialto_audit_duration_seconds", "Duration of the last audit.", of_all="mostrecent"
)


def exposition(directory: Path | None = None) -> bytes:
    """Render the instruments in Prometheus's text format.

    With ``directory``, the values of all processes that keep them there are added up.

    :raises Unavailable: when this process's files are gone, as those of others may be.
    """
    return generate_latest(_registry(directory))


def samples(names: Collection[str], directory: Path | None = None) -> list[Sample]:
    """Return the samples of the metrics with these names, of this process or of all that keep their
    values in ``directory``.

    :raises Unavailable: as :func:`exposition`.
    """
    collected = _registry(directory).collect()
    return [sample for metric in collected if metric.name in names for sample in metric.samples]


def _registry(directory: Path | None) -> CollectorRegistry:
    """Return the registry of this process, or one of all processes.

    :raises Unavailable: when this process's files are gone, as those of others may be.
    """
    if directory is None:
        return REGISTRY
    if not any(directory.glob(f"*_{os.getpid()}.db")):
        raise Unavailable(
            f"The metrics files in {directory} were deleted. Restart the service, and set"
            " TMPDIR to a directory that is never cleaned up."
        )
    registry = CollectorRegistry()
    registry.register(metric_files.Values(directory))
    registry.register(_Processes(directory))
    PlatformCollector(registry=registry)
    return registry


class _Processes(Collector):
    """ProcessCollector's metrics over all serving processes and their parent.

    The start time is the earliest one; all other values are sums.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = self._directory.glob("counter_*.db")
        combined: dict[str, Metric] = {}
        for pid in (str(os.getppid()), *(file.stem.rpartition("_")[2] for file in files)):
            for metric in _of_process(pid):
                known = combined.setdefault(metric.name, metric)
                if known is not metric:
                    (one,), (other,) = known.samples, metric.samples
                    is_start = metric.name == "process_start_time_seconds"
                    value = min(one.value, other.value) if is_start else one.value + other.value
                    known.samples = [one._replace(value=value)]
        return combined.values()


def _of_process(pid: str) -> Iterable[Metric]:
    """Return the metrics of a process, or none if it has exited."""
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
