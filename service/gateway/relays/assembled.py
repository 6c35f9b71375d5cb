"""JSON that takes so long that Venice is asked for events, which are put together here."""

from service.errors import UpstreamError
from service.gateway.assembly import Assembly
from service.gateway.relays.stream import StreamRelay
from service.upstream import PLAIN_BODY_BYTES, Sink, split_at_error


class AssembledRelay(StreamRelay):
    """Puts the events of a stream together to the one answer that the caller asked for."""

    is_held_back = True
    # An event is needed whole; the size of the answer bounds it.
    max_event_bytes = PLAIN_BODY_BYTES
    content: bytes | None = None
    """The body; None while Venice is at it."""

    async def begin(self, patience_s: float) -> None:
        """See :meth:`AnswerRelay.begin`. After the first byte the answer has ``patience_s`` to be
        complete; ``wait`` returns one that takes longer."""
        await super().begin(patience_s)
        self.headers = {**self.headers, "Content-Type": "application/json"}
        self.is_held_back = await self._run_apart(self._assemble(), patience_s)

    async def wait(self, timeout_s: float) -> bytes | None:
        """The body; None if it is not there within so many seconds.

        :raises UpstreamError: when the answer fails.
        """
        await self._is_done_within(timeout_s)
        return self.content

    async def pass_to(self, sink: Sink) -> None:
        """See :meth:`AnswerRelay.pass_to`; one chunk."""
        await self._is_done_within(None)
        if self.content:
            sink.write(self.content)

    async def _assemble(self) -> None:
        assembly: Assembly = self.open_call.route.call.endpoint.assembly()
        size = len(self._first_events)
        await self._feed(assembly, self._first_events)
        while chunk := await self._answer.next_chunk():
            events = self.meter.feed(chunk)
            size += len(chunk)
            # The assembled answer is never larger than its events.
            if size > PLAIN_BODY_BYTES:
                raise UpstreamError("Venice's answer is too large.")
            await self._feed(assembly, events)
        await self._feed(assembly, self.meter.end())
        metered = self._meter_end()
        content = assembly.result()
        self._record_end(metered)
        self.cost = self._cost_by(metered)
        self.content = content

    async def _feed(self, assembly: Assembly, events: bytes) -> None:
        _, error = split_at_error(events)
        if error is not None:
            await self._fail_in_band(error)
        assembly.feed(events)
