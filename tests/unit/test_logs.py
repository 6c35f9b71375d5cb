"""Log lines: JSON for machines, and no secret in any of them."""

import asyncio
import io
import json
import logging
import threading

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


class Written(io.StringIO):
    """A stream that keeps what each write brought."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text):
        self.writes.append(text)
        return len(text)


@pytest.fixture
def stream():
    yield (written := Written())
    assert all(text.endswith("\n") for text in written.writes)


async def test_what_is_said_in_a_turn_of_the_loop_is_written_at_its_end(stream):
    """In one write, in its order; the next turn's in another."""
    lines = logs.Lines(stream)
    lines.info("one")
    lines.debug("two")
    assert stream.writes == []

    await asyncio.sleep(0)
    assert stream.writes == ["one\ntwo\n"]
    lines.info("three")
    await asyncio.sleep(0)
    assert stream.writes == ["one\ntwo\n", "three\n"]


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
async def test_what_is_wrong_is_written_at_once(stream, level):
    """With all that was said before it; nothing is written twice."""
    lines = logs.Lines(stream)
    lines.info("one")
    getattr(lines, level)("two")
    assert stream.writes == ["one\ntwo\n"]

    await asyncio.sleep(0)
    assert len(stream.writes) == 1


async def test_a_thread_is_not_kept_waiting_by_the_loop(stream):
    """What a thread says is written at once, though the loop stands still."""
    lines = logs.Lines(stream)
    lines.info("one")
    thread = threading.Thread(target=lines.info, args=("two",))
    thread.start()
    thread.join()

    assert stream.writes == ["one\ntwo\n"]


def test_outside_of_a_loop_lines_are_written_at_once(stream):
    """Also those that a loop, which has ended, left behind."""
    lines = logs.Lines(stream)
    loop = asyncio.new_event_loop()

    async def said():
        lines.info("one")
        loop.stop()

    task = loop.create_task(said())
    loop.run_forever()
    loop.close()
    assert task.done()
    lines.info("two")

    assert "".join(stream.writes) == "one\ntwo\n"


async def test_no_write_is_longer_than_a_pipe_takes_at_once(stream):
    """Unless it is a single line."""
    lines = logs.Lines(stream)
    for number in range(100):
        lines.info(f"{number:03} " + "ä" * 100)
    lines.info("x" * 10_000)
    await asyncio.sleep(0)

    assert "".join(stream.writes).count("\n") == 101
    assert all(len(text.encode()) <= logs.MOST_TOGETHER_BYTES for text in stream.writes[:-1])
    assert stream.writes[-1] == "x" * 10_000 + "\n"


async def test_libraries_lines_come_in_their_turn(lines):
    """After what the service said before them."""
    structlog.get_logger().info("one")
    logging.getLogger("aiohttp.server").error("two")

    assert [line["message"] for line in lines()] == ["one", "two"]


def test_a_step_says_how_long_it_took(lines):
    """A step's line has its duration and the facts that were found on the way."""
    with logs.step("database connected", host="h") as facts:
        facts["server_version"] = "18.1"

    (line,) = lines()
    assert line["server_version"] == "18.1"
    assert line["duration_ms"] >= 0
