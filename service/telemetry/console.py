"""Renders log lines for a terminal, so that each reads from left to right. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

MAX_ITEMS: Final = 4
"""Of a longer list only the number of its items is shown."""
METHOD_WIDTH: Final = 6
PATH_WIDTH: Final = 22
MS_WIDTH: Final = 8
REQUEST: Final = "request"
UNITS_S: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
LEADING: Final = ("timestamp", "level", "event", "exception", "hint", "duration_ms", "process")
"""Fields with a place of their own in a line."""

RESET: Final = "\033[0m"
STYLES: Final[Mapping[str, str]] = {
    "dim": "\033[2m",
    "bold": "\033[1m",
    "green": "\033[32m",
    "yellow": "\033[33m",
    "red": "\033[31m",
}
LEVEL_STYLES: Final[Mapping[str, str]] = {
    "debug": "dim",
    "warning": "yellow",
    "error": "red",
    "critical": "red",
}


class Renderer:
    """The last of structlog's processors: turns an event into a line, with colours or without."""

    def __init__(self, *, colors: bool) -> None:
        self._colors = colors

    def __call__(self, _: Any, __: str, event: Mapping[str, Any]) -> str:
        """Render an event."""
        if event.get("event") == REQUEST and "status" in event:
            line = self.request(event)
        else:
            line = self._event(event)
        return f"{self._style('dim', str(event.get('timestamp', '')))} {line}".strip()

    def request(self, facts: Mapping[str, Any]) -> str:
        """Render a request: method, path, status, code, time, key, model and cost, without those
        that are not known."""
        status = int(facts["status"])
        style = "green" if status < 400 else "yellow" if status < 500 else "red"
        outcome = facts.get("outcome")
        code = facts.get("code") or (outcome if outcome not in (None, "ok") else "")
        duration_ms = facts.get("duration_ms")
        duration = "" if duration_ms is None else format_milliseconds(duration_ms)
        cost = facts.get("cost_usd")
        parts = [
            str(facts.get("method", "")).ljust(METHOD_WIDTH),
            str(facts.get("route", "")).ljust(PATH_WIDTH),
            self._style(style, " ".join(filter(None, (str(status), code)))),
            duration.rjust(MS_WIDTH),
            str(facts.get("key_prefix") or ""),
            _format(facts.get("model") or ""),
            "" if cost is None else f"${shorten_usd(str(cost))}",
        ]
        return "  ".join(part for part in parts if part.strip())

    def _event(self, event: Mapping[str, Any]) -> str:
        level = str(event.get("level", "info"))
        message = self._style(LEVEL_STYLES.get(level, "bold"), str(event.get("event", "")))
        if level in ("warning", "error", "critical"):
            message = f"{self._style(LEVEL_STYLES[level], f'{level}:')} {message}"
        facts = " ".join(
            f"{name}={_format(value)}" for name, value in event.items() if name not in LEADING
        )
        parts = [message, self._style("dim", facts)]
        if (duration_ms := event.get("duration_ms")) is not None:
            parts.append(self._style("dim", f"({format_milliseconds(duration_ms)})"))
        if (process := event.get("process")) is not None:
            parts.insert(0, self._style("dim", f"[{process}]"))
        line = "  ".join(part for part in parts if part)
        for name in ("hint", "exception"):
            if event.get(name):
                line += f"\n{event[name]}"
        return line

    def _style(self, style: str, text: str) -> str:
        return f"{STYLES[style]}{text}{RESET}" if self._colors and text else text


def format_milliseconds(milliseconds: float) -> str:
    """Format a duration in the unit that suits it: ``812 ms``, ``4.2 s``, ``3 min``."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    return format_duration(milliseconds / 1000)


def format_duration(seconds: float) -> str:
    """Format a duration in its largest whole unit: ``45 s``, ``3 min``, ``2 h``, ``5 d``."""
    for unit_s, unit in UNITS_S:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {unit}"
    return "0 s"


def shorten_usd(amount: str) -> str:
    """Remove the zeros at the end of a decimal string, but not the first two decimals."""
    whole, _, fraction = amount.partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"


def _format(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return str(len(value)) if len(value) > MAX_ITEMS else ",".join(map(str, value)) or "none"
    text = str(value)
    return repr(text) if " " in text or not text.isprintable() else text
