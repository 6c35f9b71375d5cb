"""Shows on a terminal how much of a long task is done, and how fast it goes."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]


class Rate(ProgressColumn):
    """How many units a second are done."""

    def render(self, task: Task) -> Text:
        """See rich."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", "dim")


@contextlib.contextmanager
def progress(unit: str, total: int | None) -> Iterator[Advance]:
    """Show a line on standard error, if that is a terminal, for the length of the block.

    The block calls the given function with the number of units that it has done. ``total`` is the
    number that it will do, None where nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    shown = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = shown.add_task(unit, total=total)
    with shown:
        yield lambda count: shown.advance(task, count)
