"""Costs above the most that any call of their model can cost.

Venice reported them, so they are recorded in full. An audit event informs the operator, and a
refusal caused by such a cost names its entry.
"""

import time
from collections import OrderedDict, deque
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from service import audit, money
from service.audit import OPERATOR_ORGANIZATION_ID, RIALTO
from service.database.database import Database
from service.errors import LimitExceeded, Unavailable

log = structlog.get_logger()

ACTION: Final = "ledger.implausible_cost"
MAX_WAITING: Final = 1_000
"""The number of costs waiting to be recorded. Each is also in the log and the ledger."""
MAX_ORGANIZATIONS: Final = 1_000
CACHE_S: Final = 5.0
"""How long the lookup for a refusal is cached."""
FIND: Final = """
    SELECT e.id, e.cost_nanos
    FROM public.audit_events a
    JOIN LATERAL (
        SELECT x.id, x.cost_nanos
        FROM public.ledger_entries x
        JOIN public.limits l
            ON l.organization_id = x.organization_id AND l.id = ANY (x.limit_ids)
        WHERE x.organization_id = $1
          AND x.id = a.target::uuid
          AND (l.id = $2 OR l.template_id = $2)
          AND l.window_start IS NOT DISTINCT FROM x.limit_windows[array_position(x.limit_ids, l.id)]
        LIMIT 1
    ) e ON true
    WHERE a.action = 'ledger.implausible_cost'
      AND a.detail ->> 'organization_id' = $1::text
    ORDER BY a.sequence DESC
    LIMIT 1
"""


class ImplausibleCost(NamedTuple):
    """A call's cost, and the most that any call of its model can cost."""

    organization_id: UUID
    entry_id: UUID
    model: str
    cost_nanos: int
    max_nanos: int


class ImplausibleCosts:
    """The implausible costs of one process that wait to be audited, and a cache that explains
    refusals."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[ImplausibleCost] = deque(maxlen=MAX_WAITING)
        self._found: OrderedDict[tuple[UUID, str], tuple[float, Any]] = OrderedDict()

    def add(self, cost: ImplausibleCost) -> None:
        """Log a cost and queue it for the audit."""
        self._waiting.append(cost)
        log.warning(
            "cost above the model's maximum",
            entry_id=str(cost.entry_id),
            model=cost.model,
            cost_nanos=cost.cost_nanos,
            max_nanos=cost.max_nanos,
        )

    async def record(self) -> None:
        """Write each waiting cost to the operator's audit.

        :raises Unavailable: when the database cannot take it. The cost keeps waiting.
        """
        while self._waiting:
            cost = self._waiting[0]
            detail = {
                "organization_id": str(cost.organization_id),
                "model": cost.model,
                "cost_usd": money.format_usd(cost.cost_nanos),
                "max_usd": money.format_usd(cost.max_nanos),
            }
            async with self._database.transaction() as conn:
                target = str(cost.entry_id)
                await audit.record(conn, OPERATOR_ORGANIZATION_ID, RIALTO, ACTION, target, detail)
            if self._waiting and self._waiting[0] is cost:
                self._waiting.popleft()

    async def explain(self, refusal: LimitExceeded, organization_id: UUID) -> None:
        """Name in the refusal the implausible entry that used up its limit, if there is one."""
        if refusal.limit is None or refusal.limit["unit"] != "usd":
            return
        key = organization_id, str(refusal.limit["id"])
        read_at, found = self._found.get(key, (0.0, None))
        if not read_at or time.monotonic() - read_at > CACHE_S:
            try:
                found = await self._database.fetchrow(FIND, organization_id, UUID(key[1]))
            except Unavailable:
                return
            self._found[key] = time.monotonic(), found
            self._found.move_to_end(key)
            if len(self._found) > MAX_ORGANIZATIONS:
                self._found.popitem(last=False)
        if found is not None:
            usd = money.format_usd(found["cost_nanos"])
            refusal.message += (
                f" {usd} of this was charged for the call {found['id']} alone, more than its model"
                " can cost. The operator can credit that call."
            )
            refusal.args = (refusal.message,)
            refusal.limit = {**refusal.limit, "implausible_entry_id": str(found["id"])}
