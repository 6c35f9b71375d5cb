"""Drops months of the ledger that are past their retention."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from service import audit, money
from service.audit import Actor
from service.database.database import Database
from service.errors import Unavailable

log = structlog.get_logger()

DROP_TIMEOUT_S: Final = 600
DROP_ATTEMPTS: Final = 60
"""Attempts of a tenth of a second each, half a second apart."""
LOCK_KEY: Final = "rialto.ledger_retention"

# A month expires this many months after its end. Months follow the entries' ids, which many clocks
# have made, so entries settled from kept_from on are kept whatever their month.
FIND_EXPIRED: Final = """
    SELECT month, (date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1))
                      AT TIME ZONE 'UTC' AS kept_from
    FROM public.ledger_months()
    WHERE month AT TIME ZONE 'UTC' + make_interval(months => $1 + 1)
          <= date_trunc('month', now() AT TIME ZONE 'UTC')
      AND month <> ALL ($2::timestamptz[])
    ORDER BY month
"""
COUNT_MONTH: Final = """
    SELECT organization_id, count(*) AS entries, sum(requests)::bigint AS requests,
           sum(tokens)::bigint AS tokens, coalesce(sum(cost_nanos), 0)::bigint AS cost_nanos,
           coalesce(max(counted_at) >= $3, false) AS has_kept
    FROM public.ledger_entries
    WHERE id >= public.uuid7_floor($1)
      AND id < public.uuid7_floor($2)
    GROUP BY organization_id
    ORDER BY organization_id
"""
DIGEST_MONTH: Final = """
    SELECT id, kind, amends_id, api_key_id, request_id, endpoint, model, outcome, requests, tokens,
           input_tokens, cached_input_tokens, output_tokens, cost_nanos, cost_source, note
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND id >= public.uuid7_floor($2)
      AND id < public.uuid7_floor($3)
    ORDER BY id
"""
# The amounts that limits have used in the month. Windows end, so mostly lifetime limits remain.
SUM_CARRIED: Final = """
    WITH booked AS (
        SELECT e.organization_id, counted.limit_id, counted.window_at, sum(e.cost_nanos) AS usd,
               sum(e.requests) AS requests, sum(e.tokens) AS tokens
        FROM public.ledger_entries e
        CROSS JOIN LATERAL unnest(e.limit_ids, e.limit_windows) AS counted (limit_id, window_at)
        WHERE e.id >= public.uuid7_floor($1)
          AND e.id < public.uuid7_floor($2)
        GROUP BY e.organization_id, counted.limit_id, counted.window_at
    )
    SELECT s.organization_id, s.id, s.window_at, coalesce(
               CASE s.unit WHEN 'usd' THEN b.usd WHEN 'tokens' THEN b.tokens
                           ELSE b.requests END, 0)::bigint AS amount
    FROM booked b
    JOIN public.limits_as_of(
        ARRAY(SELECT id FROM public.limits WHERE unit <> 'concurrency'), clock_timestamp()
    ) s ON s.organization_id = b.organization_id
        AND s.id = b.limit_id
        AND s.window_at = b.window_at
    WHERE s.bucket_s IS NULL
"""
TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(hashtext($1))"
FREEZE_MONTH: Final = "SELECT public.freeze_ledger_month($1)"
UNCOUNT_MONTH: Final = "SELECT public.uncount_month($1)"
DROP_MONTH: Final = "SELECT public.drop_ledger_month($1, $2, $3, $4, $5, $6)"


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """A month of the ledger in UTC, such as ``2026-01``, with the totals of all organizations."""

    month: str
    organizations: int
    entries: int
    requests: int
    tokens: int
    cost_usd: str
    is_dropped: bool


async def expired(database: Database, months: int) -> Sequence[Month]:
    """List the months that ended at least ``months`` months ago, oldest first. Drops nothing.

    A month with an entry settled since then is left out, because reports that are kept include it.
    """
    found = []
    for row in await database.fetch(FIND_EXPIRED, months, []):
        start, end = _span(row["month"])
        totals = await database.fetch(COUNT_MONTH, start, end, row["kept_from"])
        if not any(total["has_kept"] for total in totals):
            found.append(_month(start, totals))
    return found


async def retain(
    database: Database,
    actor: Actor,
    months: int,
    on_month: Callable[[Month], None] = lambda _: None,
) -> Sequence[Month]:
    """Drop the months that ended at least ``months`` months ago, oldest first, and return them.
    ``on_month`` is called with each month that is dropped or kept.

    A month with an entry settled since then is kept for now. Each month is dropped in one
    transaction: amounts that its entries counted in open windows are added to what the limits
    carry, and each organization's audit event ``ledger.drop`` keeps the month's totals and
    ``sha256``, the SHA-256 of :data:`DIGEST_MONTH` in PostgreSQL's COPY CSV format. Calls continue
    meanwhile.

    :raises Unavailable: when readers held the ledger through all attempts.
    """
    dropped: list[Month] = []
    kept: list[datetime] = []
    while True:
        async with database.transaction() as conn:
            row = await _find_oldest(conn, months, kept)
            if row is None:
                return dropped
            month = await _drop(conn, actor, row)
        if month.is_dropped:
            log.info("ledger month dropped", **msgspec.structs.asdict(month))
            dropped.append(month)
        else:
            log.info("ledger month kept because entries were settled later", month=month.month)
            kept.append(row["month"])
        on_month(month)


async def _find_oldest(conn: Any, months: int, kept: Sequence[datetime]) -> Any:
    """Return the oldest expired month; None if there is none or another replica is dropping it."""
    if not await conn.fetchval(TRY_LOCK, LOCK_KEY):
        return None
    return await conn.fetchrow(FIND_EXPIRED, months, kept)


async def _drop(conn: Any, actor: Actor, row: Any) -> Month:
    start, end = _span(row["month"])
    await conn.execute(f"SET LOCAL statement_timeout = '{DROP_TIMEOUT_S}s'")
    await conn.execute(FREEZE_MONTH, start)
    totals = await conn.fetch(COUNT_MONTH, start, end, row["kept_from"], timeout=DROP_TIMEOUT_S)
    if any(total["has_kept"] for total in totals):
        return _month(start, totals)
    digests = [await _digest(conn, total["organization_id"], start, end) for total in totals]
    carried = await conn.fetch(SUM_CARRIED, start, end, timeout=DROP_TIMEOUT_S)
    # This waits for whoever rolls up, and reads the month: no organization is locked yet.
    await conn.execute(UNCOUNT_MONTH, start, timeout=DROP_TIMEOUT_S)
    # Take the locks last, organizations before the ledger.
    for total, digest in zip(totals, digests, strict=True):
        detail = {
            "entries": total["entries"],
            "requests": total["requests"],
            "tokens": total["tokens"],
            "cost_usd": money.format_usd(total["cost_nanos"]),
            "sha256": digest,
        }
        await audit.record(
            conn, total["organization_id"], actor, "ledger.drop", f"{start:%Y-%m}", detail
        )
    is_dropped = await conn.fetchval(
        DROP_MONTH,
        start,
        *([row[column] for row in carried] for column in range(4)),
        DROP_ATTEMPTS,
        timeout=DROP_TIMEOUT_S,
    )
    if not is_dropped:
        raise Unavailable("The ledger is being read. Retry later.")
    return _month(start, totals, is_dropped=True)


async def _digest(conn: Any, organization_id: Any, start: datetime, end: datetime) -> str:
    digest = hashlib.sha256()

    async def read(part: bytes) -> None:
        digest.update(part)

    await conn.copy_from_query(
        DIGEST_MONTH,
        organization_id,
        start,
        end,
        output=read,
        format="csv",
        timeout=DROP_TIMEOUT_S,
    )
    return digest.hexdigest()


def _span(month: datetime) -> tuple[datetime, datetime]:
    start = month.astimezone(UTC)
    return start, (start + timedelta(days=31)).replace(day=1)


def _month(start: datetime, totals: Sequence[Any], *, is_dropped: bool = False) -> Month:
    return Month(
        month=f"{start:%Y-%m}",
        organizations=len(totals),
        entries=sum(total["entries"] for total in totals),
        requests=sum(total["requests"] for total in totals),
        tokens=sum(total["tokens"] for total in totals),
        cost_usd=money.format_usd(sum(total["cost_nanos"] for total in totals)),
        is_dropped=is_dropped,
    )
