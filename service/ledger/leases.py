"""What becomes of a call whose process has gone: the sweeper settles it at its bound."""

from typing import Any, Final

import msgspec
import structlog

from service import metrics
from service.db import Database, uuid7
from service.ledger.calls import SETTLE, CostSource, Outcome

log = structlog.get_logger()

MOST_A_SWEEP: Final = 200

FIND_EXPIRED: Final = """
    SELECT organization_id, id, model
    FROM public.holds
    WHERE lease_until < clock_timestamp()
    ORDER BY lease_until
    LIMIT $1
"""


async def sweep(database: Database) -> int:
    """Settle the holds whose lease has run out, as interrupted and at their full bound: what they
    really cost is not known, and never nothing. Returns how many.

    A settlement that comes later all the same is written as a correction.
    """
    swept = 0
    while expired := await database.fetch(FIND_EXPIRED, MOST_A_SWEEP):
        entries = msgspec.json.encode([_entry(hold) for hold in expired]).decode()
        settled = await database.fetch(SETTLE, entries, True)
        settled = [row for row in settled if row["kind"] != "alert"]
        swept += len(settled)
        if len(settled) < len(expired):
            # Another replica was faster, or a lease was renewed: the rest waits for the next time.
            break
    if swept:
        metrics.SWEPT.inc(swept)
        log.warning("interrupted calls settled at their bound", count=swept)
    return swept


def _entry(hold: Any) -> dict[str, Any]:
    return {
        **hold,
        "correction_id": uuid7(),
        "outcome": Outcome.INTERRUPTED,
        "cost_nanos": None,
        "cost_source": CostSource.UNKNOWN,
    }
