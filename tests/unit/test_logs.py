"""Log lines are JSON and have no secret."""

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import queue
import re
import resource
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import pytest
import structlog
from process import ROOT
from support import configured_logs

from service.telemetry import logs

KEY = "rk_" + "A" * 43
HUSH = "a secret that only its name shows"
MARKER = "a prompt of somebody"


@pytest.fixture
def lines():
    """A function that returns the lines of a logging configured for the test."""
    stream = io.StringIO()

    def written():
        logs.flush(10)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    with configured_logs("info", "json", stream):
        yield written


def test_a_line_is_an_event_and_its_facts(lines):
    """A line has time, level and message first, then the facts."""
    structlog.get_logger().info("pool", size=5)

    (line,) = lines()
    assert list(line) == ["timestamp", "level", "message", "size"]
    assert (line["level"], line["message"], line["size"]) == ("info", "pool", 5)


def test_the_request_id_is_added(lines):
    """A line that is logged during a request has its id."""
    token = logs.request_id.set("abc")
    structlog.get_logger().info("x")
    logs.request_id.reset(token)

    assert lines()[0]["request_id"] == "abc"


@pytest.mark.parametrize("name", ["password", "operator_key", "api_key", "secret", "Authorization"])
def test_values_of_secret_names_are_replaced(lines, name):
    """The value of a fact whose name suggests a secret is replaced."""
    structlog.get_logger().info("x", **{name: "hush"})

    assert "hush" not in str(lines())


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"Bearer {KEY}",
        "postgresql://u:hush@h/x",
        "VENICE_INFERENCE_KEY_hush",
        "Bearer hush",
        "bearer hush",
        "sk-hush0123456789abcdef",
    ],
)
def test_values_that_look_secret_are_replaced(lines, text):
    """Text that looks like a key, a token or a password in a URL is replaced wherever it is."""
    structlog.get_logger().info(f"said {text}", fact=f"of {text}!")
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger().exception("failed")

    shown = str(lines())
    assert KEY not in shown
    assert "hush" not in shown
    assert "Traceback" in shown


@pytest.mark.parametrize(
    "value",
    [
        [f"a {KEY}"],
        {"inner": (1, {"deep": KEY})},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"inner": [{"api_key": HUSH}]},
        {"passwords": {"inner": [HUSH]}},
        {KEY: 1},
        {KEY},
        Path(f"/{KEY}/x"),
        ValueError(KEY),
    ],
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_values_that_look_secret_are_replaced_within_others(form, value):
    """A secret is replaced wherever it is in a value, on the terminal too."""
    stream = io.StringIO()
    with configured_logs("info", form, stream):
        structlog.get_logger().info("x", value=value, count=1)
        logs.flush(10)

    line = stream.getvalue()
    assert KEY not in line
    assert HUSH not in line
    assert logs.REDACTED in line
    assert re.search(r"count\W+1\b", line)


def test_rows_of_the_database_are_not_shown(lines):
    """PostgreSQL's details of a rejected row are removed, also over several lines, and the rest
    stays."""
    refused = 'new row violates "x"\nDETAIL:  Failing row contains (1, one\n\ntwo).\nHINT:  Look.'
    structlog.get_logger().info("failed", exception=refused, flat=" ".join(refused.split()))

    (line,) = lines()
    for text in (line["exception"], line["flat"]):
        assert "Failing row" not in text
        assert "two" not in text
        assert "HINT: " in text


def test_a_librarys_line_has_no_text(lines):
    """A library's line has the logger, place, level and exception type, but no text, which may
    quote a request."""
    try:
        raise ConnectionResetError(errno.ECONNRESET, MARKER)
    except ConnectionResetError:
        logging.getLogger("aiohttp.server").exception("broken %s", MARKER)
    logging.getLogger("odd").log(35, MARKER)

    broken, odd = lines()
    assert (broken["level"], broken["message"]) == ("error", "library message")
    assert (broken["logger"], broken["error"]) == (
        "aiohttp.server",
        "ConnectionResetError [ECONNRESET]",
    )
    assert "test_logs:" in broken["at"]
    assert "test_logs:" in broken["raised_at"]
    assert (odd["level"], odd["logger"]) == ("warning", "odd")
    assert MARKER not in str((broken, odd))


def test_a_traceback_has_no_texts(lines):
    """A traceback has types, codes and places of the exception and its causes, but no texts, which
    may quote a row, a prompt or a key."""

    class Refused(Exception):
        sqlstate = "22P02"

    try:
        try:
            int(MARKER)
        except ValueError as error:
            raise Refused(MARKER) from error
    except Refused:
        try:
            {}[MARKER]
        except KeyError:
            structlog.get_logger().exception("failed")

    (line,) = lines()
    assert MARKER not in str(line)
    for part in ("ValueError\n", "Refused [22P02]\n", "KeyError", "test_a_traceback_has_no_texts"):
        assert part in line["exception"]


def test_uncaught_errors_are_logged_without_text(lines, monkeypatch):
    """Warnings and uncaught exceptions, in any thread and in finalizers, are logged without their
    text."""
    for module, name in (
        (warnings, "showwarning"),
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    logs.capture_python_output()
    error = ValueError(MARKER)
    warnings.showwarning(UserWarning(MARKER), UserWarning, "/x/some.py", 7)
    sys.excepthook(ValueError, error, None)
    sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=MARKER))
    thread = threading.Thread(target=int, args=(MARKER,), name="one")
    thread.start()
    thread.join()

    assert MARKER not in str(lines())
    warned, *unhandled = lines()
    assert (warned["category"], warned["at"]) == ("UserWarning", "some:7")
    assert [line["message"] for line in unhandled] == ["unhandled exception"] * 3
    assert all("ValueError" in line["exception"] for line in unhandled)


@contextlib.contextmanager
def written_to_pipe():
    """Lines written to a small pipe, and the pipe's reading end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "w") as stream:
        recovered = queue.SimpleQueue()
        lines = logs.Lines(stream, recovered.put)
        yield lines, reader, recovered
        os.close(lines._descriptor)


def test_lines_are_written_in_order():
    """Lines are written in order, as whole lines of 4,096 bytes at most per write."""
    with written_to_pipe() as (lines, reader, _):
        for number in range(200):
            lines.put(f"{number:03} " + "ä" * 100)
        assert [reader.readline() for _ in range(200)] == [
            f"{number:03} {'ä' * 100}\n".encode() for number in range(200)
        ]
        lines.put("x" * 10_000)
        assert reader.readline() == b"x" * 10_000 + b"\n"
        lines.flush(10)
        assert lines.take_dropped() == 0


def test_a_flush_ends_the_collecting(monkeypatch):
    """Lines that are waited for are written at once, however long lines are collected."""
    monkeypatch.setattr(logs, "COLLECT_S", 60)
    with written_to_pipe() as (lines, reader, _):
        for number in range(3):
            lines.put(f"line {number}")
            lines.flush(10)
            assert lines._is_idle
            assert reader.readline() == f"line {number}\n".encode()


def test_an_error_is_written_at_once(monkeypatch):
    """An error takes the lines before it along, however long lines are collected."""
    monkeypatch.setattr(logs, "COLLECT_S", 60)
    with written_to_pipe() as (lines, reader, _):
        lines.info("first")
        assert reader.readline() == b"first\n"
        lines.info("collected")
        lines.error("urgent")
        assert [reader.readline() for _ in range(2)] == [b"collected\n", b"urgent\n"]


def test_a_full_pipe_delays_nobody():
    """Lines beyond the bound are dropped and counted; after somebody reads, the queued ones are
    written and the number of dropped ones is reported once."""
    with written_to_pipe() as (lines, reader, recovered):
        line = "x" * 100_000
        for _ in range(60):
            lines.put(line)
        dropped = lines.take_dropped()
        assert dropped == 60 - logs.MAX_QUEUED_CHARACTERS // len(line)
        assert lines.take_dropped() == 0
        started = time.monotonic()
        lines.flush(0.05)
        assert time.monotonic() - started < 5

        assert [len(reader.readline()) for _ in range(60 - dropped)] == [100_001] * (60 - dropped)
        assert recovered.get(timeout=10) == dropped
        lines.put("after it")
        assert reader.readline() == b"after it\n"
        assert recovered.empty()


def test_a_nonblocking_pipe_loses_nothing():
    """Nothing is lost on standard error that another process has made non-blocking."""
    with written_to_pipe() as (lines, reader, _):
        os.set_blocking(lines._descriptor, False)
        for number in range(100):
            lines.put(f"{number:0100}")
        assert [int(reader.readline()) for _ in range(100)] == list(range(100))
        assert lines.take_dropped() == 0


def test_a_closed_pipe_raises_nothing():
    """On a closed pipe (EPIPE) lines are dropped and counted."""
    with written_to_pipe() as (lines, reader, _):
        reader.close()
        for _ in range(5):
            lines.put("x")
        lines.flush(10)
        assert lines.take_dropped() == 5


def test_a_full_disk_raises_nothing():
    """On a full disk (ENOSPC) lines are dropped and counted."""
    with Path("/dev/full").open("w") as stream:
        lines = logs.Lines(stream)
        lines.put("x")
        lines.flush(10)
        assert lines.take_dropped() == 1


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["none", "closed"])
def test_a_missing_stream_raises_nothing(stream):
    """Without a standard error, or with a closed one, lines are dropped and nothing is raised."""
    if stream is not None:
        stream.close()
    lines = logs.Lines(stream)
    lines.put("x")
    lines.flush(10)
    assert lines.take_dropped() == 1


def test_a_line_after_a_torn_one_is_separate(tmp_path):
    """After a line that a full disk cut short the next line starts on its own."""
    path = tmp_path / "log"
    recovered = queue.SimpleQueue()
    with path.open("w") as stream:
        lines = logs.Lines(stream, recovered.put)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))
        try:
            for character in "ab":
                lines.put(character * 99)
                lines.flush(10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        lines.put("c")
        assert recovered.get(timeout=10) == 1
    assert path.read_text() == f"{'a' * 99}\n{'b' * 50}\nc\n"


def test_what_cannot_be_rendered_is_dropped(lines):
    """A fact that cannot be rendered or encoded drops its line, and nothing is raised."""

    class Odd:
        def __str__(self):
            raise RuntimeError

    logs.take_dropped()
    structlog.get_logger().error("odd", fact=Odd())
    assert logs.take_dropped() == 1
    structlog.get_logger().error("half \ud83d")

    assert "half \ud83d" in [line["message"] for line in lines()]


def test_the_end_of_a_process_writes_what_is_queued():
    """A process that ends at once writes its last line, and ends even if its log accepts nothing
    more."""
    code = "import sys; from service.telemetry import logs; lines = logs.Lines(sys.stderr);"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", f"{code} lines.put('last')"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stderr == "last\n"

    with written_to_pipe() as (lines, reader, _):
        subprocess.run(
            [sys.executable, "-c", f"{code} lines.put('x' * 100_000)"],
            env=environment,
            stderr=lines.stream,
            check=True,
            timeout=60,
        )
        assert reader.read1(10) == b"x" * 10


async def test_libraries_lines_are_in_order(lines):
    """A library's line comes after those that the service logged before it."""
    structlog.get_logger().info("one")
    logging.getLogger("aiohttp.server").error("two")

    assert [line["message"] for line in lines()] == ["one", "library message"]


def test_a_step_logs_its_duration(lines):
    """A step's line has its duration and the facts that were added during it."""
    with logs.step("database connected", host="h") as facts:
        facts["server_version"] = "18.1"

    (line,) = lines()
    assert line["server_version"] == "18.1"
    assert line["duration_ms"] >= 0
