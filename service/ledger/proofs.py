"""Checks limits and roll-ups against the ledger's entries and holds, and repairs limits.

Each organization is checked in one statement, which sees a single instant, so the check holds under
load. Entries and holds are the truth and never change; the used and held amounts of limits follow
from them.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import msgspec

from service import audit
from service.audit import OPERATOR_ORGANIZATION_ID, Actor
from service.database.database import Database
from service.ledger.entries import reading_ledger

PROOF_TIMEOUT_S: Final = 300.0

# Fixed windows: used = carried + entries of the window, and held = open holds. Sliding windows,
# bucket by bucket: count = entries and open holds admitted in it. A call has a hold or an entry,
# not both.
FIND_FAULTS: Final = """
    WITH current_limits AS (
        SELECT s.id, s.unit, s.bucket_s, s.used, s.held, s.window_at, s.ring,
               CASE WHEN l.window_start = s.window_at THEN l.carried ELSE 0 END AS carried
        FROM public.limits l
        JOIN public.limits_as_of(
            ARRAY(SELECT id FROM public.limits WHERE organization_id = $1), clock_timestamp()
        ) s USING (organization_id, id)
        WHERE l.organization_id = $1
    ), booked AS (
        SELECT counted.limit_id, counted.window_at, sum(e.cost_nanos) AS usd,
               sum(e.requests) AS requests, sum(e.tokens) AS tokens
        FROM public.ledger_entries e
        CROSS JOIN LATERAL unnest(e.limit_ids, e.limit_windows) AS counted (limit_id, window_at)
        WHERE e.organization_id = $1
        GROUP BY counted.limit_id, counted.window_at
    ), open AS (
        SELECT counted.limit_id, counted.window_at, sum(h.bound_nanos) AS usd,
               count(*) AS requests, sum(h.bound_tokens) AS tokens
        FROM public.holds h
        CROSS JOIN LATERAL unnest(h.limit_ids, h.limit_windows) AS counted (limit_id, window_at)
        WHERE h.organization_id = $1
          AND NOT EXISTS (
              SELECT
              FROM public.ledger_entries e
              WHERE e.organization_id = h.organization_id
                AND e.id = h.id
          )
        GROUP BY counted.limit_id, counted.window_at
    ), counters AS (
        SELECT s.id, 'used' AS what, s.window_at, s.used AS recorded,
               s.carried + coalesce(
                   CASE s.unit WHEN 'usd' THEN b.usd WHEN 'tokens' THEN b.tokens
                               WHEN 'requests' THEN b.requests END, 0) AS expected
        FROM current_limits s
        LEFT JOIN booked b ON b.limit_id = s.id AND b.window_at = s.window_at
        WHERE s.bucket_s IS NULL
        UNION ALL
        SELECT s.id, 'used', bucket.window_at,
               s.ring[extract(epoch FROM bucket.window_at)::bigint / s.bucket_s % 61 + 1],
               coalesce(CASE s.unit WHEN 'tokens' THEN b.tokens ELSE b.requests END, 0)
               + coalesce(CASE s.unit WHEN 'tokens' THEN o.tokens ELSE o.requests END, 0)
        FROM current_limits s
        CROSS JOIN LATERAL (
            SELECT s.window_at - back * s.bucket_s * interval '1 second' AS window_at
            FROM generate_series(0, 60) AS back
        ) bucket
        LEFT JOIN booked b ON b.limit_id = s.id AND b.window_at = bucket.window_at
        LEFT JOIN open o ON o.limit_id = s.id AND o.window_at = bucket.window_at
        WHERE s.bucket_s IS NOT NULL
        UNION ALL
        SELECT s.id, 'held', s.window_at, s.held, o.amount
        FROM current_limits s
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE s.unit WHEN 'usd' THEN usd WHEN 'tokens' THEN tokens
                                            ELSE requests END), 0) AS amount
            FROM open
            WHERE open.limit_id = s.id
        ) o
        WHERE s.bucket_s IS NULL
    )
    SELECT id, what, window_at, recorded::numeric, expected::numeric
    FROM counters
    WHERE recorded <> expected
    UNION ALL
    SELECT h.id, 'hold of a settled call', NULL, 1, 0
    FROM public.holds h
    JOIN public.ledger_entries e USING (organization_id, id)
    WHERE h.organization_id = $1
    UNION ALL
    -- What the functions guarantee, since constraints would cost each batch more.
    SELECT e.id, 'malformed ' || e.kind, NULL, 1, 0
    FROM public.ledger_entries e
    WHERE e.organization_id = $1
      AND (
          e.kind NOT IN ('call', 'correction', 'credit', 'unattributed')
          OR e.kind = 'call' AND num_nulls(e.api_key_id, e.request_id, e.endpoint, e.outcome) > 0
          OR e.kind = 'correction' AND e.amends_id IS NULL
          OR e.cost_source NOT IN (
              'reported', 'computed', 'estimated', 'not_charged', 'bound', 'manual', 'unknown'
          )
      )
    UNION ALL
    -- The call may be in a month that was dropped.
    SELECT c.id, 'orphaned ' || c.kind, NULL, 1, 0
    FROM public.ledger_entries c
    WHERE c.organization_id = $1
      AND c.kind IN ('correction', 'credit')
      AND c.amends_id >= (SELECT public.uuid7_floor(min(month)) FROM public.ledger_months())
      AND NOT EXISTS (
          SELECT
          FROM public.ledger_entries e
          WHERE e.organization_id = c.organization_id
            AND e.id = c.amends_id
      )
    UNION ALL
    SELECT amends_id, 'duplicate corrections', NULL, count(*), 1
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND kind = 'correction'
    GROUP BY amends_id
    HAVING count(*) > 1
    UNION ALL
    SELECT counted.limit_id, 'missing limit', NULL, count(*), 0
    FROM public.holds h
    CROSS JOIN LATERAL unnest(h.limit_ids) AS counted (limit_id)
    WHERE h.organization_id = $1
      AND NOT EXISTS (
          SELECT FROM public.limits l WHERE l.organization_id = $1 AND l.id = counted.limit_id
      )
    GROUP BY counted.limit_id
"""
# ruff: noqa: S608 - statements are built from constants
_COUNTED: Final = (
    *("entries", "calls", "failures", "input_tokens", "cached_input_tokens", "output_tokens"),
    *("cost_nanos", "unknown_costs", "first_bytes", "durations"),
)
_COLUMNS: Final = ", ".join(_COUNTED)
_SUMS: Final = ", ".join(f"sum({name}) AS {name}" for name in _COUNTED)
# EXCEPT takes nulls for equal. What is wrong is shown as the first of these that differs: how many
# entries were counted, what they cost, how many rows are wrong.
_DIFFERENCES: Final = """
    , wrong AS (
        SELECT cut, start_at, true AS is_recorded, entries, cost_nanos
        FROM (SELECT * FROM recorded EXCEPT ALL SELECT * FROM expected) r
        UNION ALL
        SELECT cut, start_at, false, entries, cost_nanos
        FROM (SELECT * FROM expected EXCEPT ALL SELECT * FROM recorded) e
    ), compared AS (
        SELECT cut, start_at,
               coalesce(sum(entries) FILTER (WHERE is_recorded), 0) AS recorded_entries,
               coalesce(sum(entries) FILTER (WHERE NOT is_recorded), 0) AS expected_entries,
               coalesce(sum(cost_nanos) FILTER (WHERE is_recorded), 0) AS recorded_nanos,
               coalesce(sum(cost_nanos) FILTER (WHERE NOT is_recorded), 0) AS expected_nanos,
               count(*) FILTER (WHERE is_recorded) AS rows
        FROM wrong
        GROUP BY cut, start_at
    )
    SELECT $1::uuid AS id, f.what || ' in usage by ' || replace(c.cut, '_', ' and ') AS what,
           c.start_at AS window_at, f.recorded, f.expected
    FROM compared c
    CROSS JOIN LATERAL (
        SELECT 'entries', c.recorded_entries, c.expected_entries
        WHERE c.recorded_entries <> c.expected_entries
        UNION ALL
        SELECT 'nano-dollars', c.recorded_nanos, c.expected_nanos
        WHERE c.recorded_nanos <> c.expected_nanos
        UNION ALL
        SELECT 'wrong rows', c.rows, 0
        LIMIT 1
    ) AS f (what, recorded, expected)
    ORDER BY c.start_at, c.cut
    LIMIT 1000
"""
# The roll-ups of an organization follow from its entries.
FIND_USAGE_FAULTS: Final = f"""
    WITH counted AS (
        SELECT date_trunc('hour', counted_at, 'UTC') AS hour, api_key_id, model, endpoint, outcome,
               {_SUMS}
        FROM derived.entries
        WHERE organization_id = $1
          AND counted_at < (SELECT counted_to FROM derived.usage_cursor)
        GROUP BY hour, api_key_id, model, endpoint, outcome
    ), expected AS (
        SELECT c.cut, date_trunc(c.unit, hour, 'UTC') AS start_at, api_key_id,
               CASE WHEN c.has_model THEN model END AS model,
               CASE WHEN c.has_model THEN endpoint END AS endpoint,
               CASE WHEN c.has_model THEN outcome END AS outcome,
               {_SUMS}
        FROM counted
        CROSS JOIN (
            VALUES ('hour', 'hour', true), ('day', 'day', true),
                   ('key_hour', 'hour', false), ('key_day', 'day', false)
        ) AS c (cut, unit, has_model)
        GROUP BY 1, 2, 3, 4, 5, 6
    ), recorded AS (
        SELECT cut, start_at, api_key_id, model, endpoint, outcome, {_COLUMNS}
        FROM derived.usage
        WHERE organization_id = $1
    )
    {_DIFFERENCES}
"""
# Those by model, which are of all organizations, follow from the roll-ups of each.
FIND_MODEL_USAGE_FAULTS: Final = f"""
    WITH expected AS (
        SELECT c.cut, date_trunc(c.unit, start_at, 'UTC') AS start_at, model, endpoint, outcome,
               {_SUMS}
        FROM derived.usage
        CROSS JOIN (VALUES ('model_hour', 'hour'), ('model_day', 'day')) AS c (cut, unit)
        WHERE usage.cut = 'hour'
        GROUP BY 1, 2, 3, 4, 5
    ), recorded AS (
        SELECT cut, start_at, model, endpoint, outcome, {_COLUMNS}
        FROM derived.usage
        WHERE cut IN ('model_hour', 'model_day')
    )
    {_DIFFERENCES}
"""
COUNT_PROVEN: Final = """
    SELECT
        (SELECT count(*) FROM public.limits WHERE organization_id = $1) AS limits,
        (SELECT count(*) FROM public.holds WHERE organization_id = $1) AS holds,
        (SELECT count(*) FROM public.ledger_entries WHERE organization_id = $1) AS entries
"""
REPAIR_LIMITS: Final = """
    SELECT limit_id AS id, counter AS what, window_at, stands AS recorded,
           proven AS expected
    FROM public.repair_limits($1, $2, $3, $4, $5)
    ORDER BY limit_id
"""
REMOVE_SETTLED_HOLDS: Final = """
    DELETE FROM public.holds h
    USING public.ledger_entries e
    WHERE h.organization_id = $1
      AND h.id = ANY ($2)
      AND e.organization_id = h.organization_id
      AND e.id = h.id
    RETURNING h.id, 'hold of a settled call' AS what, NULL::timestamptz AS window_at, 1 AS recorded,
              0 AS expected
"""
SETTLED_HOLD: Final = "hold of a settled call"
COUNTERS: Final = ("used", "held")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A mismatch between the ``recorded`` amount and the ``expected`` one that events prove.

    ``window_at`` is the start of the window, or of the bucket for sliding windows.
    """

    id: UUID
    what: str
    window_at: datetime | None
    recorded: int
    expected: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The number of limits, holds and entries checked, and the faults found."""

    organization_id: UUID
    limits: int
    holds: int
    entries: int
    faults: Sequence[Fault]


async def prove(database: Database, organization_id: UUID) -> Proof:
    """Check an organization's limits and roll-ups against its holds and entries, as of one instant.

    The operator's organization stands for the roll-ups over all organizations, too.

    :raises Unavailable: when the database does not answer in time.
    """
    async with reading_ledger(database, PROOF_TIMEOUT_S) as conn:
        counts = await conn.fetchrow(COUNT_PROVEN, organization_id)
        rows = await conn.fetch(FIND_FAULTS, organization_id)
        rows += await conn.fetch(FIND_USAGE_FAULTS, organization_id)
        if organization_id == OPERATOR_ORGANIZATION_ID:
            rows += await conn.fetch(FIND_MODEL_USAGE_FAULTS, organization_id)
    faults = [_fault(row) for row in rows]
    return Proof(organization_id=organization_id, **counts, faults=faults)


async def repair(conn: Any, actor: Actor, organization_id: UUID) -> Sequence[Fault]:
    """Set the limits' used and held amounts to what entries and holds prove. Returns the faults.

    Holds of settled calls are removed. Entries never change, so faults among entries remain.

    The check of :func:`prove` runs while calls continue. A call moves a counter and its expected
    value alike, so the difference stays constant and is subtracted under the locks of the limits.
    Only one repair of an organization runs at a time, because a second one would subtract it again.
    """
    await audit.lock(conn, organization_id)
    faults = [_fault(row) for row in await conn.fetch(FIND_FAULTS, organization_id)]
    counters = [fault for fault in faults if fault.what in COUNTERS]
    settled = [fault.id for fault in faults if fault.what == SETTLED_HOLD]
    # Holds are locked before limits, as in every batch.
    removed = await conn.fetch(REMOVE_SETTLED_HOLDS, organization_id, settled)
    rows = await conn.fetch(
        REPAIR_LIMITS,
        organization_id,
        [fault.id for fault in counters],
        [fault.what for fault in counters],
        [fault.window_at for fault in counters],
        [fault.recorded - fault.expected for fault in counters],
    )
    repaired = [_fault(row) for row in rows]
    for limit_id, parts in groupby(repaired, key=lambda fault: fault.id):
        detail = {"counters": [msgspec.to_builtins(part) for part in parts]}
        await audit.record(conn, organization_id, actor, "limit.repair", str(limit_id), detail)
    for row in removed:
        repaired.append(_fault(row))
        await audit.record(conn, organization_id, actor, "hold.remove", str(row["id"]))
    return repaired


def _fault(row: Any) -> Fault:
    return Fault(
        id=row["id"],
        what=row["what"],
        window_at=row["window_at"],
        recorded=int(row["recorded"]),
        expected=int(row["expected"]),
    )
