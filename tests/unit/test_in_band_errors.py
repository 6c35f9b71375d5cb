"""Errors within Venice's streams."""

import json

import pytest

from service.errors import UpstreamBusy, UpstreamError, UpstreamRejected
from service.upstream import split_at_error

TOKEN = b'data: {"choices":[{"delta":{"content":"say \\"error\\": no"}}]}\n\n'


def in_band(code, **more):
    """An error as Venice's event."""
    error = {"message": "Not now, Bearer abc", "type": "x", "code": code, **more}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("event", "kind", "status"),
    [
        (in_band("model_overloaded", retry_after=7), UpstreamBusy, 503),
        (in_band("content_blocked_by_provider"), UpstreamRejected, 422),
        (in_band("e2ee_attestation_stale"), UpstreamRejected, 400),
        (in_band("upstream_error"), UpstreamError, 502),
        (in_band(None), UpstreamError, 502),
        (b'data: {"error":"a text"}\n\n', UpstreamError, 502),
    ],
)
@pytest.mark.parametrize("before", [b"", TOKEN, TOKEN * 3])
@pytest.mark.parametrize("windows", [False, True])
def test_each_becomes_one_of_ours(event, kind, status, before, windows):
    """What came before it passes; no secret does."""
    events = before + event
    if windows:
        events, before = (part.replace(b"\n", b"\r\n") for part in (events, before))

    passed, error = split_at_error(events)

    assert (passed, type(error), error.status) == (before, kind, status)
    assert "abc" not in str(error)
    if kind is UpstreamBusy:
        assert error.retry_after_s == 7


@pytest.mark.parametrize(
    "events",
    [
        TOKEN,
        b'data: {"error":null,"choices":[]}\n\n',
        b'data: {"choices":[{"delta":{"error":{"code":"x"}}}]}\n\n',
        b': "error"\n\n',
        b'data: {"error"\n\n',
        b'event: error\ndata: {"type":"error","code":"x"}\n\n',
    ],
)
def test_what_is_none_passes(events):
    """A word in a text is no error, and the Responses API has events of its own for them."""
    assert split_at_error(events) == (events, None)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_an_error_in_several_lines(ending):
    """By any ends of lines, and without the end of the last event."""
    before = TOKEN.replace(b"\n", ending)
    event = b'data: {"error":\ndata: {"code":\ndata: "model_overloaded"}}'.replace(b"\n", ending)

    passed, error = split_at_error(before + event)

    assert (passed, type(error)) == (before, UpstreamBusy)
