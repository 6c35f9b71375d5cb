"""What becomes of a call whose process has gone: the sweeper settles it at its bound."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import structlog

from service.database.connections import Database
from service.errors import Unavailable
from service.ids import uuid7
from service.ledger.records import CostSource, Outcome
from service.telemetry import metrics

log = structlog.get_logger()

MOST_A_SWEEP: Final = 200

FIND_EXPIRED: Final = """
    SELECT organization_id, id, model
    FROM public.holds
    WHERE lease_until < clock_timestamp()
    ORDER BY lease_until
    LIMIT $1
"""
SETTLE_EXPIRED: Final = """
    SELECT id, kind
    FROM public.settle($1::text::jsonb, true)
"""


async def sweep(database: Database) -> int:
    """Settle the holds whose lease has run out, as interrupted and at their full bound: what they
    really cost is not known, and never nothing. Returns how many.

    A settlement that comes later all the same is written as a correction.
    """
    swept = 0
    while expired := await database.fetch(FIND_EXPIRED, MOST_A_SWEEP):
        settled = await _settled(database, expired)
        settled = [row for row in settled if row["kind"] != "alert"]
        swept += len(settled)
        if len(settled) < len(expired):
            # Another replica was faster, or a lease was renewed: the rest waits for the next time.
            break
    if swept:
        metrics.SWEPT.inc(swept)
        log.warning("interrupted calls settled at their bound", count=swept)
    return swept


async def _settled(database: Database, holds: Sequence[Any]) -> Sequence[Any]:
    entries = msgspec.json.encode([_entry(hold) for hold in holds]).decode()
    try:
        settled: list[Any] = await database.fetch(SETTLE_EXPIRED, entries)
    except Unavailable:
        raise
    except Exception:
        if len(holds) > 1:
            # One that cannot be settled keeps no other from it.
            return [row for hold in holds for row in await _settled(database, [hold])]
        log.exception("a hold cannot be settled", hold_id=str(holds[0]["id"]))
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
