"""Whether calls can be admitted, by the outcome of the last write to the books."""

import asyncio
import time
from typing import Final

import structlog

log = structlog.get_logger()

SEQUENCE_EXHAUSTED: Final = "2200H"


class Condition:
    """The condition of the books of one process. ``problem`` is the class of the error that the
    last write ended with, or None after one that went well."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.has_changed = asyncio.Event()
        """Set when a problem arises."""
        self._succeeded_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """The time since the last write that went well."""
        return time.monotonic() - self._succeeded_at

    def succeeded(self) -> None:
        """Note that a write went well."""
        self._succeeded_at = time.monotonic()
        if self.problem is not None:
            self.problem = None
            log.info("the books can be written again")

    def failed(self, error: Exception) -> None:
        """Note that a write failed, unless the data of that one call caused it."""
        cause = _root(error)
        if _is_of_one_call(cause):
            return
        if self.problem is None:
            log.error("the books cannot be written", error=type(cause).__name__)
        self.problem = type(cause).__name__
        self.has_changed.set()


def is_of_schema(error: Exception) -> bool:
    """Whether the tables or functions are not there, or not for this user."""
    return str(getattr(error, "sqlstate", "")).startswith("42")


def _root(error: BaseException) -> BaseException:
    """The driver's own error behind ours."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _is_of_one_call(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("22"):
        return state != SEQUENCE_EXHAUSTED
    return state.startswith("23") and getattr(error, "constraint_name", None) is not None
