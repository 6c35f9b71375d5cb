"""Which failed attempts are repeated, and when. Only what Venice surely did not charge for is."""

import random
from collections import OrderedDict
from typing import Final
from uuid import UUID

from service.errors import (
    ServiceError,
    UpstreamBusy,
    UpstreamError,
    UpstreamExhausted,
    UpstreamRejected,
    UpstreamUnreachable,
)

FIRST_PAUSE_S: Final = 0.1
MOST_PAUSE_S: Final = 2.0
MOST_LEFT: Final = 100.0
A_SUCCESS: Final = 2.0
MAX_BUDGETS: Final = 10_000


class RetryBudget:
    """How many attempts of one caller may be repeated in this process: each answer earns two, so
    that an outage, which earns none, is not made worse by more than a hundred."""

    def __init__(self, left: float = MOST_LEFT) -> None:
        self._left = left

    def earn(self) -> None:
        """A call was answered."""
        self._left = min(MOST_LEFT, self._left + A_SUCCESS)

    def spend(self) -> bool:
        """Whether one more attempt may be repeated."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RetryBudgets:
    """A budget for each API key, so that one whose calls always fail uses up no other's."""

    def __init__(self) -> None:
        self._budgets: OrderedDict[UUID | None, RetryBudget] = OrderedDict()

    def of(self, api_key_id: UUID | None) -> RetryBudget:
        """That of the key."""
        budget = self._budgets.setdefault(api_key_id, RetryBudget())
        self._budgets.move_to_end(api_key_id)
        if len(self._budgets) > MAX_BUDGETS:
            self._budgets.popitem(last=False)
        return budget


def pause_s(
    error: ServiceError,
    attempt: int,
    *,
    is_inference: bool,
    has_key: bool,
    has_fresh_key: bool,
) -> float | None:
    """How long to wait before the next attempt; None when there may be none.

    ``attempt`` counts from 1. A key that Venice refuses was charged nothing and rests, so another
    one may do, at once if it is fresh: not tried for this call. Overload is repeated for inference,
    after the time that Venice names.
    """
    jittered = random.uniform(0, min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))  # noqa: S311
    if isinstance(error, UpstreamUnreachable):
        return jittered
    if isinstance(error, UpstreamExhausted):
        return (0.0 if has_fresh_key else jittered) if has_key else None
    if isinstance(error, UpstreamBusy) and is_inference:
        if has_fresh_key:
            return 0.0
        named_s: int | None = error.named_retry_after_s
        if named_s is None:
            return jittered
        return named_s + random.uniform(0, FIRST_PAUSE_S + named_s / 4)  # noqa: S311
    return None


def is_uncharged(error: UpstreamError, *, is_inference: bool) -> bool:
    """Whether Venice surely charged nothing, and another model may do what this one did not: its
    keys are refused, it is overloaded, or it is no more."""
    if isinstance(error, UpstreamExhausted):
        return True
    if isinstance(error, UpstreamRejected):
        return error.upstream_status in (404, 410)
    # Without a status of Venice's there was no key to ask it with.
    return isinstance(error, UpstreamBusy) and (is_inference or error.upstream_status is None)


def is_repeatable(error: UpstreamError) -> bool:
    """Whether Venice failed in a way that often passes, though it may have charged for it."""
    return error.upstream_status in (500, 502)
