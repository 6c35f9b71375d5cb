"""Lists the limits that are near their end, so that somebody can act before calls are refused."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from service.database.database import Database
from service.ledger import Limit, read_limits

MAX_CANDIDATES: Final = 1000
"""The most limits whose current state one list reads: those that are nearest to their end."""

# A row has used and holds at least what counts now, since windows and rings only expire, and its
# ceiling is at least the smaller of its own and its raise. So no limit that is near its end is left
# out. Counters of single end users are, because there may be 100,000 of them.
FIND_CANDIDATES: Final = """
    SELECT l.id, o.name AS organization_name, k.name AS key_name, k.prefix AS key_prefix
    FROM public.limits l
    JOIN public.organizations o ON o.id = l.organization_id
    LEFT JOIN public.api_keys k ON k.id = l.api_key_id
    CROSS JOIN LATERAL (
        SELECT l.held + CASE
                   WHEN public.is_idle(
                       l.unit, l.period, l.used, l.window_start, l.buckets, l.bucket_at, now()
                   ) THEN 0
                   WHEN l.buckets IS NULL THEN l.used
                   ELSE (SELECT sum(bucket) FROM unnest(l.buckets) bucket) END AS taken,
               least(l.ceiling, coalesce(l.raised_to, l.ceiling)) AS ceiling
    ) a
    WHERE l.template_id IS NULL
      AND l.deleted_at IS NULL
      AND l.scope <> 'each_end_user'
      AND o.status <> 'deleted'
      AND k.revoked_at IS NULL
      AND ($1::uuid IS NULL OR l.organization_id = $1)
      AND a.taken >= $2::float8 * a.ceiling
    ORDER BY a.taken / greatest(a.ceiling, 1) DESC, l.id
    LIMIT $3
"""


class Standing(Limit, frozen=True, kw_only=True):
    """The current state of a limit, with the names of its organization and key.

    ``share`` is what is used and held as a part of the ceiling. It is 1 for a ceiling of 0, and
    above 1 where the ceiling was lowered since.
    """

    organization_name: str
    key_name: str | None
    key_prefix: str | None
    share: float


async def near(
    database: Database, organization_id: UUID | None, share: float, limit: int
) -> Sequence[Standing]:
    """List the limits of an organization, or of all, of which at least ``share`` (0 to 1) is used
    or held, nearest to their end first.

    Limits of each end user are left out, and so are their counters, and limits of revoked keys.

    :raises Unavailable: when the database does not answer in time.
    """
    rows = await database.fetch(FIND_CANDIDATES, organization_id, share, MAX_CANDIDATES)
    names: dict[UUID, Any] = {row["id"]: row for row in rows}
    found = [_standing(one, names[one.id]) for one in await read_limits(database, list(names))]
    standings = [one for one in found if one.share >= share]
    return sorted(standings, key=lambda one: one.share, reverse=True)[:limit]


def _standing(limit: Limit, names: Any) -> Standing:
    ceiling = Decimal(limit.ceiling)
    taken = Decimal(limit.used) + Decimal(limit.held)
    return Standing(
        **msgspec.structs.asdict(limit),
        organization_name=names["organization_name"],
        key_name=names["key_name"],
        key_prefix=names["key_prefix"],
        share=float(taken / ceiling) if ceiling else 1.0,
    )
