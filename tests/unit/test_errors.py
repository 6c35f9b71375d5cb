"""The error tree is documented completely, and is the same everywhere."""

import inspect
import json
import re
from pathlib import Path

import pytest

from service import anthropic, errors
from service.errors import Evidence, ServiceError
from service.ledger import Outcome
from service.upstream.refusals import message_of, refusal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
TREE_LINE = re.compile(r"^( +)(\w+) +(\d{3}) (\w+)", re.MULTILINE)


def drawn(text):
    """Parse a tree drawn by indentation into name → (parent, status, code)."""
    found, parents = {}, []
    lines = TREE_LINE.findall(text)
    depth_0 = min(len(indent) for indent, *_ in lines)
    for indent, name, status, code in lines:
        depth = (len(indent) - depth_0) // 2
        parents[depth:] = [name]
        found[name] = (parents[depth - 1] if depth else "Exception", int(status), code)
    return found


def real():
    """Return the same mapping for the classes."""
    return {
        name: (kind.__bases__[0].__name__, kind.status, kind.code)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, ServiceError)
    }


def test_the_docstring_draws_the_tree():
    """The docstring has every class below its parent, with its status and code."""
    assert drawn(errors.__doc__) == real()


def test_the_page_draws_the_same_tree():
    """docs/errors.md has the same tree."""
    section = PAGE.read_text().partition("## The tree")[2].partition("## Faults")[0]
    tree = "\n".join(f"    {line}" for line in section.split("```")[1].splitlines())

    assert drawn(tree) == real()


def codes():
    """Return every code of the tree."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return {code for kind in kinds if issubclass(kind, ServiceError) for code in kind.codes()}


def test_every_code_has_its_advice():
    """The table of advice has each code of the tree, and no other."""
    assert set(errors.ADVICE) == codes()


def test_the_page_gives_the_same_advice():
    """docs/errors.md lists the codes by whether a client should retry, as the table has them."""
    section = PAGE.read_text().partition("## What to retry")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    stated = {
        code: row[0].split(",")[0].strip(" `")
        for row in rows
        for code in re.findall(r"`(\w+)`", row[1])
    }

    texts = {True: "true", False: "false", None: "none"}
    assert stated == {code: texts[advice.should_retry] for code, advice in errors.ADVICE.items()}


def test_every_class_has_a_docstring():
    """Each error class has a docstring of its own."""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert kind.__doc__, name


def test_every_upstream_error_is_an_outcome():
    """The ledger has an outcome of the same name for each upstream error."""
    codes = {
        kind.code
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.UpstreamError)
    }

    assert codes <= {outcome.value for outcome in Outcome}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"plain text"}', "plain text"),
        (b'{"error":{"message":"an object","type":"x"}}', "an object"),
        (b'{"error":"Invalid","details":"a text"}', "Invalid"),
        (
            b'{"error":"Invalid","issues":[{"path":["a",0],"message":"bad"},{"message":"worse"}]}',
            "Invalid; a.0: bad; worse",
        ),
        (b'{"error":"Invalid","issues":[7,{"message":8}]}', "Invalid"),
        (b'{"code":"PAYLOAD_TOO_LARGE","error":"too large"}', "too large"),
        (b'{"error":7}', ""),
        (b"[]", ""),
        (b"<html>", ""),
        (b"", ""),
        (b"\xff", ""),
    ],
)
def test_venices_texts_are_found(body, text):
    """The text for people is found in every format of Venice's errors, or None."""
    assert message_of(body) == text


def test_no_key_passes_in_a_text():
    """A key in Venice's text is removed before a caller sees the text."""
    body = b'{"error":"bad key VENICE_INFERENCE_KEY_abc123 and Bearer xyz and rk_%s"}' % (b"A" * 43)

    text = message_of(body)

    assert "abc123" not in text
    assert "xyz" not in text
    assert "AAAA" not in text


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (400, "upstream_rejected", 400),
        (401, "upstream_exhausted", 503),
        (402, "upstream_exhausted", 503),
        (403, "upstream_exhausted", 503),
        (404, "upstream_rejected", 404),
        (413, "upstream_rejected", 413),
        (422, "upstream_rejected", 422),
        (429, "upstream_busy", 503),
        (500, "upstream_error", 502),
        (502, "upstream_error", 502),
        (503, "upstream_busy", 503),
        (504, "upstream_timeout", 504),
        (302, "upstream_error", 502),
    ],
)
def test_statuses_are_translated(status, code, ours):
    """A status about the operator's account at Venice becomes an error that does not blame the
    caller."""
    error = refusal(status, {"Content-Type": "application/json"}, b'{"error":"text"}')

    assert (error.code, error.status) == (code, ours)


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        (400, "upstream_rejected", 400),
        (401, "upstream_rejected", 400),
        (402, "upstream_rejected", 400),
        (403, "upstream_rejected", 403),
        (407, "upstream_rejected", 400),
        (413, "upstream_rejected", 413),
        (429, "upstream_busy", 503),
        (500, "upstream_error", 502),
        (503, "upstream_busy", 503),
        (520, "upstream_error", 502),
        (524, "upstream_timeout", 504),
    ],
)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html>"),
        ("text/html", b'{"error": "text"}'),
        ("application/json", b"<html>"),
        ("application/json", b'["error"]'),
        ("application/json", b'{"error": ""}'),
        ("application/problem+json", b'{"title": "Blocked", "status": 403}'),
        ("application/json", b'{"a":' * 100_000),
        ("application/json", b""),
        ("", b'{"error": "text"}'),
    ],
)
def test_an_error_that_is_not_venices_own(status, code, ours, content_type, body):
    """An error that is not Venice's own concerns the request, and its status is not kept if it
    would blame the caller's key."""
    error = refusal(status, {"Content-Type": content_type}, body)

    assert (error.code, error.status) == (code, ours)
    assert error.evidence in (Evidence.NONE, Evidence.EDGE_FAILED)


def test_retry_after_is_kept():
    """Venice's Retry-After is passed on, up to a maximum."""
    assert refusal(429, {"Retry-After": "30"}, b"").retry_after_s == 30
    assert refusal(429, {"Retry-After": "999999"}, b"").retry_after_s == 3600
    assert refusal(429, {"Retry-After": "soon"}, b"").retry_after_s == 5


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"message":"Too many tokens.","code":"context_length_exceeded"}}', True),
        (b'{"error":"No.","code":"context_length_exceeded"}', True),
        (b'{"error":"This model\'s maximum context length is 8192 tokens."}', True),
        (b'{"error":"prompt is too long: 9 tokens > 8 maximum"}', True),
        (b'{"error":"Your input exceeds the context window of this model."}', True),
        (b'{"error":{"message":"No.","code":"other"}}', False),
        (b'{"error":"The context is unclear."}', False),
    ],
)
def test_a_prompt_that_is_too_long_keeps_its_code(body, code):
    """Clients shorten the conversation at this code; the ledger records a refusal as usual."""
    error = refusal(400, {"Content-Type": "application/json"}, body)

    assert error.code == ("context_length_exceeded" if code else "upstream_rejected")
    assert (error.status, error.outcome) == (400, Outcome.UPSTREAM_REJECTED)


@pytest.mark.parametrize(
    ("param", "expected"), [("messages", "messages"), ("a b", None), (5, None), (None, None)]
)
def test_a_prompt_that_is_too_long_keeps_its_field(param, expected):
    """The field that Venice names is kept where it looks like one."""
    error = {"message": "No.", "code": "context_length_exceeded", "param": param}
    body = json.dumps({"error": error}).encode()

    assert refusal(400, {"Content-Type": "application/json"}, body).param == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The prompt has 200001 tokens, but this model's context holds 131072.",
            "prompt is too long: 200001 tokens > 131072 maximum",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in"
            " 10,000 tokens.",
            "prompt is too long: 10000 tokens > 8192 maximum",
        ),
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens"
            " (8000 in the messages, 1000 in the completion).",
            "input length and `max_tokens` exceed context limit: 8000 + 1000 > 8192",
        ),
        (
            "'max_tokens' is too large: 1000. This model's maximum context length is 4096 tokens"
            " and your request has 4000 input tokens (1000 > 4096 - 4000).",
            "input length and `max_tokens` exceed context limit: 4000 + 1000 > 4096",
        ),
        (
            "prompt is too long: 213462 tokens > 200000 maximum",
            "prompt is too long: 213462 tokens > 200000 maximum",
        ),
        (
            "input length and `max_tokens` exceed context limit: 19 + 2 > 20, decrease input",
            "input length and `max_tokens` exceed context limit: 19 + 2 > 20, decrease input",
        ),
        (
            "Your input exceeds the context window of this model.",
            "prompt is too long: Your input exceeds the context window of this model.",
        ),
    ],
)
def test_a_prompt_that_is_too_long_in_anthropics_words(text, expected):
    """Claude Code reads the numbers in these words, and shortens the conversation by itself."""
    error = errors.UpstreamRejected(text, code="context_length_exceeded")
    detail = anthropic.error_object(error, "r").error

    assert (detail.message, detail.code) == (expected, "context_length_exceeded")
    assert detail.type == "invalid_request_error"
