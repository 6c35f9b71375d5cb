"""Structured logs: readable on a terminal, JSON otherwise.

A line is an event with fields: ``log.info("database connected", host=…, duration_ms=…)``. The
current request's id is added from a context variable. Values of secret fields, and anything that
looks like a secret, are redacted.

No line contains any part of a request. Texts of exceptions and libraries may quote one, so they are
never logged. A traceback has only types, codes and locations.
"""

import atexit
import contextlib
import errno
import functools
import json
import logging
import math
import os
import re
import select
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any, Final, TextIO, cast

import msgspec
import structlog

from service.telemetry.console import Renderer

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

REDACTED: Final = "[redacted]"
SECRET_NAMES: Final = re.compile(
    r"password|secret|authorization|api_?key$|_key$|token$", re.IGNORECASE
)
SECRET_VALUES: Final = re.compile(
    r"rk_[A-Za-z0-9_-]{20,}|VENICE_[A-Z]+_KEY_[^\s\"']+|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
    r"|(?<=Bearer )[^\s\"']+|(?<=bearer )[^\s\"']+|\bsk-[A-Za-z0-9_-]{16,}"
)
ROW_CONTENTS: Final = re.compile(
    r"\bDETAIL:.*?(?=\s+(?:HINT|CONTEXT):|\n\n(?:The above|During handling)|\Z)",
    re.DOTALL,
)
"""Where PostgreSQL quotes the rejected row. It spans several lines when a value does."""
OWN_KEY: Final = re.compile(r"rk_[A-Za-z0-9_-]{20}")
"""The beginning of a key of Rialto's. The visible prefix of a key is shorter."""
SECRET_MARKERS: Final = ("VENICE_", "://", "earer ", "sk-", "DETAIL:")
"""Every text with something to redact has one of these or an own key, and most texts have none."""

MAX_WRITE_BYTES: Final = 4096
"""The most that a pipe takes in one piece (PIPE_BUF on Linux), so that lines of several
processes do not mix."""
MAX_QUEUED_CHARACTERS: Final = 4 << 20
"""About 15,000 lines. Further lines are dropped."""
COLLECT_S: Final = 0.1
"""How long after a write the writer collects lines, so that it wakes up about 10 times a second.
Each time it takes Python's lock from the thread of the requests. Errors do not wait for it."""
NONBLOCKING_PAUSE_MS: Final = 1000
MAX_LOCATIONS: Final = 5
MAX_CHAINED: Final = 5
MAX_FRAMES: Final = 40
EXIT_FLUSH_S: Final = 2.0
"""How long an exiting process waits for its last lines to be written."""

Event = MutableMapping[str, Any]


class Lines:
    """A bounded queue of lines, and a thread that writes them to a stream.

    Logging never blocks or fails. A stream that accepts no more (a full pipe, a stopped terminal)
    blocks only the writer thread; the queue then fills up and further lines are dropped. A stream
    that fails (a closed pipe, a full disk) loses the lines written to it. Dropped lines are
    counted, and ``on_recovery`` gets their number once lines are written again.
    """

    def __init__(
        self, stream: TextIO | None, on_recovery: Callable[[int], None] | None = None
    ) -> None:
        self.stream = stream
        self._on_recovery = on_recovery
        self._descriptor = _own_descriptor(stream)
        self._changed = threading.Condition()
        self._queue: deque[str] = deque()
        self._queued_characters = 0
        self._is_idle = True
        self._is_due = False
        """Whether what is queued is written without collecting more."""
        self._thread: threading.Thread | None = None
        self._is_line_open = False
        """True after a write that failed in the middle of a line."""
        self._unreported = 0
        self._uncounted = 0
        atexit.register(self.flush, EXIT_FLUSH_S)

    def put(self, line: str) -> None:
        """Queue the line, or drop it."""
        with self._changed:
            has_writer = self._thread is not None or self._start_writer()
            if self._queued_characters + len(line) > MAX_QUEUED_CHARACTERS or not has_writer:
                self._drop(1)
                return
            self._queue.append(line)
            # Not computed before: starting the writer may run a finalizer, which may log.
            self._queued_characters += len(line)
            if self._is_idle:
                self._is_idle = False
                self._changed.notify_all()

    def put_at_once(self, line: str) -> None:
        """Queue the line, or drop it. What is queued is written without waiting for more."""
        with self._changed:
            self.put(line)
            self._is_due = True
            self._changed.notify_all()

    debug = info = warning = put
    error = critical = put_at_once

    def drop(self) -> None:
        """Count a line that could not be rendered."""
        with self._changed:
            self._drop(1)

    def flush(self, timeout_s: float) -> None:
        """Wait until all lines are written, for at most ``timeout_s``."""
        with self._changed:
            self._is_due = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle, timeout_s)

    def take_dropped(self) -> int:
        """Return the number of lines dropped since the last call."""
        with self._changed:
            dropped, self._uncounted = self._uncounted, 0
        return dropped

    def _drop(self, count: int) -> None:
        self._unreported += count
        self._uncounted += count

    def _start_writer(self) -> bool:
        """Start the writer thread on first use. Returns False if there is no stream, or if the
        system allows no thread now."""
        if self.stream is None:
            return False
        thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        written_at = -math.inf
        while True:
            with self._changed:
                while not self._queue:
                    self._is_idle, self._is_due = True, False
                    self._changed.notify_all()
                    self._changed.wait()
                collect_s = max(written_at + COLLECT_S - time.monotonic(), 0.0)
                self._changed.wait_for(lambda: self._is_due, collect_s)
            while lines := self._next_lines():
                is_written = self._write(b"".join(line for line, _ in lines))
                self._note_end(lines, is_written=is_written)
            written_at = time.monotonic()

    def _next_lines(self) -> list[tuple[bytes, int]]:
        """Return the lines for one write, each with its number of characters in the queue: as many
        as fit, and at least one if any is queued."""
        lines: list[tuple[bytes, int]] = []
        size = 0
        while self._queue:
            line = self._queue[0].encode(errors="backslashreplace") + b"\n"
            size += len(line)
            if lines and size > MAX_WRITE_BYTES:
                break
            lines.append((line, len(self._queue.popleft())))
        return lines

    def _note_end(self, lines: list[tuple[bytes, int]], *, is_written: bool) -> None:
        recovered = 0
        with self._changed:
            self._queued_characters -= sum(characters for _, characters in lines)
            if not is_written:
                self._drop(len(lines))
            elif self._queued_characters < MAX_QUEUED_CHARACTERS // 2:
                recovered, self._unreported = self._unreported, 0
        if recovered and self._on_recovery is not None:
            self._on_recovery(recovered)

    def _write(self, data: bytes) -> bool:
        """Write all data, however long that takes. Returns False if the stream failed."""
        if self._is_line_open:
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                written += self._write_some(data[written:])
        except (OSError, ValueError):
            self._is_line_open = self._is_line_open or written > 0
            return False
        self._is_line_open = False
        return True

    def _write_some(self, data: bytes) -> int:
        if self._descriptor is None:
            if self.stream is not None:
                self.stream.write(data.decode())
                self.stream.flush()
            return len(data)
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Another process that shares the pipe or terminal has made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll(NONBLOCKING_PAUSE_MS)
            return 0


def _own_descriptor(stream: TextIO | None) -> int | None:
    """Duplicate the descriptor, so that nobody else closes it and its number is never reused.

    None when the stream has no descriptor.
    """
    try:
        return os.dup(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return None


class _Handler(logging.Handler):
    """Logs that a library logged a message: its logger, location and exception type.

    Never logs the library's text, which may quote a request, a key or a row.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Log an event for the record."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            level,
            "library message",
            logger=record.name,
            at=f"{record.module}:{record.lineno}",
            **_type_and_location(error),
        )


def _type_and_location(error: BaseException | None) -> dict[str, str]:
    """Return the type of an exception and its innermost frames, the innermost last."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)[-MAX_LOCATIONS:]
    locations = [f"{PurePath(frame.filename).stem}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": _error_type(error), "raised_at": " > ".join(locations)}


def _error_type(error: BaseException) -> str:
    """Return the exception's type, and the database's or system's error code."""
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    number = getattr(error, "errno", None)
    code = errno.errorcode.get(number) if isinstance(number, int) else None
    code = code or getattr(error, "sqlstate", None)
    return f"{name} [{code}]" if isinstance(code, str) else name


def _trace(error: BaseException) -> str:
    """Format the traceback of an exception and its causes, without their texts."""
    parts: list[str] = []
    link, following = "", error
    for _ in range(MAX_CHAINED):
        frames = "".join(traceback.format_tb(following.__traceback__)[-MAX_FRAMES:])
        parts.insert(
            0, f"Traceback (most recent call last):\n{frames}{_error_type(following)}\n{link}"
        )
        if following.__cause__ is not None:
            link, following = "\nwhich caused:\n\n", following.__cause__
        elif following.__context__ is not None and not following.__suppress_context__:
            link, following = "\nand while handling it:\n\n", following.__context__
        else:
            break
    return "".join(parts).rstrip("\n")


def _add_trace(_: Any, __: str, event: Event) -> Event:
    """Replace ``exc_info`` with the formatted traceback."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = _trace(error)
    return event


def redact(text: str) -> str:
    """Remove everything that looks like a key, a password in a URL or a bearer token.

    Rows that PostgreSQL quotes are removed too.
    """
    if not _may_have_secret(text):
        return text
    text = SECRET_VALUES.sub(REDACTED, text)
    return ROW_CONTENTS.sub(f"DETAIL: {REDACTED}", text) if "DETAIL:" in text else text


def _may_have_secret(text: str) -> bool:
    return any(map(text.__contains__, SECRET_MARKERS)) or OWN_KEY.search(text) is not None


def _add_request_id(_: Any, __: str, event: Event) -> Event:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


def _is_secret(name: str) -> bool:
    return SECRET_NAMES.search(name) is not None


@functools.lru_cache(maxsize=1000)
def _has_secret_name(names: tuple[str, ...]) -> bool:
    """Cached, because lines are of few kinds, and all of a kind have the same fields."""
    return any(map(_is_secret, names))


def _redact_event(_: Any, __: str, event: Event) -> Event:
    return {name: _redacted(name, value) for name, value in event.items()}


def _redacted(name: str, value: Any) -> Any:
    """Redact a value wherever it has a text: itself, or within lists, objects and exceptions."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if _is_secret(name):
        return REDACTED
    if isinstance(value, dict):
        return {redact(str(inner)): _redacted(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(name, item) for item in value]
    return redact(str(value))


@functools.lru_cache(maxsize=2)
def _format_second(unix_s: int) -> str:
    """Cached, because many lines share a second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))


def _as_json(level: str, message: Any, facts: Event, process: int | None) -> str:
    """Render a line as JSON: timestamp, level and message first, then the fields.

    Logging is a large part of a call's cost, so the whole line is searched for secrets at once, and
    fields are redacted only where it may have one.
    """
    if "exc_info" in facts:
        facts = _add_trace(None, level, facts)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    now = f"{_format_second(seconds)}.{nanos // 1000:06d}Z"
    line = {"timestamp": now, "level": level, "message": message, **facts}
    if process is not None:
        line.setdefault("process", process)
    if (current := request_id.get()) is not None:
        line.setdefault("request_id", current)
    encoded = _encode(line)
    # A second brace may begin an object within a field, which has names of its own.
    is_nested = encoded.count("{") > 1
    if is_nested or _may_have_secret(encoded) or _has_secret_name(tuple(facts)):
        encoded = _encode(_redact_event(None, level, line))
    return encoded


def _encode(line: Event) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except UnicodeEncodeError:
        # A lone surrogate, which JSON can represent and UTF-8 cannot.
        return json.dumps(line, default=str)


def _numbering(process: int) -> Callable[[Any, str, Event], Event]:
    def add(_: Any, __: str, event: Event) -> Event:
        event.setdefault("process", process)
        return event

    return add


_lines: Lines | None = None
"""The queue that this process logs to."""
_is_console = False
"""Whether its lines are for people."""


def configure(
    level: str,
    form: str,
    stream: TextIO | None = None,
    process: int | None = None,
    *,
    may_color: bool = True,
) -> None:
    """Set up logging for the process.

    ``form`` is ``json``, ``console`` or ``auto``. ``process`` is the number among several
    processes, added to each line. With ``may_color`` a terminal gets colours. Messages that
    libraries log with ``logging`` become events in the same format.
    """
    global _is_console  # noqa: PLW0603 - a process has one log
    # None if the process was started without a standard error.
    stream = stream or cast("TextIO | None", sys.stderr)
    lines = _lines_to(stream)
    is_terminal = stream is not None and stream.isatty()
    console = _is_console = form == "console" or (form == "auto" and is_terminal)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    kind = structlog.make_filtering_bound_logger(threshold)
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _add_request_id,
            *([_numbering(process)] if process is not None else []),
            _add_trace,
            _redact_event,
            Renderer(colors=is_terminal and may_color),
        ],
        wrapper_class=(
            _console_logger(kind, lines) if console else _json_logger(kind, lines, process)
        ),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_Handler()], force=True)


def detail(event: str, **facts: Any) -> None:
    """Log what programs want to read, and people only when they look for it: at level debug on a
    terminal, else at level info."""
    level = logging.DEBUG if _is_console else logging.INFO
    structlog.get_logger().log(level, event, **facts)


def capture_python_output() -> None:
    """Log Python's own output: warnings and uncaught exceptions."""

    def warn(_: object, category: type[Warning], filename: str, lineno: int, *__: Any) -> None:
        at = f"{PurePath(filename).stem}:{lineno}"
        structlog.get_logger().warning("library warning", category=category.__name__, at=at)

    def uncaught(_: object, error: BaseException, __: object) -> None:
        structlog.get_logger().critical("unhandled exception", exc_info=error)

    warnings.showwarning = warn  # type: ignore[assignment]  # the arguments are the same
    sys.excepthook = uncaught
    threading.excepthook = lambda given: structlog.get_logger().critical(
        "unhandled exception",
        thread=given.thread and given.thread.name,
        exc_info=given.exc_value,
    )
    sys.unraisablehook = lambda given: structlog.get_logger().error(
        "unhandled exception", exc_info=given.exc_value
    )


def flush(timeout_s: float) -> None:
    """Wait until everything logged is written, for at most ``timeout_s``."""
    if _lines is not None:
        _lines.flush(timeout_s)


def take_dropped() -> int:
    """Return the number of lines dropped since the last call."""
    return _lines.take_dropped() if _lines is not None else 0


def _lines_to(stream: TextIO | None) -> Lines:
    """Return the queue for a stream, reusing the current one because loggers keep it."""
    global _lines  # noqa: PLW0603 - a process has one log
    if _lines is None or _lines.stream is not stream:
        _lines = Lines(stream, _report_recovery)
    return _lines


def _report_recovery(dropped: int) -> None:
    structlog.get_logger().warning("log lines dropped", count=dropped)


def _console_logger(kind: Any, lines: Lines) -> Any:
    """Return a logger class that renders lines with the configured processors. It drops those that
    cannot be rendered."""

    class Logger(kind):  # type: ignore[misc]  # structlog creates it without a type
        def _proxy_to_logger(self, *arguments: Any, **facts: Any) -> Any:
            try:
                return super()._proxy_to_logger(*arguments, **facts)
            except Exception:  # noqa: BLE001 - logging never raises
                lines.drop()

    return Logger


def _json_logger(kind: Any, lines: Lines, process: int | None) -> Any:
    """Return a logger class that renders lines as JSON without structlog's processors, which would
    take longer than the rendering. It drops lines that cannot be rendered."""

    class Logger(kind):  # type: ignore[misc]  # structlog creates it without a type
        def _proxy_to_logger(self, level: str, event: Any = None, /, **facts: Any) -> None:
            try:
                facts = {**self._context, **facts} if self._context else facts
                getattr(lines, level)(_as_json(level, event, facts, process))
            except Exception:  # noqa: BLE001 - logging never raises
                lines.drop()

    return Logger


@contextlib.contextmanager
def step(event: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Log ``event`` with its duration when the block ends. The block may add fields."""
    started = time.perf_counter()
    yield facts
    duration_ms = round((time.perf_counter() - started) * 1000, 1)
    structlog.get_logger().info(event, **facts, duration_ms=duration_ms)
