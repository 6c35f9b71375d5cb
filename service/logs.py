"""Structured log lines: for people on a terminal, JSON otherwise.

A line is an event and its facts: ``log.info("database connected", host=…, duration_ms=…)``. The id
of the request at hand is added from a context variable. Values of keys that name a secret are
replaced, and so is everything that looks like one, in every line and traceback.
"""

import asyncio
import atexit
import contextlib
import functools
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TextIO

import msgspec
import structlog

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)

REDACTED: Final = "[redacted]"
SECRET_NAMES: Final = re.compile(
    r"password|secret|authorization|api_?key$|_key$|token$", re.IGNORECASE
)
SECRET_VALUES: Final = re.compile(
    r"rk_[A-Za-z0-9_-]{20,}|VENICE_[A-Z]+_KEY_[^\s\"']+|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
    r"|(?<=Bearer )[^\s\"']+"
)
ROW_CONTENTS: Final = re.compile(
    r"\bDETAIL:.*?(?=\s+(?:HINT|CONTEXT):|\n\n(?:The above|During handling)|\Z)",
    re.DOTALL,
)
"""Where PostgreSQL shows the row that it refused: over several lines when a value has some."""
SIGNS: Final = ("rk_", "VENICE_", "://", "Bearer ", "DETAIL:")
"""One of these is in every text that has something to redact; most have none."""

MOST_TOGETHER_BYTES: Final = 4096
"""As much as a pipe takes at once (PIPE_BUF of Linux), so that the lines of several processes do
not run into each other."""

Event = MutableMapping[str, Any]


class Lines:
    """Writes lines to a stream. What is said in one turn of the event loop is written together at
    its end: many calls end at once, and a write for each takes longer than all else a line costs. A
    warning or worse is written at once, with all that was said before it; so is what is said
    outside of the loop.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        """Which will write what waits."""
        atexit.register(self.flush)

    def info(self, line: str) -> None:
        """To be written by the end of this turn of the loop."""
        with self._lock:
            self._wait(line)
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self.flush()
                return
            if loop is not self._loop:
                self._loop = loop
                loop.call_soon(self.flush)

    def warning(self, line: str) -> None:
        """To be written now."""
        with self._lock:
            self._wait(line)
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            text, self._waiting, self._waiting_bytes = "".join(self._waiting), [], 0
            self._loop = None
            if text:
                self._stream.write(text)
                self._stream.flush()

    def _wait(self, line: str) -> None:
        size = len(line.encode(errors="replace")) + 1
        if self._waiting_bytes + size > MOST_TOGETHER_BYTES:
            self.flush()
        self._waiting.append(f"{line}\n")
        self._waiting_bytes += size

    debug = info
    error = critical = warning


class _Handler(logging.StreamHandler[TextIO]):
    """Writes what libraries say, after what was said before it."""

    def __init__(self, stream: TextIO, lines: Lines) -> None:
        super().__init__(stream)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.flush()
        super().emit(record)


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
        event = structlog.processors.format_exc_info(logger, level, event)
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    now = f"{_to_the_second(seconds)}.{nanos // 1000:06d}Z"
    said = event.pop("event", None)
    if isinstance(said, str):
        said = redact(said)
    line = {"timestamp": now, "level": level, "message": said}
    line.update(_redact_event(logger, level, _add_request_id(logger, level, event)))
    return msgspec.json.encode(line, enc_hook=str).decode()


def _numbering(process: int) -> Callable[[Any, str, Event], Event]:
    def add(_: Any, __: str, event: Event) -> Event:
        event.setdefault("process", process)
        return event

    return add


def configure(
    level: str, form: str, stream: TextIO | None = None, process: int | None = None
) -> None:
    """Set up logging for the process; ``form`` is ``json``, ``console`` or ``auto``. ``process`` is
    its number among several, which each of its lines then says.

    Lines of libraries that use the standard ``logging`` take the same form.
    """
    stream = stream or sys.stderr
    lines = Lines(stream)
    console = form == "console" or (form == "auto" and stream.isatty())
    numbering = [_numbering(process)] if process is not None else []
    if console:
        first: list[Any] = [
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _add_request_id,
            *numbering,
        ]
        finish: list[Any] = [
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        first, finish = numbering, [_as_json]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*first, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    handler = _Handler(stream, lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


@contextlib.contextmanager
def step(event: str, **facts: Any) -> Iterator[dict[str, Any]]:
    """Logs ``event`` with its duration when the block is done; the block may add facts."""
    started = time.perf_counter()
    yield facts
    duration_ms = round((time.perf_counter() - started) * 1000, 1)
    structlog.get_logger().info(event, **facts, duration_ms=duration_ms)
