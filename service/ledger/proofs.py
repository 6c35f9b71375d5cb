"""Proofs that the books agree with themselves, in one statement an organization, so that they hold
under load: a statement sees one instant. And their repair: entries and holds are the truth, and
never changed; what a limit has used and holds follows from them.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import msgspec

from service import audit
from service.audit import Actor
from service.database.connections import Database
from service.ledger.entries import reading_ledger

PROOF_TIMEOUT_S: Final = 300.0

# Windows: used = carried + entries of the window, held = open holds. Rings, bucket by bucket: its
# count = entries and open holds that were admitted in it. A hold and an entry exclude each other.
FIND_FAULTS: Final = """
    WITH standing AS (
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
        SELECT s.id, 'used' AS what, s.window_at, s.used AS stands,
               s.carried + coalesce(
                   CASE s.unit WHEN 'usd' THEN b.usd WHEN 'tokens' THEN b.tokens
                               WHEN 'requests' THEN b.requests END, 0) AS proven
        FROM standing s
        LEFT JOIN booked b ON b.limit_id = s.id AND b.window_at = s.window_at
        WHERE s.bucket_s IS NULL
        UNION ALL
        SELECT s.id, 'used', bucket.window_at,
               s.ring[extract(epoch FROM bucket.window_at)::bigint / s.bucket_s % 61 + 1],
               coalesce(CASE s.unit WHEN 'tokens' THEN b.tokens ELSE b.requests END, 0)
               + coalesce(CASE s.unit WHEN 'tokens' THEN o.tokens ELSE o.requests END, 0)
        FROM standing s
        CROSS JOIN LATERAL (
            SELECT s.window_at - back * s.bucket_s * interval '1 second' AS window_at
            FROM generate_series(0, 60) AS back
        ) bucket
        LEFT JOIN booked b ON b.limit_id = s.id AND b.window_at = bucket.window_at
        LEFT JOIN open o ON o.limit_id = s.id AND o.window_at = bucket.window_at
        WHERE s.bucket_s IS NOT NULL
        UNION ALL
        SELECT s.id, 'held', s.window_at, s.held, o.amount
        FROM standing s
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE s.unit WHEN 'usd' THEN usd WHEN 'tokens' THEN tokens
                                            ELSE requests END), 0) AS amount
            FROM open
            WHERE open.limit_id = s.id
        ) o
        WHERE s.bucket_s IS NULL
    )
    SELECT id, what, window_at, stands::numeric, proven::numeric
    FROM counters
    WHERE stands <> proven
    UNION ALL
    SELECT h.id, 'hold of a settled call', NULL, 1, 0
    FROM public.holds h
    JOIN public.ledger_entries e USING (organization_id, id)
    WHERE h.organization_id = $1
    UNION ALL
    -- The call may be of a month that is not kept any more.
    SELECT c.id, c.kind || ' of no call', NULL, 1, 0
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
    SELECT amends_id, 'corrections of one call', NULL, count(*), 1
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND kind = 'correction'
    GROUP BY amends_id
    HAVING count(*) > 1
    UNION ALL
    SELECT counted.limit_id, 'limit that is not there', NULL, count(*), 0
    FROM public.holds h
    CROSS JOIN LATERAL unnest(h.limit_ids) AS counted (limit_id)
    WHERE h.organization_id = $1
      AND NOT EXISTS (
          SELECT FROM public.limits l WHERE l.organization_id = $1 AND l.id = counted.limit_id
      )
    GROUP BY counted.limit_id
"""
COUNT_PROVEN: Final = """
    SELECT
        (SELECT count(*) FROM public.limits WHERE organization_id = $1) AS limits,
        (SELECT count(*) FROM public.holds WHERE organization_id = $1) AS holds,
        (SELECT count(*) FROM public.ledger_entries WHERE organization_id = $1) AS entries
"""
REPAIR_LIMITS: Final = """
    SELECT limit_id AS id, counter AS what, window_at, stands, proven
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
    RETURNING h.id, 'hold of a settled call' AS what, NULL::timestamptz AS window_at, 1 AS stands,
              0 AS proven
"""
SETTLED_HOLD: Final = "hold of a settled call"
COUNTERS: Final = ("used", "held")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that does not agree: ``stands`` in the books, ``proven`` by the events.
    ``window_at`` is the start of the window or, where the limit slides, of the bucket."""

    id: UUID
    what: str
    window_at: datetime | None
    stands: int
    proven: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what of it does not agree."""

    organization_id: UUID
    limits: int
    holds: int
    entries: int
    faults: Sequence[Fault]


async def prove(database: Database, organization_id: UUID) -> Proof:
    """Prove an organization's limits by its holds and entries, as of one instant.

    :raises Unavailable: when the database cannot say in time.
    """
    async with reading_ledger(database, PROOF_TIMEOUT_S) as conn:
        counts = await conn.fetchrow(COUNT_PROVEN, organization_id)
        faults = [_fault(row) for row in await conn.fetch(FIND_FAULTS, organization_id)]
    return Proof(organization_id=organization_id, **counts, faults=faults)


async def repair(conn: Any, actor: Actor, organization_id: UUID) -> Sequence[Fault]:
    """Set what the organization's limits have used and hold to what entries and holds prove, and
    remove the holds of calls that are settled; returns what was wrong. Entries never change, so a
    fault among them stays.

    The proof is the one of :func:`prove`, made while calls go on. They move a counter and its proof
    alike, so what the counter is off by stays the same, and is taken off under the locks of the
    limits. One repair of an organization at a time, since a second would take it off twice.
    """
    await audit.lock(conn, organization_id)
    faults = [_fault(row) for row in await conn.fetch(FIND_FAULTS, organization_id)]
    counters = [fault for fault in faults if fault.what in COUNTERS]
    settled = [fault.id for fault in faults if fault.what == SETTLED_HOLD]
    rows = await conn.fetch(
        REPAIR_LIMITS,
        organization_id,
        [fault.id for fault in counters],
        [fault.what for fault in counters],
        [fault.window_at for fault in counters],
        [fault.stands - fault.proven for fault in counters],
    )
    repaired = [_fault(row) for row in rows]
    for limit_id, parts in groupby(repaired, key=lambda fault: fault.id):
        detail = {"counters": [msgspec.to_builtins(part) for part in parts]}
        await audit.record(conn, organization_id, actor, "limit.repair", str(limit_id), detail)
    for row in await conn.fetch(REMOVE_SETTLED_HOLDS, organization_id, settled):
        repaired.append(_fault(row))
        await audit.record(conn, organization_id, actor, "hold.remove", str(row["id"]))
    return repaired


def _fault(row: Any) -> Fault:
    return Fault(
        id=row["id"],
        what=row["what"],
        window_at=row["window_at"],
        stands=int(row["stands"]),
        proven=int(row["proven"]),
    )
