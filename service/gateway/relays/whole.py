"""JSON that is read to its end before the caller gets it."""

import time
from typing import Final

from service.errors import UpstreamError
from service.gateway.relays.relay import OK_STATUS, AnswerRelay
from service.ledger import Outcome
from service.upstream import Metered, Sink, failed_response

ENDED_HERE: Final = frozenset({Outcome.CLIENT_CLOSED, Outcome.SHUTDOWN})
"""Outcomes of calls that this side ended."""


class WholeRelay(AnswerRelay):
    """Reads the whole answer, so its usage and cost are known before the caller gets it."""

    is_held_back = True
    content = b""
    """The body, there after ``begin``."""

    async def _begin(self) -> None:
        open_call = self.open_call
        answer = await self.attempts.send("application/json")
        open_call.first_byte_at = time.monotonic()
        self.content, metered = await self._read_whole(answer)
        open_call.route.sent.upstream_request_id = metered.upstream_request_id
        if metered.is_error or answer.status != OK_STATUS:
            failure = failed_response(self.content)
            raise failure or UpstreamError("Venice's answer is not a completion.")
        open_call.end(Outcome.OK, answer.status)
        self.headers = answer.headers
        self.cost = self._cost_by(metered)

    async def pass_to(self, sink: Sink) -> None:
        """See :meth:`AnswerRelay.pass_to`; one chunk."""
        sink.write(self.content)

    def _chargeable(self, metered: Metered, outcome: Outcome) -> Metered | None:
        if self.metered is not None:
            return metered
        if outcome in ENDED_HERE:
            # Nothing was counted, and Venice may have gone on: leaving saves no money.
            return None
        if outcome is Outcome.INTERNAL_ERROR or not self.open_call.has_failed:
            return metered.without_counts()
        return metered
