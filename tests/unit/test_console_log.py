"""Log lines for a terminal."""

import pytest

from service.telemetry.console import Renderer

PLAIN = Renderer(colors=False)
CALL = {
    "event": "request",
    "level": "info",
    "timestamp": "17:05:03",
    "method": "POST",
    "route": "/v1/chat/completions",
    "status": 200,
    "duration_ms": 812.4,
    "key_prefix": "rk_1a2b3c4",
    "model": "llama-3.3-70b",
    "outcome": "ok",
    "cost_usd": "0.000123000",
}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            CALL,
            "17:05:03 POST    /v1/chat/completions    200    812 ms  rk_1a2b3c4  llama-3.3-70b"
            "  $0.000123",
        ),
        (
            {**CALL, "status": 402, "code": "limit_exceeded", "duration_ms": 3, "cost_usd": None},
            "17:05:03 POST    /v1/chat/completions    402 limit_exceeded      3 ms  rk_1a2b3c4"
            "  llama-3.3-70b",
        ),
        (
            {**CALL, "status": 499, "outcome": "client_closed", "duration_ms": 4200},
            "17:05:03 POST    /v1/chat/completions    499 client_closed     4.2 s  rk_1a2b3c4"
            "  llama-3.3-70b  $0.000123",
        ),
        (
            {"event": "request", "method": "GET", "route": "/health", "status": 503},
            "GET     /health                 503",
        ),
        (
            {
                "event": "pool",
                "level": "info",
                "timestamp": "17:05:03",
                "size": 5,
                "duration_ms": 8,
            },
            "17:05:03 pool  size=5  (8 ms)",
        ),
        (
            {"event": "start failed", "level": "error", "error": "No database.", "hint": "Set it."},
            "error: start failed  error='No database.'\nSet it.",
        ),
        (
            {"event": "functions applied", "level": "info", "names": list("abcdef")},
            "functions applied  names=6",
        ),
        ({"event": "x", "level": "info", "fact": "a\x1b[31m"}, "x  fact='a\\x1b[31m'"),
    ],
)
def test_a_line(event, line):
    """A request is in the order in which it is read, without what is not known; other events have
    their fields and, last, how long they took. No value brings control characters."""
    assert PLAIN(None, "", event) == line


def test_colors_follow_the_status():
    """A success is green, a refusal yellow, a failure red."""
    colored = Renderer(colors=True)
    for status, code in ((200, "32"), (404, "33"), (502, "31")):
        assert f"\x1b[{code}m{status}" in colored(None, "", {**CALL, "status": status})
