"""Alerts for money limits whose use has reached a threshold."""

from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from service import audit
from service.audit import RIALTO
from service.database.database import Database
from service.ledger.refusals import amount
from service.telemetry import metrics

log = structlog.get_logger()

# The first condition spares most limits the second one.
FIND_DUE: Final = """
    SELECT s.organization_id, s.id
    FROM public.limits_as_of(
        ARRAY(
            SELECT l.id
            FROM public.limits l
            LEFT JOIN public.limits t
                ON t.organization_id = l.organization_id AND t.id = l.template_id
            WHERE l.unit = 'usd'
              AND l.used > 0
              AND l.deleted_at IS NULL
              AND cardinality(coalesce(t.alert_percents, l.alert_percents)) > 0
        ),
        clock_timestamp()
    ) s
    WHERE s.used >= s.alert_at
"""
LOCK_LIMIT: Final = """
    SELECT
    FROM public.limits
    WHERE organization_id = $1
      AND id = $2
    FOR NO KEY UPDATE
"""
READ_LIMIT: Final = """
    SELECT s.organization_id, s.id, s.scope, s.model, s.unit, s.period, s.ceiling, s.used,
           s.window_at, s.alert_at, coalesce(s.template_id, s.id) AS limit_id,
           encode(s.end_user, 'hex') AS end_user, l.api_key_id,
           ARRAY(
               SELECT percent
               FROM unnest(s.alert_percents) percent
               WHERE percent > l.alerted_percent
                 AND percent * s.ceiling::numeric <= s.used::numeric * 100
               ORDER BY percent
           ) AS percents
    FROM public.limits_as_of(ARRAY[$2::uuid], clock_timestamp()) s
    JOIN public.limits l USING (organization_id, id)
    WHERE s.organization_id = $1
      AND s.used >= s.alert_at
"""
SET_ALERTED: Final = """
    UPDATE public.limits
    SET alerted_percent = $3
    WHERE organization_id = $1
      AND id = $2
"""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A limit whose use has reached ``percent`` of its ceiling in this window."""

    limit_id: UUID
    organization_id: UUID
    percent: int


async def announce(database: Database) -> list[Alert]:
    """Write an audit event for each newly reached threshold.

    Each threshold of a limit is recorded once per window, on any number of replicas.
    """
    alerts = []
    for due in await database.fetch(FIND_DUE):
        async with database.transaction() as conn:
            await audit.lock(conn, due["organization_id"])
            await conn.execute(LOCK_LIMIT, due["organization_id"], due["id"])
            limit = await conn.fetchrow(READ_LIMIT, due["organization_id"], due["id"])
            # Another replica may have recorded it first.
            if limit is not None:
                alerts += await _record(conn, limit)
    for alert in alerts:
        metrics.ALERTS.labels(alert.percent).inc()
        log.warning(
            "limit alert",
            limit_id=str(alert.limit_id),
            organization_id=str(alert.organization_id),
            percent=alert.percent,
        )
    return alerts


async def _record(conn: Any, limit: Any) -> list[Alert]:
    detail = {name: limit[name] for name in ("scope", "unit", "period", "model")}
    detail |= {name: amount("usd", limit[name]) for name in ("ceiling", "used")}
    detail["window_start"] = limit["window_at"].isoformat()
    if limit["end_user"] is not None:
        detail["end_user"] = limit["end_user"]
    organization_id = limit["organization_id"]
    for percent in limit["percents"]:
        await audit.record(
            conn,
            organization_id,
            RIALTO,
            "limit.alert",
            str(limit["limit_id"]),
            {**detail, "percent": percent},
        )
    await conn.execute(SET_ALERTED, organization_id, limit["id"], max(limit["percents"]))
    return [
        Alert(limit_id=limit["limit_id"], organization_id=organization_id, percent=percent)
        for percent in limit["percents"]
    ]
