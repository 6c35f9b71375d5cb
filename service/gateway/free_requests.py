"""Counts requests that cost nothing, but use the database or Venice.

The ledger counts paid calls. Free requests are counted here, in memory, against the same limits on
requests of a minute or an hour, so that a caller over its rate does not reach Venice by another
route. Each process counts its own.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from service import ledger
from service.accounts import Caller
from service.database.lanes import Lanes
from service.errors import CallTooLarge, RateLimited
from service.ledger import Limit
from service.telemetry import metrics

PERIODS_S: Final = {"minute": 60, "hour": 3600}
SCOPES: Final = frozenset({"organization", "api_key"})
BUCKETS: Final = 60
"""How many parts a period has. A request counts for the period and at most one part more."""
MAX_LIMITS: Final = 10_000
"""How many limits have a count before those without recent requests are dropped."""
MAX_RETRY_AFTER_S: Final = 60
NO_END_USER: Final = b""


class _Recent:
    """The number of requests within a period, by parts of it."""

    def __init__(self, period_s: int) -> None:
        self._bucket_s = period_s / BUCKETS
        self._buckets: deque[tuple[int, int]] = deque()
        self.count = 0

    def add(self) -> None:
        now = int(time.monotonic() / self._bucket_s)
        last = self._buckets.pop() if self._buckets and self._buckets[-1][0] == now else (now, 0)
        self._buckets.append((now, last[1] + 1))
        self.count += 1

    def remove(self) -> None:
        """Remove the request that was added last."""
        if not self._buckets:
            return
        bucket, count = self._buckets.pop()
        if count > 1:
            self._buckets.append((bucket, count - 1))
        self.count -= 1

    def prune(self) -> None:
        oldest = int(time.monotonic() / self._bucket_s) - BUCKETS
        while self._buckets and self._buckets[0][0] < oldest:
            self.count -= self._buckets.popleft()[1]

    @property
    def retry_after_s(self) -> int:
        """After how many seconds the oldest request counts no more."""
        if not self._buckets:
            return MAX_RETRY_AFTER_S
        ends_at = (self._buckets[0][0] + BUCKETS + 1) * self._bucket_s
        return max(1, min(MAX_RETRY_AFTER_S, int(ends_at - time.monotonic()) + 1))


class FreeRequests:
    """The recent free requests of callers, by the limits that count them."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._recent: dict[UUID, _Recent] = {}
        self._organizations: dict[UUID, float] = {}
        """Until when the free requests of an organization may count."""

    async def take(self, caller: Caller, model: str | None = None) -> Sequence[Limit]:
        """Count a free request, and return the limits that count it. ``model`` is given for a paid
        call whose price Venice is asked for.

        :raises RateLimited: when a limit of its key or organization has no room for it.
        """
        if not caller.has_rate_limit:
            return ()
        rates = await self._rates_with_room(caller, model)
        for limit in rates:
            self._recent[limit.id].add()
        if rates:
            # A request counts for a period and one part of it.
            longest_s = max(PERIODS_S[str(limit.period)] for limit in rates) * (1 + 1 / BUCKETS)
            until = self._organizations.get(caller.organization_id, 0.0)
            self._organizations[caller.organization_id] = max(until, time.monotonic() + longest_s)
        return rates

    def give_back(self, limits: Sequence[Limit]) -> None:
        """Stop counting a request, since the ledger counts it now."""
        for limit in limits:
            if (recent := self._recent.get(limit.id)) is not None:
                recent.remove()

    async def check(self, caller: Caller, model: str, *, asks_venice: bool) -> Sequence[Limit]:
        """Check that a paid call of a caller with a limit on requests has room beside the free
        requests, which the ledger does not know. A call whose price Venice is asked for counts as
        a free request until it is admitted. Returns the limits that count it.

        :raises RateLimited: when it has none.
        """
        if asks_venice:
            return await self.take(caller, model)
        if self._organizations.get(caller.organization_id, 0.0) > time.monotonic():
            await self._rates_with_room(caller, model)
        else:
            self._organizations.pop(caller.organization_id, None)
        return ()

    async def _rates_with_room(self, caller: Caller, model: str | None) -> Sequence[Limit]:
        """The limits that count the request: those for all models, and those for its model."""
        organization_id = caller.organization_id
        if caller.api_key_id is None:
            # The operator's own key has no limits.
            return ()
        limits = await ledger.list_binding(
            self._lanes.of(organization_id), organization_id, caller.api_key_id, NO_END_USER, model
        )
        rates = [
            limit
            for limit in limits
            if limit.unit == "requests"
            and limit.period in PERIODS_S
            and limit.scope in SCOPES
            # Without a model the database also lists the limits of single models.
            and (model is not None or limit.model is None)
        ]
        if any(limit.id not in self._recent for limit in rates):
            # Before the loop, so that no count is dropped that the loop has checked.
            self._forget_idle()
        for limit in rates:
            recent = self._recent.get(limit.id)
            if recent is None:
                recent = self._recent[limit.id] = _Recent(PERIODS_S[str(limit.period)])
            recent.prune()
            self._must_have_room(limit, recent)
        return rates

    def _forget_idle(self) -> None:
        if len(self._recent) < MAX_LIMITS:
            return
        for recent in self._recent.values():
            recent.prune()
        self._recent = {key: recent for key, recent in self._recent.items() if recent.count}

    def _must_have_room(self, limit: Limit, recent: _Recent) -> None:
        used = int(limit.used) + recent.count
        if used < int(limit.ceiling):
            return
        never_fits = int(limit.ceiling) < 1
        kind = CallTooLarge if never_fits else RateLimited
        metrics.note(metrics.REFUSALS, 1, kind.code, limit.unit, limit.scope)
        raise kind(
            f"The limit of {limit.ceiling} requests a {limit.period} has {used} used, of which"
            f" {recent.count} were free of charge.",
            retry_after_s=None if never_fits else recent.retry_after_s,
            limit={
                "id": str(limit.id),
                "scope": limit.scope,
                "unit": limit.unit,
                "period": limit.period,
                "model": limit.model,
                "ceiling": limit.ceiling,
                "used": used,
                "held": 0,
                "needed": 1,
                "resets_at": None,
            },
        )
