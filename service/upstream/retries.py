"""Decides which failed attempts are retried, and when.

Only attempts that Venice certainly did not charge for are retried.
"""

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
MAX_PAUSE_S: Final = 2.0
MAX_RETRIES: Final = 100.0
EARNED_PER_SUCCESS: Final = 2.0
MAX_BUDGETS: Final = 10_000


class RetryBudgets:
    """The retries left to each API key in this process, so a key whose calls always fail uses up no
    other's budget.

    Each successful call earns two. An outage earns none, so it is made worse by at most a hundred
    retries of each key.
    """

    def __init__(self) -> None:
        self.left: OrderedDict[UUID | None, float] = OrderedDict()
        """Of the keys that have spent retries and not earned them again, the latest spender last.
        All others have ``MAX_RETRIES``."""

    def earn(self, api_key_id: UUID | None) -> None:
        """Record a successful call. Needed only while any key is in ``left``."""
        left = self.left.get(api_key_id, MAX_RETRIES) + EARNED_PER_SUCCESS
        if left < MAX_RETRIES:
            self.left[api_key_id] = left
        else:
            self.left.pop(api_key_id, None)

    def spend(self, api_key_id: UUID | None) -> bool:
        """Take one retry from the key's budget. Returns False when none is left."""
        left = self.left.get(api_key_id, MAX_RETRIES)
        if left < 1:
            return False
        self.left[api_key_id] = left - 1
        self.left.move_to_end(api_key_id)
        if len(self.left) > MAX_BUDGETS:
            self.left.popitem(last=False)
        return True


def pause_s(
    error: ServiceError,
    attempt: int,
    *,
    is_inference: bool,
    has_key: bool,
    has_fresh_key: bool,
) -> float | None:
    """Return the seconds before the next attempt, or None when there must be none.

    ``attempt`` counts from 1. A key that Venice refuses was not charged, so another key may serve
    the call, at once if it was not yet tried for this call (``has_fresh_key``). Overload is retried
    for inference, after the time that Venice names.
    """
    jittered = random.uniform(0, min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**attempt))  # noqa: S311
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
    """Return whether Venice certainly charged nothing and another model may serve the call.

    That is the case when its keys are refused, the model is overloaded, or the model no longer
    exists.
    """
    if isinstance(error, UpstreamExhausted):
        return True
    if isinstance(error, UpstreamRejected):
        return error.upstream_status in (404, 410)
    # Without a status from Venice, no key was available and no request was sent.
    return isinstance(error, UpstreamBusy) and (is_inference or error.upstream_status is None)


def is_repeatable(error: UpstreamError) -> bool:
    """Return whether Venice failed in a way that is often temporary. It may still have charged."""
    return error.upstream_status in (500, 502)
