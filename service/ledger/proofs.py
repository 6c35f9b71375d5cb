"""Proofs that the books agree with themselves, in one statement an organization, so that they hold
under load: a statement sees one instant."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgspec

from service.db import Database

# Windows: used = carried + entries of the window, held = open holds. Rings: what the buckets hold =
# entries and open holds that were admitted in them. A hold and an entry exclude each other.
FIND_FAULTS: Final = """
    WITH standing AS (
        SELECT s.id, s.unit, s.bucket_s, s.used, s.held, s.window_at,
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
        GROUP BY counted.limit_id, counted.window_at
    ), amounts AS (
        SELECT s.*, b.amount AS booked, o.amount AS open
        FROM standing s
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE s.unit WHEN 'usd' THEN usd WHEN 'tokens' THEN tokens
                                            WHEN 'requests' THEN requests END), 0) AS amount
            FROM booked
            WHERE booked.limit_id = s.id
              AND (s.bucket_s IS NULL AND booked.window_at = s.window_at
                   OR booked.window_at > s.window_at - 61 * s.bucket_s * interval '1 second')
        ) b
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE s.unit WHEN 'usd' THEN usd WHEN 'tokens' THEN tokens
                                            ELSE requests END), 0) AS amount
            FROM open
            WHERE open.limit_id = s.id
              AND (s.bucket_s IS NULL
                   OR open.window_at > s.window_at - 61 * s.bucket_s * interval '1 second')
        ) o
    )
    SELECT id, 'used' AS what, used::numeric AS stands,
           (carried + booked + CASE WHEN bucket_s IS NULL THEN 0 ELSE open END)::numeric AS proven
    FROM amounts
    WHERE used <> carried + booked + CASE WHEN bucket_s IS NULL THEN 0 ELSE open END
    UNION ALL
    SELECT id, 'held', held, open
    FROM amounts
    WHERE bucket_s IS NULL
      AND held <> open
    UNION ALL
    SELECT h.id, 'hold of a settled call', 1, 0
    FROM public.holds h
    JOIN public.ledger_entries e USING (organization_id, id)
    WHERE h.organization_id = $1
    UNION ALL
    SELECT c.id, 'correction of no call', 1, 0
    FROM public.ledger_entries c
    WHERE c.organization_id = $1
      AND c.kind = 'correction'
      AND NOT EXISTS (
          SELECT
          FROM public.ledger_entries e
          WHERE e.organization_id = c.organization_id
            AND e.id = c.amends_id
      )
    UNION ALL
    SELECT amends_id, 'corrections of one call', count(*), 1
    FROM public.ledger_entries
    WHERE organization_id = $1
      AND kind = 'correction'
    GROUP BY amends_id
    HAVING count(*) > 1
    UNION ALL
    SELECT counted.limit_id, 'limit that is not there', count(*), 0
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


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that does not agree: ``stands`` in the books, ``proven`` by the events."""

    id: UUID
    what: str
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
    """Prove an organization's limits by its holds and entries."""
    counts = await database.fetchrow(COUNT_PROVEN, organization_id)
    faults = [
        Fault(id=row["id"], what=row["what"], stands=int(row["stands"]), proven=int(row["proven"]))
        for row in await database.fetch(FIND_FAULTS, organization_id)
    ]
    return Proof(organization_id=organization_id, **counts, faults=faults)
