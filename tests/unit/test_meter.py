"""The meter reads the same usage and cost however a stream is cut into chunks."""

import itertools
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.upstream import StreamMeter, read_plain
from service.upstream.meter import MAX_HELD_BYTES, TAIL_BYTES

TOKENS = b"".join(
    b'data: {"id":"chat-1","model":"m","choices":[{"delta":{"content":"w%d data: "}}]}\n\n' % n
    for n in range(20)
)
USAGE = (
    b'data: {"id":"chat-1","model":"m","choices":[],"usage":{"prompt_tokens":7,'
    b'"completion_tokens":20},"cost":{"usd":0.0000125,"diem":0.5}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def metered_of(*chunks):
    """Feed the chunks to a meter; returns its result."""
    meter = StreamMeter()
    for chunk in chunks:
        meter.feed(chunk)
    return meter.result()


@given(st.lists(st.integers(0, len(TOKENS + USAGE + DONE)), max_size=40))
def test_any_cut_reads_the_same(cuts):
    """Usage and cost do not depend on how the bytes are cut."""
    stream = TOKENS + USAGE + DONE
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in itertools.pairwise(edges)]

    metered = metered_of(*chunks)

    assert (metered.usage.prompt_tokens, metered.usage.completion_tokens) == (7, 20)
    assert metered.cost_usd == Decimal("0.5000125")
    assert (metered.is_complete, metered.is_error) == (True, False)
    assert (metered.upstream_request_id, metered.model) == ("chat-1", "m")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_any_line_ending_reads_the_same(ending, mark):
    """The last lines are found with any line ending, with or without a byte order mark."""
    metered = metered_of(mark + (TOKENS + USAGE + DONE).replace(b"\n", ending))

    assert (metered.usage.prompt_tokens, metered.usage.completion_tokens) == (7, 20)
    assert (metered.is_complete, metered.is_error) == (True, False)


@given(st.lists(st.integers(1, 3 * TAIL_BYTES), max_size=20))
def test_any_cut_counts_the_same(cuts):
    """The count of a long stream without usage does not depend on how the bytes are cut."""
    stream = TOKENS * (3 * TAIL_BYTES // len(TOKENS))
    edges = [0, *sorted(cuts), len(stream)]

    metered = metered_of(*(stream[start:end] for start, end in itertools.pairwise(edges)))

    assert metered.counted_tokens == stream.count(b'"choices"')


def test_a_cut_stream_is_counted():
    """Without usage, the events are counted."""
    metered = metered_of(TOKENS[: len(TOKENS) - 30])

    assert metered.usage is None
    assert metered.counted_tokens == 20
    assert not metered.is_complete
    assert metered.model == "m"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("times", [1, 3 * TAIL_BYTES // len(TOKENS)])
def test_events_are_counted_by_any_line_ending(ending, mark, times):
    """Events are counted at any line ending, also those before the kept tail."""
    stream = mark + TOKENS.replace(b"\n", ending) * times

    assert metered_of(stream).counted_tokens == 20 * times
    assert metered_of(
        *[stream[at : at + 999] for at in range(0, len(stream), 999)]
    ).counted_tokens == (20 * times)


def test_whole_events_are_given_and_the_last_without_its_end():
    """The meter returns whole events unchanged, and the last one at the end."""
    meter = StreamMeter()

    assert meter.feed(TOKENS + USAGE[:9]) == TOKENS
    assert meter.feed(USAGE[9:-2]) == b""
    assert meter.result().usage.completion_tokens == 20
    assert meter.end() == USAGE[:-2]
    assert meter.end() == b""
    assert meter.result().usage.completion_tokens == 20


def test_an_error_within_the_stream_is_seen():
    """An in-band error makes the outcome an error although the status was 200."""
    metered = metered_of(
        TOKENS, b'data: {"error":{"message":"x","code":"model_overloaded"}}\n\n', DONE
    )

    assert metered.is_error
    assert metered.counted_tokens == 21


def test_a_long_stream_is_not_kept():
    """Only a tail of the stream is kept, and usage is found in it."""
    meter = StreamMeter()
    for _ in range(1000):
        meter.feed(TOKENS)

    assert meter._tail_bytes < TAIL_BYTES + len(TOKENS)
    assert meter.result().counted_tokens == 20_000
    meter.feed(USAGE + DONE)
    assert meter.result().usage.completion_tokens == 20


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_very_large_event_is_searched_at_its_end(is_whole):
    """An event of megabytes is neither kept nor decoded, and the usage at its end is found."""
    meter = StreamMeter(64 * MAX_HELD_BYTES)
    meter.feed(TOKENS)
    event = b'data: {"text":"%b","usage":{"prompt_tokens":7,"completion_tokens":20}}' % (
        b"x" * 4 * MAX_HELD_BYTES
    )
    for start in range(0, len(event), TAIL_BYTES):
        meter.feed(event[start : start + TAIL_BYTES])
    if is_whole:
        meter.feed(b"\n\n")

    assert meter._tail_bytes <= MAX_HELD_BYTES
    assert meter.result().usage.completion_tokens == 20
    assert meter.result().is_complete == is_whole


@pytest.mark.parametrize(
    ("content", "is_error"),
    [(b"<html>", True), (b"[1]", True), (b'{"error":"busy"}', True), (b'{"id":"x"}', False)],
)
def test_plain_answers(content, is_error):
    """A plain answer that is no JSON object, or holds an error, is an error."""
    assert read_plain(content).is_error is is_error


def test_plain_usage():
    """Usage and cost of a plain answer, to the last digit."""
    metered = read_plain(
        b'{"id":"c","model":"m","usage":{"prompt_tokens":3,"completion_tokens":4,'
        b'"prompt_tokens_details":{"cached_tokens":2}},"cost":{"usd":0.123456789,"diem":0}}'
    )

    assert metered.cost_usd == Decimal("0.123456789")
    assert metered.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize(
    ("member", "usage", "cost_usd"),
    [
        (b'"usage":{"prompt_tokens":-1}', None, Decimal("0.5")),
        (b'"usage":{"prompt_tokens":99999999999999999999}', None, Decimal("0.5")),
        (b'"usage":{"prompt_tokens":1.5}', None, Decimal("0.5")),
        (b'"usage":[]', None, Decimal("0.5")),
        (b'"cost":{"usd":"NaN"}', 7, None),
        (b'"cost":{"usd":-1}', 7, None),
        (b'"cost":{"usd":1e30}', 7, None),
        (b'"cost":{"usd":1,"diem":"Infinity"}', 7, None),
        (b'"cost":{"usd":1e9999999}', 7, None),
        (b'"cost":{"usd":1e9999999,"diem":"NaN"}', 7, None),
        (b'"\xff":[],"id":5', 7, Decimal("0.5")),
        (b'"cost":5', 7, None),
        (b'"id":5', 7, Decimal("0.5")),
        (b'"duration":"NaN"', 7, Decimal("0.5")),
        (b'"model":{"name":"m"}', 7, Decimal("0.5")),
    ],
)
def test_an_invalid_member_does_not_discard_the_others(member, usage, cost_usd):
    """An impossible number counts as missing; the rest of the answer is still read."""
    sound = [
        b'"usage":{"prompt_tokens":7,"completion_tokens":20}',
        b'"cost":{"usd":0.5}',
        b'"id":"chat-1"',
        b'"model":"m"',
    ]
    name = member.partition(b":")[0]
    members = [member, *(other for other in sound if not other.startswith(name))]
    answer = b"{" + b",".join(members) + b"}"

    for metered in (read_plain(answer), metered_of(b"data: " + answer + b"\n\n" + DONE)):
        assert (metered.usage and metered.usage.prompt_tokens) == usage
        assert metered.cost_usd == cost_usd
        assert metered.upstream_request_id == (None if name == b'"id"' else "chat-1")
        assert metered.model == (None if name == b'"model"' else "m")
        assert not metered.is_error


def test_names_fit_the_books():
    """NULs are removed from names, and names are cut to 256 characters."""
    metered = read_plain(b'{"id":"a\\u0000b","model":"' + b"m" * 1000 + b'"}')

    assert metered.upstream_request_id == "ab"
    assert len(metered.model) == 256


def typed(kind, **members):
    """An event of the Responses API."""
    data = json.dumps({"type": kind, **members})
    return f"event: {kind}\ndata: {data}\n\n".encode()


DELTAS = [typed("response.output_text.delta", delta=f"w{n}") for n in range(5)]
RESPONSE = {
    "id": "resp_1",
    "model": "m",
    "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
}


@pytest.mark.parametrize(
    ("last", "is_error"),
    [("completed", False), ("incomplete", False), ("failed", True)],
)
def test_typed_events(last, is_error):
    """The last event of a response has its usage; there is no [DONE]."""
    metered = metered_of(*DELTAS, typed(f"response.{last}", response=RESPONSE))

    assert (metered.upstream_request_id, metered.model) == ("resp_1", "m")
    assert (metered.usage.all_tokens, metered.is_complete) == (12, True)
    assert metered.is_error is is_error


def test_typed_events_that_are_cut():
    """Events of a cut response are counted, and the response is not complete."""
    metered = metered_of(*DELTAS)

    assert (metered.counted_tokens, metered.is_complete, metered.usage) == (5, False, None)


def test_a_last_event_that_is_longer_than_the_tail():
    """Usage is found by its name in the kept end of a long last event."""
    response = {"output": ["x" * TAIL_BYTES], **RESPONSE}
    metered = metered_of(*DELTAS, typed("response.completed", response=response))

    assert (metered.usage.all_tokens, metered.is_complete) == (12, True)


def test_usage_in_what_a_caller_wrote_saves_nothing():
    """A long last event may repeat a caller's text with usage in it; the largest usage counts."""
    echoed = {"usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}
    response = {"output": ["x" * TAIL_BYTES], **RESPONSE, "metadata": echoed}
    metered = metered_of(*DELTAS, typed("response.completed", response=response))

    assert metered.usage.all_tokens == 12


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from(["a", '"', "\\", "\ud83d", "\ude00", "😀", "\0", "\n"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "cost", "usd", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["id", "model", "usage", "choices", "error", "duration", "type", "deep", "\ud83d"]
)
AMOUNT = st.decimals(0, 1000, places=12) | st.sampled_from(
    [Decimal("1e-12"), Decimal(0), Decimal(10**6)]
)


def stated_cost(amount, odd, *, is_text):
    """Return the JSON of a cost, with the amount as a number or as text."""
    usd = f'"{amount}"' if is_text else f"{amount}"
    return f'{{"usd":{usd},"diem":{json.dumps(odd)}}}'


@given(
    st.dictionaries(NAMES, ODD, max_size=5),
    AMOUNT,
    st.sampled_from([None, 0, "x", [], {"a": 1}]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3000),
)
def test_a_stated_cost_is_read_whatever_stands_beside_it(
    members, amount, odd, is_text, is_first, depth
):
    """A stated cost is read from a plain answer and from the last events of a stream."""
    others = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in members.items()]
    others.append('"nested":' + "[" * depth + "]" * depth)
    cost = '"cost":' + stated_cost(amount, odd, is_text=is_text)
    parts = [cost, *others] if is_first else [*others, cost]
    answer = ("{" + ",".join(parts) + "}").encode()

    # Zero beside an amount that cannot be read is no cost.
    known = amount if amount or odd in (None, 0) else None
    assert read_plain(answer).cost_usd == known
    events = (
        TOKENS + b"data: " + answer + b"\n\n" + b'data: {"choices":[]}\n\n' * (depth % 20) + DONE
    )
    assert metered_of(events).cost_usd == known
    assert metered_of(*(events[at : at + 7] for at in range(0, len(events), 7))).cost_usd == known


def test_usage_before_more_output_is_not_final():
    """Usage is not final when output follows, even if the event had a finish reason."""
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    event = b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"
    assert metered_of(TOKENS, event).is_final
    metered = metered_of(event, TOKENS)
    assert (metered.is_final, metered.output_tokens) == (False, None)
    assert metered.usage.all_input_tokens == 10


@given(st.integers(0, len(TOKENS + USAGE + DONE)))
def test_a_truncated_stream_is_not_final(cut):
    """A result is final only once the cost is complete."""
    metered = metered_of((TOKENS + USAGE + DONE)[:cut])
    spent_at = len(TOKENS) + USAGE.rindex(b"}")

    assert metered.is_final is (cut > spent_at)
    if not metered.is_final:
        assert metered.without_counts().counted_tokens is None
