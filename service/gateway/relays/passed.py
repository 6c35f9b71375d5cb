"""Bytes of any type that are passed on as they arrive; their headers state what they cost."""

import re
import time
from typing import Final

from service.errors import ServiceError, UpstreamError
from service.gateway.attempts import Attempts
from service.gateway.open_call import OpenCall
from service.gateway.relays.relay import OK_STATUS, AnswerRelay
from service.ledger import Outcome
from service.upstream import Metered, Sink, UpstreamResponse, read_headers

HTML: Final = "text/html"
JSON_TYPES: Final = ("application/json", "application/problem+json")
EMPTY_OR_ERROR: Final = re.compile(
    rb'\s*(?:(?:null|\{\s*\}|\[\s*\])\s*\Z|\{\s*"error"\s*:(?!\s*null\b))'
)
"""JSON that holds nothing, or an error in place of what was asked for."""


class PassedRelay(AnswerRelay):
    """Passes the body on as it arrives and never holds all of it."""

    _answer: UpstreamResponse
    """There after ``begin``."""

    def __init__(self, open_call: OpenCall, attempts: Attempts) -> None:
        super().__init__(open_call, attempts)
        self._first_chunk = b""

    async def _begin(self) -> None:
        open_call = self.open_call
        self._answer = answer = await self.attempts.send("*/*")
        open_call.first_byte_at = time.monotonic()
        self.metered = read_headers(answer.raw_headers)
        if open_call.route.call.endpoint.is_known:
            self._first_chunk = await answer.next_chunk()
            if answer.status != OK_STATUS or self._is_no_answer(answer.content_type):
                raise UpstreamError("Venice's answer is not what was asked for.")
        open_call.status = answer.status
        self.headers = answer.headers
        self.cost = self._cost_by(self.metered)

    def _is_no_answer(self, content_type: str) -> bool:
        """Whether the first bytes show that the answer is not what was asked for."""
        if not self._first_chunk or content_type == HTML:
            return True
        if content_type not in JSON_TYPES or self.open_call.route.call.endpoint.may_state_error:
            return False
        return EMPTY_OR_ERROR.match(self._first_chunk) is not None

    async def pass_to(self, sink: Sink) -> None:
        """See :meth:`AnswerRelay.pass_to`."""
        try:
            if self._first_chunk and not sink.write(self._first_chunk):
                await sink.drain()
            await self._answer.pass_to(sink)
        except ServiceError as error:
            self.fail(error)
            raise
        self.open_call.end(Outcome.OK, None)

    def _chargeable(self, metered: Metered, outcome: Outcome) -> Metered | None:
        # Without headers nothing was counted, and Venice may have gone on.
        return self.metered
