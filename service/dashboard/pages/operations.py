"""Operations: the processes, their database, and the work beside the requests."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client.samples import Sample

from service import __version__
from service.api import refresh
from service.api.state import BOOKS, DATABASE, METRICS_DIRECTORY, OPEN_REQUESTS, SETTINGS, STATUS
from service.dashboard.page import Page
from service.database import schema
from service.telemetry import metrics

BATCHES: Final = "rialto_batch_size"
COUNTERS: Final = {
    "rialto_settlement_retries": "Batches of settlements that waited for the database",
    "rialto_settlements_unwritten": "Settlements that the ledger could not write",
    "rialto_corrections": "Settlements that corrected one of the sweeper's",
    "rialto_swept": "Calls of dead processes, settled at their bound",
    "rialto_above_bound": "Calls that cost more than their bound",
    "rialto_implausible": "Counts and costs of Venice's that cannot be",
    "rialto_turned_away": "Requests and connections ended to make room",
    "rialto_malformed_requests": "Malformed requests",
    "rialto_log_lines_dropped": "Log lines that were dropped",
}
GAUGES: Final = (
    "rialto_open_calls",
    "rialto_pool_connections",
    "rialto_audit_faults",
    "rialto_audit_finished_timestamp_seconds",
    "rialto_audit_duration_seconds",
    "rialto_ledger_stray_entries",
    "rialto_clock_ahead_seconds",
    "process_start_time_seconds",
    "process_resident_memory_bytes",
)
SHOULD_BE_ZERO: Final = frozenset(
    {"rialto_settlements_unwritten", "rialto_above_bound", "rialto_implausible"}
)


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """A counter, whose labels are added up. ``is_bad`` if it is one that should be zero."""

    text: str
    number: int
    is_bad: bool


class Batches(msgspec.Struct, frozen=True, kw_only=True):
    """The batches of one kind, since the processes started."""

    kind: str
    batches: int
    calls: int

    @property
    def mean_size(self) -> str:
        return f"{self.calls / self.batches:.1f}" if self.batches else "none yet"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics of all processes on the port state."""

    counters: Sequence[Counted]
    batches: Sequence[Batches]
    open_calls: int
    pool_used: int
    pool_idle: int
    started_at: datetime | None
    memory_bytes: float
    audit_at: datetime | None
    audit_s: float
    audit_faults: int
    stray_entries: int
    clock_ahead_s: float


async def show(page: Page) -> web.StreamResponse:
    """The state of the processes on this port, and of the database."""
    app, settings = page.app, page.app[SETTINGS]
    await refresh(app)
    names = {BATCHES, *COUNTERS, *GAUGES}
    samples = await page.part(asyncio.to_thread, metrics.samples, names, app.get(METRICS_DIRECTORY))
    return await page.render(
        "operations.html",
        version=__version__,
        settings=settings,
        open_requests=app[STATUS].open_requests,
        places_left=app[OPEN_REQUESTS].free,
        problem=app[BOOKS].condition.problem,
        pool_size=app[DATABASE].size,
        measured=None if samples is None else measure(samples),
        migrations=await page.part(schema.list_applied, page.database),
        newest=schema.migration_ids()[-1],
    )


def measure(samples: Collection[Sample]) -> Measured:
    """Read the page's numbers off the samples."""
    values: dict[str, float] = {}
    for sample in samples:
        values[sample.name] = values.get(sample.name, 0.0) + sample.value
    kinds = sorted({sample.labels["kind"] for sample in samples if "kind" in sample.labels})
    pool = {
        sample.labels["state"]: int(sample.value)
        for sample in samples
        if sample.name == "rialto_pool_connections"
    }
    return Measured(
        counters=[
            Counted(
                text=text,
                number=int(values.get(f"{name}_total", 0)),
                is_bad=name in SHOULD_BE_ZERO and values.get(f"{name}_total", 0) > 0,
            )
            for name, text in COUNTERS.items()
        ],
        batches=[
            Batches(
                kind=kind,
                batches=_of_kind(samples, f"{BATCHES}_count", kind),
                calls=_of_kind(samples, f"{BATCHES}_sum", kind),
            )
            for kind in kinds
        ],
        open_calls=int(values.get("rialto_open_calls", 0)),
        pool_used=pool.get("used", 0),
        pool_idle=pool.get("idle", 0),
        started_at=_time(values.get("process_start_time_seconds", 0)),
        memory_bytes=values.get("process_resident_memory_bytes", 0),
        audit_at=_time(values.get("rialto_audit_finished_timestamp_seconds", 0)),
        audit_s=values.get("rialto_audit_duration_seconds", 0),
        audit_faults=int(values.get("rialto_audit_faults", 0)),
        stray_entries=int(values.get("rialto_ledger_stray_entries", 0)),
        clock_ahead_s=values.get("rialto_clock_ahead_seconds", 0),
    )


def _of_kind(samples: Collection[Sample], name: str, kind: str) -> int:
    return int(
        sum(
            sample.value
            for sample in samples
            if sample.name == name and sample.labels.get("kind") == kind
        )
    )


def _time(unix_s: float) -> datetime | None:
    return datetime.fromtimestamp(unix_s, UTC) if unix_s else None
