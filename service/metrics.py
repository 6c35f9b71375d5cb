"""Prometheus instruments of this process, on a registry of their own.

They are for watching, and count from the start of the process: the books are the ledger. No label
takes what a caller can choose. ``docs/metrics.md`` tells what each is for.
"""

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from service import __version__

REGISTRY: Final = CollectorRegistry()
MILLISECONDS: Final = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 1, 5)
SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


BUILD: Final = Info("rialto_build", "The version that runs.", registry=REGISTRY)
BUILD.info({"version": __version__})
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
CALLS: Final = _counter(
    "rialto_calls_total", "Admitted calls that have ended.", "endpoint", "outcome"
)
OPEN_CALLS: Final = _gauge("rialto_open_calls", "Calls under way.")
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
    "rialto_upstream_balance_usd", "What a Venice key may still spend, when last asked.", "key"
)
UPSTREAM_RESTING: Final = _gauge(
    "rialto_upstream_keys_resting", "Venice keys that are invalid or spent."
)
POOL: Final = _gauge("rialto_pool_connections", "Connections of the pool.", "state")
STRAY_ENTRIES: Final = _gauge(
    "rialto_ledger_stray_entries", "Entries outside of any month: there should be none."
)
AUDIT_FAULTS: Final = _gauge("rialto_audit_faults", "Faults that the last audit found.")
AUDIT_FINISHED: Final = _gauge(
    "rialto_audit_finished_timestamp_seconds", "When the last audit ended, in Unix time."
)
AUDIT_SECONDS: Final = _gauge("rialto_audit_duration_seconds", "How long the last audit took.")

# Bound once, for the hot path.
ADMISSION_BATCH: Final = BATCH_SIZE.labels("admission")
SETTLEMENT_BATCH: Final = BATCH_SIZE.labels("settlement")
