"""Log lines: JSON for machines, and no secret in any of them."""

import io
import json
import logging

import pytest
import structlog

from service import logs

KEY = "rk_" + "A" * 43


@pytest.fixture
def lines():
    """Logging set up on a stream of the test's own; a function that reads it."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)


def test_a_line_is_an_event_and_its_facts(lines):
    """Time, level and message come first, then the facts."""
    structlog.get_logger().info("pool", size=5)

    (line,) = lines()
    assert list(line) == ["timestamp", "level", "message", "size"]
    assert (line["level"], line["message"], line["size"]) == ("info", "pool", 5)


def test_the_request_id_is_added(lines):
    """What is logged while a request is at hand carries its id."""
    token = logs.request_id.set("abc")
    structlog.get_logger().info("x")
    logs.request_id.reset(token)

    assert lines()[0]["request_id"] == "abc"


@pytest.mark.parametrize("name", ["password", "operator_key", "api_key", "secret", "Authorization"])
def test_values_of_secret_names_are_replaced(lines, name):
    """A fact whose name says secret is not shown."""
    structlog.get_logger().info("x", **{name: "hush"})

    assert "hush" not in str(lines())


@pytest.mark.parametrize(
    "text",
    [KEY, f"Bearer {KEY}", "postgresql://u:hush@h/x", "VENICE_INFERENCE_KEY_hush", "Bearer hush"],
)
def test_values_that_look_secret_are_replaced(lines, text):
    """What looks like a key, a token or a password in a URL is not shown, wherever it stands."""
    structlog.get_logger().info(f"said {text}", fact=f"of {text}!")
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger().exception("failed")

    shown = str(lines())
    assert KEY not in shown
    assert "hush" not in shown
    assert "Traceback" in shown


def test_rows_of_the_database_are_not_shown(lines):
    """What PostgreSQL tells of a refused row goes, over several lines too; the rest stays."""
    refused = 'new row violates "x"\nDETAIL:  Failing row contains (1, one\n\ntwo).\nHINT:  Look.'
    try:
        try:
            raise ValueError(refused)
        except ValueError as error:
            raise RuntimeError("after it") from error
    except RuntimeError:
        structlog.get_logger().exception("failed", flat=" ".join(refused.split()))

    (line,) = lines()
    for text in (line["exception"], line["flat"]):
        assert "Failing row" not in text
        assert "two" not in text
        assert "HINT: " in text
    assert "RuntimeError: after it" in line["exception"]


def test_libraries_lines_have_the_form(lines):
    """What a library logs is a line of the same form."""
    logging.getLogger("aiohttp.server").error("broken %s", "pipe")

    (line,) = lines()
    assert (line["level"], line["message"]) == ("error", "broken pipe")


def test_a_step_says_how_long_it_took(lines):
    """A step's line has its duration and the facts that were found on the way."""
    with logs.step("database connected", host="h") as facts:
        facts["server_version"] = "18.1"

    (line,) = lines()
    assert line["server_version"] == "18.1"
    assert line["duration_ms"] >= 0
