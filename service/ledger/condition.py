"""Tracks whether the ledger can be written, by the outcome of its last write."""

import asyncio
import time
from typing import Final

import structlog

log = structlog.get_logger()

SEQUENCE_EXHAUSTED: Final = "2200H"


class Condition:
    """Whether one process can write to the ledger.

    ``problem`` is the error class of the last write, or None after a successful one.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self.has_changed = asyncio.Event()
        """Set when a problem arises."""
        self._succeeded_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """The seconds since the last successful write."""
        return time.monotonic() - self._succeeded_at

    def succeeded(self) -> None:
        """Record a successful write."""
        self._succeeded_at = time.monotonic()
        if self.problem is not None:
            self.problem = None
            log.info("ledger writes recovered")

    def failed(self, error: Exception) -> None:
        """Record a failed write, unless the data of a single call caused it."""
        cause = _root_cause(error)
        if _is_data_error(cause):
            return
        if self.problem is None:
            log.error("ledger writes failing", error=type(cause).__name__)
        self.problem = type(cause).__name__
        self.has_changed.set()


def is_schema_error(error: Exception) -> bool:
    """True when tables or functions are missing, or this user may not use them."""
    return str(getattr(error, "sqlstate", "")).startswith("42")


def _root_cause(error: BaseException) -> BaseException:
    """Return the driver's error that caused ours."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _is_data_error(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("22"):
        return state != SEQUENCE_EXHAUSTED
    return state.startswith("23") and getattr(error, "constraint_name", None) is not None
