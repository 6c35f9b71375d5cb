"""How a call ended, and whether Venice may have charged more than was metered."""

from decimal import Decimal
from typing import Final

from service.errors import UpstreamError
from service.gateway.call import Relay
from service.ledger import Outcome
from service.upstream import Metered

MOMENT_CHOSEN_BY_CALLER: Final = frozenset({Outcome.CLIENT_CLOSED, Outcome.INTERNAL_ERROR})
"""Outcomes whose moment the caller may have chosen."""
ENDED_BY_UPSTREAM: Final = frozenset({Outcome.UPSTREAM_CUT, Outcome.UPSTREAM_TIMEOUT})
"""Outcomes where Venice ended the answer early, without an error."""


class Ending:
    """How one call ended, as far as it is known."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.status: int | None = None
        self.stated_usd: Decimal | None = None
        """What Venice states that its failure costs."""
        self.is_broken = False
        """Whether Venice failed after the caller had gone."""
        self.is_left = False
        """Whether a stream was left here before its end."""
        self.is_held_up = False
        """Whether the caller let the stream wait."""
        self._has_failed = False
        """Whether Venice answered that it failed."""

    def note(self, outcome: Outcome, status: int | None) -> None:
        """Take the outcome and the status, if they are not known yet."""
        self.outcome = self.outcome or outcome
        self.status = self.status or status

    def note_failure(self, error: BaseException) -> None:
        """Take what Venice states with a failure."""
        if isinstance(error, UpstreamError):
            self._has_failed = self._has_failed or error.upstream_status is not None
            self.stated_usd = self.stated_usd or error.cost_usd

    def forget(self) -> None:
        """What was known of the end does not hold: the caller gets something else."""
        self.outcome = self.status = None

    def may_be_more(
        self, outcome: Outcome, metered: Metered, relay: Relay, *, is_read: bool
    ) -> bool:
        """Whether more output may be charged than was metered: the caller chose when to go, or
        no output was metered. ``is_read`` is true where a plain answer was read."""
        if metered.is_final:
            return False
        if outcome in MOMENT_CHOSEN_BY_CALLER or self.is_left:
            return not self.is_broken
        if relay is Relay.WHOLE:
            return not is_read and not self._has_failed
        if metered.counted_tokens:
            return outcome in ENDED_BY_UPSTREAM and self.is_held_up
        return not self._has_failed
