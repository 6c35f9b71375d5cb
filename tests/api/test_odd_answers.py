"""Responses that Venice should not send: what the caller gets and what is recorded.

The ledger has the cost that Venice states, in full, whatever else is wrong with the response.
Without one, plausible usage is priced; missing usage is estimated, and never below what may have
been charged.
"""

import asyncio
import gzip
import json
import zlib
from decimal import Decimal

import pytest
from odd_venice import head, odd_venice, serving, stream, whole

OUTPUT = 100
"""The largest output that a call allows."""
USAGE = {"prompt_tokens": 10, "completion_tokens": 20}
PRICED = 10 * 1000 + 20 * 2000
COST = {"usd": 0.0125, "diem": 0}
STATED = 12_500_000
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "abc"}, "finish_reason": "stop"}
ANSWER = {"id": "chat-1", "model": "m", "choices": [MESSAGE], "usage": USAGE, "cost": COST}
BOUND, INPUT = 10**15, 2 * 10**15
"""What is recorded where Venice states nothing: the call's bound, or its input alone, to which the
output in tokens is added."""


def plain(without=(), **members):
    """Return a valid response without these members."""
    answer = {name: value for name, value in (ANSWER | members).items() if name not in without}
    return json.dumps(answer).encode()


def counted(**usage):
    """Return a response without a cost and with these counts."""
    return plain(without=("cost",), usage=usage)


def nested(depth, **members):
    """Return a response with an unexpected, deeply nested member."""
    deep = b'{"deep":' + b"[" * depth + b"]" * depth + b","
    return deep + plain(**members)[1:]


SURROGATE = plain().replace(b"abc", b"a \\ud83d b")
WRITTEN = 10_000
TRAILER = b"%x\r\n%b\r\n0\r\nx-cost: 5\r\n\r\n" % (len(plain()), plain())
PLAIN = {
    # Valid responses, and lengths.
    "sound": (whole(plain()), 200, "ok", "reported", STATED),
    "to the end of the connection": (
        head() + plain(),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "chunks and a trailer": (
        head(Transfer_Encoding="chunked", Trailer="x-cost") + TRAILER,
        200,
        "ok",
        "reported",
        STATED,
    ),
    "longer than its Content-Length": (
        head(Content_Length=len(plain())) + plain() + b"HTTP/1.1 200 OK\r\n",
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "a text after it": (
        whole(plain() + b"HTTP/1.1 200 OK\r\n"),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    "shorter than its Content-Length": (
        head(Content_Length=10**6) + plain(),
        502,
        "upstream_cut",
        "reported",
        STATED,
    ),
    "cut in the middle": (
        head(Content_Length=len(plain())) + plain()[:60],
        502,
        "upstream_cut",
        "estimated",
        BOUND,
    ),
    "cut in its head": (b"HTTP/1.1 200 OK\r\nContent-", 502, "upstream_cut", "estimated", BOUND),
    "nothing": (b"", 502, "upstream_cut", "estimated", BOUND),
    "an empty body": (whole(b""), 502, "upstream_error", "estimated", BOUND),
    "two lengths": (
        head(Content_Length=5)[:-2] + b"Content-Length: 6\r\n\r\nabcdef",
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "a length that is no number": (
        head(Content_Length="x") + plain(),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "a chunk size that is no number": (
        head(Transfer_Encoding="chunked") + b"zz\r\n" + plain(),
        502,
        None,
        "estimated",
        BOUND,
    ),
    # Status lines.
    "no HTTP": (b"hello\r\n\r\n", 502, "upstream_error", "estimated", BOUND),
    "status 000": (whole(plain(), "000 None"), 502, "upstream_error", None, None),
    "status 99": (whole(plain(), "99 Odd"), 502, "upstream_error", None, None),
    "status 202": (whole(plain(), "202 Accepted"), 502, "upstream_error", "reported", STATED),
    "status 204": (head("204 No Content"), 502, "upstream_error", "estimated", BOUND),
    "status 206": (
        whole(plain(), "206 Partial Content"),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    "status 206 of nothing": (
        whole(b"{}", "206 Partial Content"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "status 299": (whole(b"{}", "299 Odd"), 502, "upstream_error", "estimated", BOUND),
    "status 500 with a cost": (
        whole(b'{"error":"no","cost":{"usd":0.0125}}', "500 Error"),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    "status 500": (
        whole(b'{"error":"no"}', "500 Error"),
        502,
        "upstream_error",
        "estimated",
        INPUT,
    ),
    "status 400": (whole(b'{"error":"no"}', "400 Bad"), 400, "upstream_rejected", "not_charged", 0),
    "status 999": (whole(b'{"error":"no"}', "999 Odd"), 502, "upstream_error", "estimated", INPUT),
    "informational answers before it": (
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + whole(plain()),
        200,
        "ok",
        "reported",
        STATED,
    ),
    # Redirects.
    **{
        f"status {status}": (
            whole(b"{}", f"{status} Moved", Location="http://127.0.0.1:1/x"),
            502,
            "upstream_error",
            "estimated",
            INPUT,
        )
        for status in (300, 301, 302, 303, 305, 307, 308)
    },
    "status 304": (
        head("304 Not Modified", Location="http://127.0.0.1:1/x"),
        502,
        "upstream_error",
        "estimated",
        INPUT,
    ),
    # Heads.
    "500 headers": (
        whole(plain(), **{f"x_{n}": n for n in range(500)}),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "a header of 20 KB": (whole(plain(), x_long="x" * 20_000), 200, "ok", "reported", STATED),
    "5,000 headers": (
        whole(plain(), **{f"x_{n}": n for n in range(5000)}),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "a header of 200 KB": (
        whole(plain(), x_long="x" * 200_000),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "another type": (whole(plain(), content_type="text/plain"), 200, "ok", "reported", STATED),
    # Encodings that nobody asked for.
    "gzip": (whole(gzip.compress(plain()), Content_Encoding="gzip"), 200, "ok", "reported", STATED),
    "gzip in two members": (
        whole(gzip.compress(plain()[:50]) + gzip.compress(plain()[50:]), Content_Encoding="gzip"),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "deflate": (
        whole(zlib.compress(plain()), Content_Encoding="deflate"),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "deflate without a head": (
        whole(zlib.compress(plain())[2:-4], Content_Encoding="Deflate"),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "identity": (whole(plain(), Content_Encoding="identity"), 200, "ok", "reported", STATED),
    "gzip that is cut": (
        whole(gzip.compress(plain())[:-20], Content_Encoding="gzip"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "gzip that is none": (
        whole(plain(), Content_Encoding="gzip"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "gzip of 200 MB": (
        whole(gzip.compress(bytes(200_000_000), 1), Content_Encoding="gzip"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "brotli": (whole(plain(), Content_Encoding="br"), 502, "upstream_error", "estimated", BOUND),
    "gzip upon gzip": (
        whole(gzip.compress(gzip.compress(plain())), Content_Encoding="gzip, gzip"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "a failure in gzip": (
        whole(
            gzip.compress(b'{"error":"no","cost":{"usd":0.0125}}'),
            "500 Error",
            Content_Encoding="gzip",
        ),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    # Counts.
    "no cost": (whole(plain(without=("cost",))), 200, "ok", "computed", PRICED),
    "no usage": (whole(plain(without=("cost", "usage"))), 200, "ok", "estimated", BOUND),
    "usage of nothing": (whole(counted()), 200, "ok", "estimated", BOUND),
    "null counts": (
        whole(counted(prompt_tokens=None, completion_tokens=None)),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "no input": (whole(counted(completion_tokens=20)), 200, "ok", "estimated", None),
    "no output": (whole(counted(prompt_tokens=10)), 200, "ok", "estimated", None),
    "zero output beside a text": (
        whole(counted(prompt_tokens=10, completion_tokens=0)),
        200,
        "ok",
        "estimated",
        None,
    ),
    "zeros": (
        whole(counted(prompt_tokens=0, completion_tokens=0, total_tokens=0)),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "negative counts": (
        whole(counted(prompt_tokens=-10, completion_tokens=-20)),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "counts as texts": (
        whole(counted(prompt_tokens="10", completion_tokens="20")),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "fractions": (
        whole(counted(prompt_tokens=10.5, completion_tokens=20.5)),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "whole numbers with a fraction": (
        whole(counted(prompt_tokens=10.0, completion_tokens=2e1)),
        200,
        "ok",
        "computed",
        PRICED,
    ),
    "usage that is a list": (
        whole(plain(without=("cost",), usage=[10, 20])),
        200,
        "ok",
        "estimated",
        BOUND,
    ),
    "more cached than there was": (
        whole(counted(**USAGE, prompt_tokens_details={"cached_tokens": 50})),
        200,
        "ok",
        "estimated",
        None,
    ),
    "an odd detail": (
        whole(counted(**USAGE, prompt_tokens_details={"cached_tokens": "x"})),
        200,
        "ok",
        "computed",
        PRICED,
    ),
    # Costs.
    "a cost above the bound": (whole(plain(cost={"usd": 5})), 200, "ok", "reported", 5 * 10**9),
    "a cost as a text": (whole(plain(cost={"usd": "0.0125"})), 200, "ok", "reported", STATED),
    "a cost in two currencies": (
        whole(plain(cost={"usd": 0.01, "diem": 0.0025})),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "half of a cost": (
        whole(plain(cost={"usd": 0.0125, "diem": None})),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "nothing, and a half that cannot be read": (
        whole(plain(cost={"usd": 0, "diem": "much"})),
        200,
        "ok",
        "computed",
        PRICED,
    ),
    "a half that cannot be read": (
        whole(plain(cost={"usd": {"amount": 5}, "diem": 0.0125})),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "a cost of less than a nano-dollar": (
        whole(plain(cost={"usd": 1e-12})),
        200,
        "ok",
        "reported",
        1,
    ),
    "a negative cost": (whole(plain(cost={"usd": -1})), 200, "ok", "computed", PRICED),
    "an endless cost": (whole(plain(cost={"usd": "Infinity"})), 200, "ok", "computed", PRICED),
    "a cost that is a number": (whole(plain(cost=5)), 200, "ok", "computed", PRICED),
    "a cost, and odd counts": (whole(plain(usage="much")), 200, "ok", "reported", STATED),
    "a cost of nothing": (whole(plain(cost={"usd": 0})), 200, "ok", "reported", 0),
    # Bodies that are no response, or that are hard to parse.
    "an error": (
        whole(plain(error="no", without=("choices",))),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    "no choices": (whole(plain(without=("choices",))), 502, "upstream_error", "reported", STATED),
    "choices that are none": (
        whole(plain(choices="none")),
        502,
        "upstream_error",
        "reported",
        STATED,
    ),
    "an object": (whole(b"{}"), 502, "upstream_error", "estimated", BOUND),
    "a list": (whole(b"[]"), 502, "upstream_error", "estimated", BOUND),
    "a page": (
        whole(b"<html>", content_type="text/html"),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "events": (stream(b"data: " + plain() + b"\n\n"), 502, "upstream_error", "reported", STATED),
    "half of a pair of surrogates": (whole(SURROGATE), 200, "ok", "reported", STATED),
    "a byte that is no UTF-8": (
        whole(plain().replace(b"abc", b"a\xff")),
        200,
        "ok",
        "reported",
        STATED,
    ),
    "a byte order mark": (whole(b"\xef\xbb\xbf" + plain()), 200, "ok", "reported", STATED),
    "nested 5,000 deep": (whole(nested(5_000)), 200, "ok", "reported", STATED),
    "nested 200,000 deep": (whole(nested(200_000)), 200, "ok", "reported", STATED),
    "nested in 200,000 ways": (
        whole(b'{"deep":' + b"[1," * 200_000 + b"1" + b"]" * 200_000 + b"," + plain()[1:]),
        502,
        "upstream_error",
        "estimated",
        BOUND,
    ),
    "an odd id": (whole(plain(id=5, model=None)), 200, "ok", "reported", STATED),
}


def faults_of(entry, outcome, source, nanos):
    """Return how the entry differs from what it should be."""
    cost = entry["cost_usd"] and Decimal(entry["cost_usd"])
    bound = Decimal(entry["bound_usd"])
    expected = cost
    if nanos == BOUND:
        expected = bound
    elif nanos is not None and nanos >= INPUT:
        expected = bound - Decimal((OUTPUT - nanos + INPUT) * 2000) / 10**9
    elif nanos is not None:
        expected = Decimal(nanos) / 10**9
    stands = (entry["outcome"], entry["cost_source"], cost)
    wanted = (outcome or entry["outcome"], source or entry["cost_source"], expected)
    return [] if stands == wanted else [f"booked {stands}, not {wanted}"]


@pytest.fixture
async def odd(database_address):
    """A Venice of odd responses, and a caller of the service before it."""
    async with odd_venice() as venice, serving(database_address, venice) as service:
        yield venice, await service.new_caller()


async def played(odd, cases, **members):
    """Return what is wrong with the responses to the calls and with their entries."""
    venice, caller = odd
    faults = []
    for name, (answer, status, outcome, source, nanos) in cases.items():
        venice.answer = answer
        before = len(venice.received)
        async with caller.chat(model="m", max_tokens=OUTPUT, **members) as response:
            body = await response.read()
        (entry, *_) = await caller.entries()
        wrong = faults_of(entry, outcome, source, nanos)
        if response.status != (status or response.status):
            wrong.append(f"status {response.status}, not {status}")
        if b"Location" in response.raw_headers or b"127.0.0.1:1/x" in body:
            wrong.append("names the target of the redirect")
        if len(venice.received) != before + 1:
            wrong.append(f"{len(venice.received) - before} requests")
        faults += [f"{name}: {fault}" for fault in wrong]
        # A success between failures keeps the model out of a cooldown.
        venice.answer = whole(plain())
        async with caller.chat(model="m") as response:
            assert response.status == 200
    return faults


async def test_plain_answers(odd):
    """Each odd plain response gets its expected status, and each call has one entry."""
    faults = await played(odd, PLAIN)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("stated", "passed"),
    [
        (b"", "application/octet-stream"),
        (b"content-type: application/json\r\n", "application/json"),
        (b"CONTENT-TYPE: application/json; charset=utf-8\r\n", "application/json; charset=utf-8"),
    ],
)
async def test_the_type_of_a_plain_answer(odd, stated, passed):
    """A plain answer has the type that Venice states, once, and the general one if there is
    none."""
    venice, caller = odd
    venice.answer = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (
        stated,
        len(plain()),
        plain(),
    )
    async with caller.chat(model="m") as response:
        assert response.status == 200
        assert response.headers.getall("Content-Type") == [passed]


async def test_a_refusal_in_pieces(odd):
    """A refusal that arrives in pieces is read to its end."""
    venice, caller = odd
    refused = whole(b'{"error":{"message":"no such thing"}}', "400 No")

    async def answer(_, writer):
        for start in range(0, len(refused), 40):
            writer.write(refused[start : start + 40])
            await writer.drain()
            await asyncio.sleep(0.05)

    venice.answer = answer
    async with caller.chat(model="m") as response:
        error = (await response.json())["error"]

    assert (response.status, error["message"]) == (400, "no such thing")


TOKEN = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n'
STOP = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"no","code":"upstream_error"}}\n\n'


def event(**members):
    """Return an event."""
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def last(**members):
    """Return the event that states what a stream cost."""
    return event(id="c", model="m", choices=[], **members)


SPENT = last(usage=USAGE, cost=COST)
HALF = TOKEN.replace(b"ab", b"a \\ud83d")
ONE = PRICED - 19 * 2000
STREAMS = {
    "sound": (stream(TOKEN * 3, STOP, SPENT, DONE), "ok", "reported", STATED),
    "chunks": (
        head("200 OK", "text/event-stream", Transfer_Encoding="chunked")
        + b"%x\r\n%b\r\n0\r\nx-cost: 5\r\n\r\n" % (len(TOKEN + SPENT + DONE), TOKEN + SPENT + DONE),
        "ok",
        "reported",
        STATED,
    ),
    "another type": (
        head("200 OK", "text/plain") + TOKEN + SPENT + DONE,
        "ok",
        "reported",
        STATED,
    ),
    "500 headers": (
        stream(TOKEN, SPENT, DONE, **{f"x_{n}": n for n in range(500)}),
        "ok",
        "reported",
        STATED,
    ),
    # Early ends.
    "no end": (stream(TOKEN * 3), "upstream_cut", "estimated", INPUT + 3),
    "no end after its cost": (stream(TOKEN, SPENT), "upstream_cut", "reported", STATED),
    "an end in the middle of its cost": (
        stream(TOKEN, SPENT[:-20]),
        "upstream_cut",
        "estimated",
        BOUND,
    ),
    "a chunk that is cut": (
        head("200 OK", "text/event-stream", Transfer_Encoding="chunked")
        + b"%x\r\n%b\r\nffff\r\ndat" % (len(TOKEN), TOKEN),
        "upstream_cut",
        "estimated",
        INPUT + 1,
    ),
    "nothing": (stream(), "upstream_cut", "estimated", BOUND),
    "no event": (stream(b"hello"), "upstream_cut", "estimated", BOUND),
    "comments": (stream(b": hello\n\n" * 5), "upstream_cut", "estimated", BOUND),
    # Errors.
    "an error": (stream(TOKEN, ERROR, DONE), "upstream_error", "estimated", INPUT + 2),
    "an error and a cost": (
        stream(TOKEN, ERROR, SPENT, DONE),
        "upstream_error",
        "reported",
        STATED,
    ),
    "a cost and an error": (
        stream(TOKEN, SPENT, ERROR, DONE),
        "upstream_error",
        "reported",
        STATED,
    ),
    # Bodies that are no stream.
    "status 206": (
        stream(TOKEN, SPENT, DONE, status="206 Partial Content"),
        "upstream_error",
        "reported",
        STATED,
    ),
    "status 299 of nothing": (stream(status="299 Odd"), "upstream_error", "estimated", BOUND),
    "status 307": (
        whole(b"{}", "307 Moved", Location="http://127.0.0.1:1/x"),
        "upstream_error",
        "estimated",
        INPUT,
    ),
    "a plain answer": (whole(plain()), "upstream_error", "reported", STATED),
    "an object": (whole(b"{}"), "upstream_error", "estimated", None),
    "a page": (whole(b"<html>", content_type="text/html"), "upstream_error", "estimated", BOUND),
    "no HTTP": (b"hello\r\n\r\n", "upstream_error", "estimated", BOUND),
    # Counts and costs.
    "no cost": (stream(TOKEN, last(usage=USAGE), DONE), "ok", "computed", PRICED),
    "no usage": (stream(TOKEN * 3, DONE), "ok", "estimated", INPUT + 3),
    "usage of nothing": (stream(TOKEN * 3, last(usage={}), DONE), "ok", "estimated", INPUT + 4),
    "null counts": (
        stream(TOKEN, last(usage={"prompt_tokens": None, "completion_tokens": None}), DONE),
        "ok",
        "estimated",
        INPUT + 2,
    ),
    "zero output beside a text": (
        stream(TOKEN * 3, last(usage={"prompt_tokens": 10, "completion_tokens": 0}), DONE),
        "ok",
        "estimated",
        None,
    ),
    "zeros": (
        stream(TOKEN * 3, last(usage={"prompt_tokens": 0, "completion_tokens": 0}), DONE),
        "ok",
        "estimated",
        INPUT + 4,
    ),
    "counts as texts": (
        stream(TOKEN, last(usage={"prompt_tokens": "1", "completion_tokens": "1"}), DONE),
        "ok",
        "estimated",
        INPUT + 2,
    ),
    "usage in two events": (
        stream(
            TOKEN, last(usage={"prompt_tokens": 10}), last(usage={"completion_tokens": 20}), DONE
        ),
        "ok",
        "computed",
        PRICED,
    ),
    "usage in every event": (
        stream(
            event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 1}),
            last(usage=USAGE),
            DONE,
        ),
        "ok",
        "computed",
        PRICED,
    ),
    "usage before the output": (
        stream(last(usage={"prompt_tokens": 10, "completion_tokens": 1}), TOKEN * 20, DONE),
        "ok",
        "estimated",
        10 * 1000 + 21 * 2000,
    ),
    "usage in the first events alone": (
        stream(
            last(usage={"prompt_tokens": 10, "completion_tokens": 1}),
            TOKEN,
            last(usage={"prompt_tokens": 10, "completion_tokens": 50}),
            TOKEN * 20,
            STOP,
            DONE,
        ),
        "ok",
        "estimated",
        10 * 1000 + 50 * 2000,
    ),
    "usage before the finish reason": (
        stream(TOKEN, last(usage=USAGE), STOP, DONE),
        "ok",
        "computed",
        PRICED,
    ),
    "data in several lines": (
        stream(TOKEN, SPENT.replace(b', "', b',\ndata: "'), DONE),
        "ok",
        "reported",
        STATED,
    ),
    "data in several lines that is cut": (
        stream(TOKEN * 3, SPENT, SPENT.replace(b', "', b',\ndata: "')[:-20]),
        "upstream_cut",
        "reported",
        STATED,
    ),
    "carriage returns alone, and no usage": (
        stream((TOKEN * 20 + DONE).replace(b"\n", b"\r")),
        "ok",
        "estimated",
        INPUT + 20,
    ),
    "a plain answer without a type": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + plain(),
        "upstream_cut",
        "reported",
        STATED,
    ),
    "the cost before the usage": (
        stream(TOKEN, last(cost=COST), last(usage=USAGE), DONE),
        "ok",
        "reported",
        STATED,
    ),
    "the cost after the end": (stream(TOKEN, DONE, SPENT), "ok", "reported", STATED),
    "the cost long before the end": (
        stream(TOKEN, last(cost=COST), event(choices=[]) * 20, DONE),
        "ok",
        "reported",
        STATED,
    ),
    "a cost above the bound": (
        stream(TOKEN, last(usage=USAGE, cost={"usd": 5}), DONE),
        "ok",
        "reported",
        5 * 10**9,
    ),
    "an odd id": (stream(TOKEN, SPENT.replace(b'"c"', b"5"), DONE), "ok", "reported", STATED),
    # Encodings that nobody asked for.
    "gzip": (
        stream(gzip.compress(TOKEN + SPENT + DONE), Content_Encoding="gzip"),
        "ok",
        "reported",
        STATED,
    ),
    "deflate": (
        stream(zlib.compress(TOKEN + SPENT + DONE), Content_Encoding="deflate"),
        "ok",
        "reported",
        STATED,
    ),
    "gzip that is cut": (
        stream(gzip.compress(TOKEN * 3)[:-9], Content_Encoding="gzip"),
        "upstream_error",
        "estimated",
        None,
    ),
    "brotli": (
        stream(TOKEN + SPENT + DONE, Content_Encoding="br"),
        "upstream_error",
        "estimated",
        BOUND,
    ),
    # Events that are hard to parse.
    "half of a pair of surrogates": (
        stream(HALF, SPENT.replace(b'"c"', b'"c\\ud83d"'), DONE),
        "ok",
        "reported",
        STATED,
    ),
    "a byte that is no UTF-8": (
        stream(TOKEN.replace(b"ab", b"a\xff"), SPENT, DONE),
        "ok",
        "reported",
        STATED,
    ),
    "an event nested 5,000 deep": (
        stream(TOKEN, b'data: {"deep":' + b"[" * 5000 + b"]" * 5000 + b"," + SPENT[7:], DONE),
        "ok",
        "reported",
        STATED,
    ),
    "carriage returns": (
        stream((TOKEN + SPENT + DONE).replace(b"\n", b"\r\n")),
        "ok",
        "reported",
        STATED,
    ),
}


async def test_streams(odd):
    """A failure of a stream is a status before its first event, and its last event afterwards."""
    cases = {
        name: (answer, None, outcome, source, nanos)
        for name, (answer, outcome, source, nanos) in STREAMS.items()
    }
    faults = await played(odd, cases, stream=True)
    assert not faults, "\n".join(faults)


PASSED = {
    "/audio/speech": {"model": "voice", "input": "abc"},
    "/image/generate": {"model": "brush", "prompt": "x"},
    "/images/generations": {"model": "brush", "prompt": "x"},
    "/augment/search": {"query": "x"},
}
NO_CHUNKS = head(Transfer_Encoding="chunked") + b"0\r\n\r\n"
NONE = {
    "an error": whole(b'{"error":{"message":"no"}}'),
    "an error as a text": whole(b' { "error" : "no"}'),
    "an object": whole(b"{}"),
    "null": whole(b"null\n"),
    "a list": whole(b"[ ]"),
    "no chunks": NO_CHUNKS,
    "nothing": whole(b""),
    "a page": whole(b"<html>", content_type="text/html; charset=utf-8"),
    "cut before its first byte": head(Content_Length=9),
}


@pytest.mark.parametrize("path", PASSED)
async def test_a_passed_response_must_be_one(odd, path):
    """A response on a passed-through path that is no result is an error for the caller, and is
    recorded at the call's bound."""
    venice, caller = odd
    for name, answer in NONE.items():
        venice.answer = answer
        url = f"/v1{path}"
        async with caller.service.http.post(
            url, json=PASSED[path], headers=caller.headers
        ) as response:
            assert response.status == 502, name
        entry = (await caller.entries())[0]
        assert entry["outcome"] in ("upstream_error", "upstream_cut"), name
        assert entry["cost_usd"] == entry["bound_usd"]


async def test_an_error_of_json_rpc_is_an_answer(odd):
    """A JSON-RPC error is passed on as a response, because the chain sent it."""
    venice, caller = odd
    answer = b'{"error":{"code":-32601,"message":"no"},"id":1,"jsonrpc":"2.0"}'
    venice.answer = whole(answer)
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_none"}
    url = "/v1/crypto/rpc/base-mainnet"
    async with caller.service.http.post(url, json=body, headers=caller.headers) as response:
        assert (response.status, await response.read()) == (200, answer)
