"""Structured log lines: for people on a terminal, JSON otherwise.

A line is an event and its facts: ``log.info("database connected", host=…, duration_ms=…)``. The id
of the request at hand is added from a context variable. Values of keys that name a secret are
replaced, and so is everything that looks like one.

No line has a byte of a request. So no text of an exception or of a library is logged: either may
quote what it is about. A traceback has types, codes and places.
"""

import atexit
import contextlib
import errno
import functools
import json
import logging
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
"""Where PostgreSQL shows the row that it refused: over several lines when a value has some."""
SIGNS: Final = ("rk_", "VENICE_", "://", "earer ", "sk-", "DETAIL:")
"""One of these is in every text that has something to redact; most have none."""

MAX_WRITE_BYTES: Final = 4096
"""A pipe takes this much in one piece (PIPE_BUF of Linux), so the lines of several processes do not
run into each other."""
MAX_QUEUED_CHARACTERS: Final = 4 << 20
"""About 15,000 lines. Beyond them lines are dropped."""
GATHERING_S: Final = 0.005
"""The writer lets lines gather for this long, so that it wakes up at most 200 times a second."""
NONBLOCKING_PAUSE_MS: Final = 1000
MAX_PLACES: Final = 5
MAX_CHAINED: Final = 5
MAX_FRAMES: Final = 40
EXIT_FLUSH_S: Final = 2.0
"""How long the end of a process waits for its last lines to be written."""

Event = MutableMapping[str, Any]


class Lines:
    """A bounded queue of lines, and the thread that writes them to a stream.

    Nobody who logs waits or gets an error: a stream that takes no more (a full pipe, a stopped
    terminal) stops the writer thread alone, and then the queue fills and further lines are dropped;
    a stream that fails (a closed pipe, a full disk) loses what was written to it. Dropped lines are
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
        self._thread: threading.Thread | None = None
        self._is_line_open = False
        """A write failed within a line."""
        self._unreported = 0
        self._uncounted = 0
        atexit.register(self.flush, EXIT_FLUSH_S)

    def put(self, line: str) -> None:
        """Queue the line, or drop it."""
        with self._changed:
            if self._queued_characters + len(line) > MAX_QUEUED_CHARACTERS or not self._can_write():
                self._drop(1)
                return
            self._queue.append(line)
            self._queued_characters += len(line)
            if self._is_idle:
                self._is_idle = False
                self._changed.notify_all()

    debug = info = warning = error = critical = put

    def drop(self) -> None:
        """Count a line that could not even be made."""
        with self._changed:
            self._drop(1)

    def flush(self, timeout_s: float) -> None:
        """Wait until all lines are written, but no longer than ``timeout_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle, timeout_s)

    def take_dropped(self) -> int:
        """How many lines were dropped since this was last called."""
        with self._changed:
            dropped, self._uncounted = self._uncounted, 0
        return dropped

    def _drop(self, count: int) -> None:
        self._unreported += count
        self._uncounted += count

    def _can_write(self) -> bool:
        """Whether there is a stream and a thread; the thread is started when it is needed first."""
        if self._thread is None and self.stream is not None:
            thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._is_idle = True
                    self._changed.notify_all()
                    self._changed.wait()
            time.sleep(GATHERING_S)
            while lines := self._next_lines():
                is_written = self._write("".join(lines).encode(errors="backslashreplace"))
                self._note_end(lines, is_written=is_written)

    def _next_lines(self) -> list[str]:
        """As many as go into one write, and at least one if there is one."""
        lines: list[str] = []
        size = 0
        while self._queue:
            line = f"{self._queue[0]}\n"
            size += len(line.encode(errors="backslashreplace"))
            if lines and size > MAX_WRITE_BYTES:
                break
            lines.append(line)
            self._queue.popleft()
        return lines

    def _note_end(self, lines: list[str], *, is_written: bool) -> None:
        recovered = 0
        with self._changed:
            self._queued_characters -= sum(len(line) - 1 for line in lines)
            if not is_written:
                self._drop(len(lines))
            elif self._queued_characters < MAX_QUEUED_CHARACTERS // 2:
                recovered, self._unreported = self._unreported, 0
        if recovered and self._on_recovery is not None:
            self._on_recovery(recovered)

    def _write(self, data: bytes) -> bool:
        """Whether all of it was written, however long that takes."""
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
            # Another process with the same pipe or terminal has made it non-blocking.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll(NONBLOCKING_PAUSE_MS)
            return 0


def _own_descriptor(stream: TextIO | None) -> int | None:
    """A descriptor that nobody else closes, so it never comes to be a file or connection of another
    purpose. None when the stream is not one of the system's."""
    try:
        return os.dup(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return None


class _Handler(logging.Handler):
    """Logs that a library logged something: which one, where, and the kind of its exception. Never
    its own text, which may quote the request, the key or the row that it is about."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log an event of ours for the record."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            level,
            "library reports",
            logger=record.name,
            at=f"{record.module}:{record.lineno}",
            **_kind_and_place(error),
        )


def _kind_and_place(error: BaseException | None) -> dict[str, str]:
    """The type of an exception and its innermost frames, the innermost last."""
    if error is None:
        return {}
    frames = traceback.extract_tb(error.__traceback__)[-MAX_PLACES:]
    places = [f"{PurePath(frame.filename).stem}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": _kind(error), "raised_at": " > ".join(places)}


def _kind(error: BaseException) -> str:
    """The type, and the code that the database or the system has for it."""
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    number = getattr(error, "errno", None)
    code = errno.errorcode.get(number) if isinstance(number, int) else None
    code = code or getattr(error, "sqlstate", None)
    return f"{name} [{code}]" if isinstance(code, str) else name


def _trace(error: BaseException) -> str:
    """The traceback of an exception and of those it came from, without their texts."""
    parts: list[str] = []
    link, following = "", error
    for _ in range(MAX_CHAINED):
        frames = "".join(traceback.format_tb(following.__traceback__)[-MAX_FRAMES:])
        parts.insert(0, f"Traceback (most recent call last):\n{frames}{_kind(following)}\n{link}")
        if following.__cause__ is not None:
            link, following = "\nwhich was the cause of:\n\n", following.__cause__
        elif following.__context__ is not None and not following.__suppress_context__:
            link, following = "\nand while it was handled:\n\n", following.__context__
        else:
            break
    return "".join(parts).rstrip("\n")


def _add_trace(_: Any, __: str, event: Event) -> Event:
    """The traceback in place of ``exc_info``."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        event["exception"] = _trace(error)
    return event


def redact(text: str) -> str:
    """The text without what looks like a key, a password in a URL or a bearer token, and without
    the rows in what the database says."""
    for sign in SIGNS:
        if sign in text:
            break
    else:
        return text
    text = SECRET_VALUES.sub(REDACTED, text)
    return ROW_CONTENTS.sub(f"DETAIL: {REDACTED}", text) if "DETAIL:" in text else text


def _add_request_id(_: Any, __: str, event: Event) -> Event:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


@functools.lru_cache(maxsize=1000)
def _is_secret(name: str) -> bool:
    """Names are few, and the same in every line."""
    return SECRET_NAMES.search(name) is not None


def _redact_event(_: Any, __: str, event: Event) -> Event:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = REDACTED if _is_secret(name) else redact(value)
    return event


@functools.lru_cache(maxsize=2)
def _to_the_second(unix_s: int) -> str:
    """Many lines have the same one."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))


def _as_json(logger: Any, level: str, event: Event) -> str:
    """When, how bad, what; then the facts, all without secrets. It does alone what several
    processors would: a line is a good part of what a call costs."""
    if "exc_info" in event:
        event = _add_trace(logger, level, event)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    now = f"{_to_the_second(seconds)}.{nanos // 1000:06d}Z"
    said = event.pop("event", None)
    if isinstance(said, str):
        said = redact(said)
    line = {"timestamp": now, "level": level, "message": said}
    line.update(_redact_event(logger, level, _add_request_id(logger, level, event)))
    return _encode(line)


def _encode(line: Event) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
        return json.dumps(line, default=str)


def _numbering(process: int) -> Callable[[Any, str, Event], Event]:
    def add(_: Any, __: str, event: Event) -> Event:
        event.setdefault("process", process)
        return event

    return add


_lines: Lines | None = None
"""What this process logs to."""


def configure(
    level: str, form: str, stream: TextIO | None = None, process: int | None = None
) -> None:
    """Set up logging for the process; ``form`` is ``json``, ``console`` or ``auto``. ``process`` is
    its number among several, which each of its lines then has.

    What libraries log by the standard ``logging`` becomes events of the same form.
    """
    # None where the process was started without a standard error.
    stream = stream or cast("TextIO | None", sys.stderr)
    lines = _lines_to(stream)
    is_terminal = stream is not None and stream.isatty()
    console = form == "console" or (form == "auto" and is_terminal)
    numbering = [_numbering(process)] if process is not None else []
    if console:
        first: list[Any] = [
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _add_request_id,
            *numbering,
        ]
        finish: list[Any] = [
            _add_trace,
            _redact_event,
            structlog.dev.ConsoleRenderer(
                colors=is_terminal, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        first, finish = numbering, [_as_json]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*first, *finish],
        wrapper_class=_never_raising(structlog.make_filtering_bound_logger(threshold), lines),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[_Handler()], force=True)


def take_over() -> None:
    """Log what Python itself would print, as what libraries log: warnings, and exceptions that
    nobody caught."""

    def warn(_: object, category: type[Warning], filename: str, lineno: int, *__: Any) -> None:
        at = f"{PurePath(filename).stem}:{lineno}"
        structlog.get_logger().warning("library warns", category=category.__name__, at=at)

    def uncaught(_: object, error: BaseException, __: object) -> None:
        structlog.get_logger().critical("unhandled exception", exc_info=error)

    warnings.showwarning = warn  # type: ignore[assignment]  # it takes the same arguments
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
    """Wait until what was logged is written, but no longer than ``timeout_s``."""
    if _lines is not None:
        _lines.flush(timeout_s)


def take_dropped() -> int:
    """How many lines were dropped since this was last called."""
    return _lines.take_dropped() if _lines is not None else 0


def _lines_to(stream: TextIO | None) -> Lines:
    """The same ones for the same stream: loggers that are in use keep theirs."""
    global _lines  # noqa: PLW0603 - a process has one log
    if _lines is None or _lines.stream is not stream:
        _lines = Lines(stream, _report_recovery)
    return _lines


def _report_recovery(dropped: int) -> None:
    structlog.get_logger().warning("log lines dropped", count=dropped)


def _never_raising(kind: Any, lines: Lines) -> Any:
    """A kind of logger that drops what it cannot render."""

    class Logger(kind):  # type: ignore[misc]  # it is made by structlog, and has no type
        def _proxy_to_logger(self, *arguments: Any, **facts: Any) -> Any:
            try:
                return super()._proxy_to_logger(*arguments, **facts)
            except Exception:  # noqa: BLE001 - logging never raises
                lines.drop()

    return Logger


@contextlib.contextmanager
def step(event: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Logs ``event`` with its duration when the block is done; the block may add facts."""
    started = time.perf_counter()
    yield facts
    duration_ms = round((time.perf_counter() - started) * 1000, 1)
    structlog.get_logger().info(event, **facts, duration_ms=duration_ms)
