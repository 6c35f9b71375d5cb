"""Calls in flight, and the sweeper, which settles the calls of processes that died, at their
bound."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service.database.database import Database
from service.errors import Unavailable
from service.ids import uuid7
from service.ledger.records import CostSource, Outcome
from service.telemetry import metrics

log = structlog.get_logger()

MAX_PER_SWEEP: Final = 200

FIND_EXPIRED: Final = """
    SELECT organization_id, id, model
    FROM public.holds
    WHERE lease_until < clock_timestamp()
    ORDER BY lease_until
    LIMIT $1
"""
COUNT_IN_FLIGHT: Final = """
    SELECT count(*)
    FROM (SELECT FROM public.holds WHERE organization_id = $1 LIMIT 1000) h
"""
SETTLE_EXPIRED: Final = """
    SELECT id, kind
    FROM public.settle_and_admit($1::text::jsonb, true, NULL, NULL, NULL, NULL)
"""


async def count_in_flight(conn: Any, organization_id: UUID) -> int:
    """Count an organization's calls in flight, up to 1000."""
    count: int = await conn.fetchval(COUNT_IN_FLIGHT, organization_id)
    return count


async def sweep(database: Database) -> int:
    """Settle expired holds as interrupted, at their full bound. Returns how many.

    Their real cost is unknown and must not be recorded as zero. A settlement that arrives later is
    written as a correction.
    """
    swept = 0
    while expired := await database.fetch(FIND_EXPIRED, MAX_PER_SWEEP):
        settled = await _settle(database, expired)
        settled = [row for row in settled if row["kind"] != "alert"]
        swept += len(settled)
        if len(settled) < len(expired):
            # Another replica settled some first, or a lease was renewed. The next run handles the
            # others.
            break
    if swept:
        metrics.SWEPT.inc(swept)
        log.warning("interrupted calls settled at their bound", count=swept)
    return swept


async def _settle(database: Database, holds: Sequence[Any]) -> Sequence[Any]:
    entries = msgspec.json.encode([_entry(hold) for hold in holds]).decode()
    try:
        settled: list[Any] = await database.fetch(SETTLE_EXPIRED, entries)
    except Unavailable:
        raise
    except Exception:
        if len(holds) > 1:
            # Settle each alone, so that one bad hold does not block the others.
            return [row for hold in holds for row in await _settle(database, [hold])]
        log.exception("hold cannot be settled", hold_id=str(holds[0]["id"]))
        return []
    else:
        return settled


def _entry(hold: Any) -> dict[str, Any]:
    return {
        **hold,
        "correction_id": uuid7(),
        "outcome": Outcome.INTERRUPTED,
        "cost_nanos": None,
        "cost_source": CostSource.UNKNOWN,
    }
