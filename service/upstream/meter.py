"""Usage and cost, read off an answer without re-encoding it.

Venice ends every stream with a chunk that has ``usage`` and ``cost``, so a stream needs no decoding
on its way: a tail is kept, and its last events are decoded once at the end. When the numbers are
missing, the events that went by are what there is to go on: they are counted in the bytes.
"""

import contextlib
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Final

import msgspec

from service.formats import sse
from service.formats.sse import EventReader
from service.upstream.lenient import ABSENT, UNREADABLE, Lenient

TAIL_BYTES: Final = 64 * 1024
LAST_EVENTS: Final = 8
"""How many events from the end are looked at for usage."""
FIRST_LINES: Final = (sse.DATA, sse.BYTE_ORDER_MARK + sse.DATA)
"""How a run of events starts whose first line is one of data."""
MAX_HELD_BYTES: Final = 1024 * 1024

Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
MOST_USD: Final = Decimal(1_000_000)
"""Nothing costs as much; a cost beyond it is no cost."""
MOST_NAME_CHARACTERS: Final = 256
MAX_SECONDS: Final = Decimal(10**7)
LAST_EVENT_TYPES: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed"}
)
"""The events that end a stream of the Responses API."""
# Of the Responses API the last event repeats the whole answer, which no tail may hold; a quote
# within a text would be escaped, so this is a member.
USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
# Something that a model made: a text that is not empty, a call of a tool, an answer to a question.
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
"""With which byte the members begin that make an answer one."""
# An id stands before everything that a model wrote.
FIRST_ID: Final = re.compile(rb'"id"\s*:\s*"([\w.:-]{1,256})"')
FIRST_BYTES: Final = 4096
MODEL_HEADER: Final = "x-venice-model-id"
COST_HEADER: Final = "x-venice-rpc-cost-usd"
WITHHELD_HEADER: Final = "x-venice-is-content-violation"


class CachedDetails(msgspec.Struct):
    """Parts of the input tokens."""

    cached_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class UsageObject(msgspec.Struct):
    """``usage``: of a chat completion or embeddings, or by the names of a response's."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: CachedDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: CachedDetails | None = None

    @property
    def all_input_tokens(self) -> int | None:
        """Tokens of the prompt, the cached ones among them; None where that is not stated."""
        return self.prompt_tokens or self.input_tokens or self.prompt_tokens

    @property
    def all_output_tokens(self) -> int | None:
        """Tokens that were made, those of reasoning among them; None where that is not stated."""
        return self.completion_tokens or self.output_tokens or self.completion_tokens

    @property
    def all_tokens(self) -> int:
        """Input and output, as far as they are stated."""
        return (self.all_input_tokens or 0) + (self.all_output_tokens or 0)

    @property
    def is_whole(self) -> bool:
        """Whether both input and output are stated."""
        return self.all_input_tokens is not None and self.all_output_tokens is not None

    @property
    def cached_tokens(self) -> int:
        """How much of the input came from a cache."""
        return self._details.cached_tokens or 0

    @property
    def cache_write_tokens(self) -> int:
        """How much of the input was written to a cache."""
        return self._details.cache_creation_input_tokens or 0

    @property
    def _details(self) -> CachedDetails:
        return self.prompt_tokens_details or self.input_tokens_details or CachedDetails()

    def add(self, earlier: "UsageObject") -> None:
        """Take the counts that an earlier event stated and this one does not."""
        for name in self.__struct_fields__:
            if getattr(self, name) is None:
                setattr(self, name, getattr(earlier, name))


AMOUNT: Final = msgspec.json.Decoder(Decimal)


class CostObject(msgspec.Struct):
    """``cost``: what was charged, split by currency. One DIEM is one dollar of credit."""

    usd: msgspec.Raw = ABSENT
    diem: msgspec.Raw = ABSENT

    def total_usd(self) -> Decimal | None:
        """The sum of what can be read. None when nothing is stated, when an amount is none that
        anything costs, or when zero is all that can be read of two amounts."""
        amounts = []
        is_partial = False
        for raw in (self.usd, self.diem):
            if bytes(raw) == b"null":
                continue
            try:
                amounts.append(AMOUNT.decode(raw))
            except UNREADABLE:
                is_partial = True
        total = _sum_usd(amounts)
        return None if is_partial and not total else total


def _sum_usd(amounts: Sequence[Decimal]) -> Decimal | None:
    # Checked before they are added: there are numbers that no sum can have.
    if not amounts or not all(map(Decimal.is_finite, amounts)):
        return None
    if min(amounts) < 0 or max(amounts) > MOST_USD:
        return None
    total = sum(amounts, Decimal(0))
    return total if total <= MOST_USD else None


class Facts(msgspec.Struct):
    """What is read of an answer or of a stream's chunk."""

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


# Made once: they are asked of every answer.
FACTS: Final = Lenient(Facts)
USAGE_OBJECT: Final = Lenient(UsageObject)


def _name(stated: str | None) -> str | None:
    """A name that the books can take: text of PostgreSQL holds no NUL."""
    return stated[:MOST_NAME_CHARACTERS].replace("\0", "") or None if stated else None


class Metered(msgspec.Struct, kw_only=True):
    """What an answer states about its usage and cost.

    ``counted_tokens`` is the output that went by, for want of usage; None where it was not counted,
    so that it may be all that the call was allowed.
    """

    upstream_request_id: str | None = None
    model: str | None = None
    usage: UsageObject | None = None
    cost_usd: Decimal | None = None
    duration_s: Decimal | None = None
    """Seconds of sound that were heard."""
    counted_tokens: int | None = 0
    has_output: bool = False
    """Whether output went by, where usage states that there is none."""
    is_error: bool = False
    is_complete: bool = False
    """Whether the answer came to its end."""
    is_final: bool = False
    """Whether nothing that is charged comes after what was read, be there an end or not."""
    is_withheld: bool = False
    """Whether Venice gave something else than was asked for, and charged nothing."""

    @property
    def output_tokens(self) -> int | None:
        """The output by Venice's count, if it states one."""
        return None if self.usage is None else self.usage.all_output_tokens

    def without_counts(self) -> "Metered":
        """A copy without usage and cost, for an answer that was left before its end: what it stated
        by then is not final."""
        return msgspec.structs.replace(self, usage=None, cost_usd=None, counted_tokens=None)

    def take(self, facts: Facts) -> None:
        """Note what an object says. What is known already, from later on, stays."""
        if facts.type in LAST_EVENT_TYPES:
            self.is_complete = self.is_final = True
            self.is_error = self.is_error or facts.type == "response.failed"
        if facts.response is not None:
            self.take(facts.response)
            return
        # A job is asked for by the id of the queue, whatever else its answer names.
        self.upstream_request_id = (
            self.upstream_request_id or _name(facts.queue_id) or _name(facts.id)
        )
        self.model = self.model or _name(facts.model)
        if self.usage is None:
            self.usage = facts.usage
            # Some streams state what was used by then, time and again.
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
    """What the headers of an answer say of it, where its body says nothing."""
    metered = Metered(is_complete=True, is_final=True, model=headers.get(MODEL_HEADER))
    metered.is_withheld = headers.get(WITHHELD_HEADER, "").lower() == "true"
    metered.cost_usd = _header_cost(headers)
    return metered


def _header_cost(headers: Mapping[str, str]) -> Decimal | None:
    try:
        return _sum_usd([Decimal(headers.get(COST_HEADER, ""))])
    except ArithmeticError:
        return None


def stated_cost(headers: Mapping[str, str], body: bytes) -> Decimal | None:
    """The cost that a failed answer states, in US dollars."""
    try:
        cost = FACTS.decode(body).cost
    except UNREADABLE:
        cost = None
    return _header_cost(headers) if cost is None else cost.total_usd()


def read_plain(body: bytes, member: str | None = None) -> Metered:
    """Read the usage and cost of a plain answer. One that is no JSON object, that states an error,
    or that has no ``member`` of its kind, is an error."""
    # No token has less than a byte.
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
    if not metered.output_tokens:
        metered.has_output = OUTPUT.search(body) is not None
    return metered


def _read_odd(body: bytes) -> Metered:
    """What is stated by a body that is no JSON object, if it begins with one or is made of events.
    Usage alone may be part of a text."""
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
    """Reads a stream of server-sent events: gives its whole events, and keeps the last of them for
    what they state. An event that is longer than ``max_held_bytes`` is given in pieces."""

    def __init__(self, max_held_bytes: int = MAX_HELD_BYTES) -> None:
        self._reader = EventReader(max_held_bytes)
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._events_before_tail = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, which may end anywhere, and return the events that are whole by now,
        byte for byte."""
        events = self._reader.feed(chunk)
        if events:
            self._tail.append(events)
            self._tail_bytes += len(events)
            while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
                seen = self._tail.popleft()
                self._tail_bytes -= len(seen)
                self._events_before_tail += _count_events(seen)
        return events

    def end(self) -> bytes:
        """Return what is left when the stream has ended: an event without its end."""
        left = self._reader.end()
        self._tail.append(left)
        self._tail_bytes += len(left)
        return left

    def first_id(self) -> str | None:
        """The id of the answer, if the first bytes have it whole."""
        first = b"".join([*self._tail, self._reader.held])
        found = FIRST_ID.search(first[:FIRST_BYTES])
        return found[1].decode() if found else None

    def result(self) -> Metered:
        """What the stream states by now, from its last events."""
        tail = b"".join([*self._tail, self._reader.held])
        metered, least_output_tokens = _read_last_events(tail)
        if tail[:1] == b"{":
            # A plain answer may come with another type than its own, or with none.
            with contextlib.suppress(*UNREADABLE):
                metered.take(FACTS.decode(tail))
        if not metered.is_complete and ENDED.search(tail):
            # Something came after the end.
            metered.is_complete = metered.is_final = True
        if metered.usage is None:
            # What a caller wrote may be repeated there too, so the most counts.
            usages = []
            for stated in USAGE.findall(tail):
                with contextlib.suppress(*UNREADABLE):
                    usages.append(USAGE_OBJECT.decode(stated))
            metered.usage = max(usages, key=lambda usage: usage.all_tokens, default=None)
            if metered.usage is not None and tail.endswith(sse.EVENT_ENDS):
                metered.is_complete = metered.is_final = True
        if not metered.output_tokens:
            # Each event carries a token or more, save [DONE].
            events = self._events_before_tail + _count_events(tail)
            metered.counted_tokens = max(least_output_tokens, events - metered.is_complete)
            metered.has_output = self._events_before_tail > 0 or OUTPUT.search(tail) is not None
        return metered


def _count_events(events: bytes) -> int:
    """Count lines of data. An event has one, as a rule."""
    count = events.count(b"\ndata:") + events.startswith(FIRST_LINES)
    return count + events.count(b"\rdata:") if b"\r" in events else count


def _read_last_events(tail: bytes) -> tuple[Metered, int]:
    """What the last few events of a stream state, and those before them where it is nothing; and
    how much output was stated before more of it came, if that was all that is stated."""
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
    if metered.usage is not None and FINISHED.search(tail):
        metered.is_final = True
    if metered.usage is not None and is_output_old:
        least_output_tokens = metered.usage.all_output_tokens or 0
        metered.usage.completion_tokens = metered.usage.output_tokens = None
        metered.is_final = metered.is_complete
    return metered, least_output_tokens


def _facts_from_the_end(tail: bytes) -> Iterator[tuple[Facts | None, bytes]]:
    """What each event states that can be read, the last one first; None of the end. A stream that
    is cut ends within an event, which then states nothing."""
    for event in sse.split_backwards(tail):
        for number, text in enumerate(sse.texts_of(event)):
            if text.strip() == sse.DONE:
                yield None, text
                continue
            with contextlib.suppress(*UNREADABLE):
                yield FACTS.decode(text), text
                if number == 0:
                    # The event can be read, so its lines are parts of one text.
                    break
