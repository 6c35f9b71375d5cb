"""Reads usage and cost from Venice's answers without re-encoding them.

Venice ends every stream with an event that has ``usage`` and ``cost``. So the events of a stream
are not decoded as they arrive: the meter keeps a tail, and decodes its last events once at the end.
When the numbers are missing, the output is estimated by the number of events.
"""

import contextlib
import re
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Final

import msgspec

from service.formats import sse
from service.formats.lenient import ABSENT, UNREADABLE, Lenient
from service.formats.sse import EventReader

TAIL_BYTES: Final = 64 * 1024
LAST_EVENTS: Final = 8
"""How many events from the end are searched for usage."""
FIRST_LINES: Final = (sse.DATA, sse.BYTE_ORDER_MARK + sse.DATA)
"""How a run of events starts if its first line is data."""
MAX_HELD_BYTES: Final = 1024 * 1024

Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
NO_USD: Final = Decimal(0)
MAX_USD: Final = Decimal(1_000_000)
"""No call costs as much. A higher stated cost is ignored."""
MAX_NAME_CHARACTERS: Final = 256
MAX_SECONDS: Final = Decimal(10**7)
FAILURE_TYPES: Final = frozenset({"response.failed", "error"})
LAST_EVENT_TYPES: Final = FAILURE_TYPES | {"response.completed", "response.incomplete"}
"""The events that end a stream of the Responses API."""
# The last event of the Responses API repeats the whole answer, so the tail may hold only a part of
# it. A quote within a text would be escaped, so a match is a member.
USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
# Output of a model: a text that is not empty, a tool call, an answer to a question.
OUTPUT: Final = re.compile(
    rb'"(?:content|reasoning|reasoning_content|refusal|arguments|text|delta|encrypted_content)"'
    rb'\s*:\s*"(?!")'
    rb'|"(?:tool_calls|content|reasoning_details|data)"\s*:\s*\[\s*[^\]\s]'
    rb'|"answers"\s*:\s*\{\s*"'
)
ENDED: Final = re.compile(rb"(?:^|[\r\n])data:[ \t]*\[DONE\][ \t]*(?:[\r\n]|$)")
FINISHED: Final = re.compile(rb'"finish_reason"\s*:\s*"')
OPENINGS: Final = {
    "choices": b"[",
    "output": b"[",
    "data": b"[",
    "answers": b"{",
    "text": b'"',
}
"""The first byte of the member that an answer must have."""
# An id precedes all output of the model.
FIRST_ID: Final = re.compile(rb'"id"\s*:\s*"([\w.:-]{1,256})"')
FIRST_BYTES: Final = 4096
MODEL_HEADER: Final = "x-venice-model-id"
COST_HEADER: Final = "x-venice-rpc-cost-usd"
WITHHELD_HEADER: Final = "x-venice-is-content-violation"


class CachedDetails(msgspec.Struct):
    """The input tokens that were read from the cache or written to it."""

    cached_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


NO_DETAILS: Final = CachedDetails()


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens that an answer states. Input and output are None if not stated; the input includes
    what was read from the cache or written to it."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class UsageObject(msgspec.Struct):
    """``usage``, by the names of chat completions and embeddings or by those of responses."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: CachedDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: CachedDetails | None = None

    @property
    def all_input_tokens(self) -> int | None:
        """Tokens of the prompt, cached tokens included; None if not stated."""
        return self.prompt_tokens or self.input_tokens or self.prompt_tokens

    @property
    def all_output_tokens(self) -> int | None:
        """Generated tokens, reasoning included; None if not stated."""
        return self.completion_tokens or self.output_tokens or self.completion_tokens

    @property
    def all_tokens(self) -> int:
        """The sum of input and output. What is not stated counts as zero."""
        return (self.all_input_tokens or 0) + (self.all_output_tokens or 0)

    @property
    def is_whole(self) -> bool:
        """Whether both input and output are stated."""
        return self.all_input_tokens is not None and self.all_output_tokens is not None

    def counts(self) -> "TokenCounts":
        """The counts, by whichever names they are stated."""
        details = self.prompt_tokens_details or self.input_tokens_details or NO_DETAILS
        return TokenCounts(
            input_tokens=self.prompt_tokens or self.input_tokens or self.prompt_tokens,
            output_tokens=self.completion_tokens or self.output_tokens or self.completion_tokens,
            cached_tokens=details.cached_tokens or 0,
            cache_write_tokens=details.cache_creation_input_tokens or 0,
        )

    def add(self, earlier: "UsageObject") -> None:
        """Take the counts that are missing here from an earlier event."""
        for name in self.__struct_fields__:
            if getattr(self, name) is None:
                setattr(self, name, getattr(earlier, name))


AMOUNT: Final = msgspec.json.Decoder(Decimal)


class CostObject(msgspec.Struct):
    """``cost``: the charge, split by currency. One DIEM is one dollar of credit."""

    usd: msgspec.Raw = ABSENT
    diem: msgspec.Raw = ABSENT

    def total_usd(self) -> Decimal | None:
        """The sum of the amounts that can be read. None if there is no amount, if one is negative
        or too high, or if the sum is zero and one amount cannot be read."""
        total, has_amount, is_partial = NO_USD, False, False
        for raw in (self.usd, self.diem):
            if raw is ABSENT or bytes(raw) == b"null":
                continue
            try:
                amount = AMOUNT.decode(raw)
            except UNREADABLE:
                is_partial = True
                continue
            # Checked before it is added: Decimal cannot add some of the numbers that JSON can hold.
            if not amount.is_finite() or not NO_USD <= amount <= MAX_USD:
                return None
            total, has_amount = total + amount, True
        if not has_amount or total > MAX_USD or (is_partial and not total):
            return None
        return total


class Facts(msgspec.Struct):
    """The members of an answer, or of an event, that the meter reads."""

    id: str | None = None
    queue_id: str | None = None
    model: str | None = None
    usage: UsageObject | None = None
    cost: CostObject | None = None
    duration: Decimal | None = None
    error: msgspec.Raw = ABSENT
    type: str | None = None
    response: "Facts | None" = None
    choices: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    data: msgspec.Raw = ABSENT
    answers: msgspec.Raw = ABSENT
    text: msgspec.Raw = ABSENT


# Built once, since every answer needs them.
FACTS: Final = Lenient(Facts)
USAGE_OBJECT: Final = Lenient(UsageObject)


def _name(stated: str | None) -> str | None:
    """The name as PostgreSQL can store it: not too long, and without NUL."""
    return stated[:MAX_NAME_CHARACTERS].replace("\0", "") or None if stated else None


class Metered(msgspec.Struct, kw_only=True):
    """What an answer states about its usage and cost.

    ``counted_tokens`` estimates the output if there is no usage. None: the output was not counted,
    so it may be as much as the call was allowed.
    """

    upstream_request_id: str | None = None
    model: str | None = None
    usage: UsageObject | None = None
    cost_usd: Decimal | None = None
    duration_s: Decimal | None = None
    """Seconds of audio that were transcribed."""
    counted_tokens: int | None = 0
    has_output: bool = False
    """Whether there was output, although the usage states none."""
    is_error: bool = False
    is_complete: bool = False
    """Whether the answer arrived in full."""
    is_final: bool = False
    """Whether all that is charged was read, whether or not the answer arrived in full."""
    is_withheld: bool = False
    """Whether Venice withheld the answer and charged nothing."""

    @property
    def output_tokens(self) -> int | None:
        """Venice's count of the output; None if not stated."""
        return None if self.usage is None else self.usage.all_output_tokens

    def without_counts(self) -> "Metered":
        """A copy without usage and cost, for an answer that was abandoned: the numbers that it has
        stated so far are not final."""
        return msgspec.structs.replace(self, usage=None, cost_usd=None, counted_tokens=None)

    def take(self, facts: Facts) -> None:
        """Take the facts of an event. Facts of later events, which come first, are kept."""
        if facts.type in LAST_EVENT_TYPES:
            self.is_complete = self.is_final = True
            self.is_error = self.is_error or facts.type in FAILURE_TYPES
        if facts.response is not None:
            self.take(facts.response)
            return
        # Jobs are looked up by their queue id, even if the answer has another id.
        self.upstream_request_id = (
            self.upstream_request_id
            or (facts.queue_id and _name(facts.queue_id))
            or _name(facts.id)
        )
        self.model = self.model or _name(facts.model)
        if self.usage is None:
            self.usage = facts.usage
            # Some streams repeat the usage so far, again and again.
            is_last = facts.cost is not None or FINISHED.search(facts.choices) is not None
            self.is_final = self.is_final or (self.usage is not None and is_last)
        elif facts.usage is not None:
            self.usage.add(facts.usage)
        if facts.error is not ABSENT and bytes(facts.error) != b"null":
            self.is_error = True
        if self.cost_usd is None and facts.cost is not None:
            self.cost_usd = facts.cost.total_usd()
        seconds = facts.duration
        if self.duration_s is None and seconds is not None and seconds.is_finite():
            self.duration_s = seconds if 0 < seconds <= MAX_SECONDS else None


def read_headers(headers: Mapping[str, str]) -> Metered:
    """Meter an answer by its headers, for bodies that state no usage."""
    metered = Metered(is_complete=True, is_final=True, model=headers.get(MODEL_HEADER))
    metered.is_withheld = headers.get(WITHHELD_HEADER, "").lower() == "true"
    metered.cost_usd = _header_cost(headers)
    return metered


def _header_cost(headers: Mapping[str, str]) -> Decimal | None:
    try:
        amount = Decimal(headers.get(COST_HEADER, ""))
    except ArithmeticError:
        return None
    return amount if amount.is_finite() and NO_USD <= amount <= MAX_USD else None


def stated_cost(headers: Mapping[str, str], body: bytes) -> Decimal | None:
    """The cost in US dollars that a failed answer states; None if it states none."""
    try:
        cost = FACTS.decode(body).cost
    except UNREADABLE:
        cost = None
    return _header_cost(headers) if cost is None else cost.total_usd()


def read_plain(body: bytes, member: str | None = None) -> Metered:
    """Meter a plain answer. It is an error if it is not a JSON object, if it states an error, or if
    it lacks ``member``."""
    # A token has at least one byte.
    metered = Metered(is_complete=True, is_final=True, counted_tokens=len(body))
    try:
        facts = FACTS.decode(body)
    except UNREADABLE:
        return _read_odd(body)
    metered.take(facts)
    if metered.is_error:
        metered.counted_tokens = 0
    elif member is not None and not _has(facts, member):
        metered.is_error, metered.counted_tokens = True, None
    usage = metered.usage
    if usage is None or not (usage.completion_tokens or usage.output_tokens):
        metered.has_output = OUTPUT.search(body) is not None
    return metered


def _read_odd(body: bytes) -> Metered:
    """Meter a body that is not a JSON object, if it begins with one or consists of events. Usage
    without a cost is ignored, since it may be part of a text."""
    try:
        metered = Metered()
        metered.take(FACTS.decode_first(body))
    except UNREADABLE:
        meter = StreamMeter()
        meter.feed(body)
        metered = meter.result()
    metered.is_error = metered.is_final = True
    metered.counted_tokens = None
    if metered.cost_usd is None:
        metered.usage = None
    return metered


def _has(facts: Facts, member: str) -> bool:
    stated = getattr(facts, member)
    if not isinstance(stated, msgspec.Raw):
        return bool(stated)
    return bytes(memoryview(stated)[:1]) == OPENINGS[member]


class StreamMeter:
    """Reads a stream of server-sent events and meters it.

    ``feed`` and ``end`` return the events byte for byte. The last of them are kept for ``result``.
    An event longer than ``max_held_bytes`` is returned in pieces.
    """

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._reader = EventReader(max_held_bytes)
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._events_before_tail = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, which may end anywhere, and return all events that are complete."""
        if events := self._reader.feed(chunk):
            self._tail.append(events)
            self._tail_bytes += len(events)
            if self._tail_bytes > TAIL_BYTES:
                self._cut_tail()
        return events

    def end(self) -> bytes:
        """Return what is left when the stream has ended: an event without its empty line."""
        left = self._reader.end()
        self._tail.append(left)
        self._tail_bytes += len(left)
        self._cut_tail()
        return left

    def _cut_tail(self) -> None:
        """Keep the end of the stream: about TAIL_BYTES, or a larger event that ``result`` can still
        decode without holding up the event loop."""
        tail = self._tail
        if len(tail[-1]) > MAX_HELD_BYTES:
            self._events_before_tail += _count_events(tail[-1][:-TAIL_BYTES])
            self._tail_bytes -= len(tail[-1]) - TAIL_BYTES
            tail[-1] = tail[-1][-TAIL_BYTES:]
        while self._tail_bytes - len(tail[0]) >= TAIL_BYTES:
            seen = tail.popleft()
            self._tail_bytes -= len(seen)
            self._events_before_tail += _count_events(seen)

    def first_id(self) -> str | None:
        """The id of the answer, if the first bytes contain it."""
        first = b"".join([*self._tail, self._reader.held])
        found = FIRST_ID.search(first[:FIRST_BYTES])
        return found[1].decode() if found else None

    def result(self) -> Metered:
        """What the stream has stated so far."""
        tail = b"".join([*self._tail, self._reader.last_held(TAIL_BYTES)])
        metered, least_output_tokens = _read_last_events(tail)
        end = tail[-TAIL_BYTES:]
        if tail[:1] == b"{":
            # A plain answer may have the wrong content type, or none.
            with contextlib.suppress(*UNREADABLE):
                metered.take(FACTS.decode(tail))
        if not metered.is_complete and ENDED.search(end):
            # There are events after the end.
            metered.is_complete = metered.is_final = True
        if metered.usage is None:
            # The answer may repeat text of the caller that looks like usage, so the most counts.
            usages = []
            for stated in USAGE.findall(end):
                with contextlib.suppress(*UNREADABLE):
                    usages.append(USAGE_OBJECT.decode(stated))
            metered.usage = max(usages, key=lambda usage: usage.all_tokens, default=None)
            if metered.usage is not None and tail.endswith(sse.EVENT_ENDS):
                metered.is_complete = metered.is_final = True
        if not metered.output_tokens:
            # Each event except [DONE] carries at least one token.
            events = self._events_before_tail + _count_events(tail)
            metered.counted_tokens = max(least_output_tokens, events - metered.is_complete)
            is_cut = self._events_before_tail > 0 or len(tail) > len(end)
            metered.has_output = is_cut or OUTPUT.search(end) is not None
        return metered


def _count_events(events: bytes) -> int:
    """Count the lines of data, of which an event usually has one."""
    count = events.count(b"\ndata:") + events.startswith(FIRST_LINES)
    return count + events.count(b"\rdata:") if b"\r" in events else count


def _read_last_events(tail: bytes) -> tuple[Metered, int]:
    """Meter a stream by its last events, going back until usage and cost are found. If more output
    follows the usage, its count of output is returned apart: there is at least that much."""
    metered = Metered()
    decoded, least_output_tokens = 0, 0
    is_output_later = is_output_old = False
    for facts, data in _facts_from_the_end(tail):
        if facts is None:
            metered.is_complete = metered.is_final = True
            continue
        decoded += 1
        is_first = metered.usage is None
        metered.take(facts)
        if metered.usage is None:
            is_output_later = is_output_later or OUTPUT.search(data) is not None
            continue
        is_output_old = is_output_old or (is_first and is_output_later)
        if decoded >= LAST_EVENTS or (metered.cost_usd is not None and metered.usage.is_whole):
            break
    if metered.usage is not None and not metered.is_final:
        metered.is_final = FINISHED.search(tail[-TAIL_BYTES:]) is not None
    if metered.usage is not None and is_output_old:
        least_output_tokens = metered.usage.all_output_tokens or 0
        metered.usage.completion_tokens = metered.usage.output_tokens = None
        metered.is_final = metered.is_complete
    return metered, least_output_tokens


def _facts_from_the_end(tail: bytes) -> Iterator[tuple[Facts | None, bytes]]:
    """The facts and the text of each event that can be decoded, the last event first; None for the
    facts of ``[DONE]``. A stream that is cut ends within an event, which cannot be decoded."""
    for event in sse.split_backwards(tail):
        for text in reversed(sse.texts_of(event)):
            if text.strip() == sse.DONE:
                yield None, text
                continue
            with contextlib.suppress(*UNREADABLE):
                yield FACTS.decode(text), text
