"""Asks before what cannot be undone."""

import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
YES_KEY = "rialto.yes"


def _remember(context: click.Context, _: click.Parameter, is_confirmed: bool) -> None:
    context.meta[YES_KEY] = is_confirmed


def asks_first(command: F) -> F:
    """Give a command the option ``--yes``, which answers :func:`confirm`."""
    return click.option(
        "--yes",
        is_flag=True,
        expose_value=False,
        callback=_remember,
        help="Do not ask for confirmation.",
    )(command)


def confirm(what: str) -> None:
    """Ask on the terminal whether to do something; ``what`` is a question with its consequence.

    :raises click.UsageError: without a terminal to ask on, and without ``--yes``.
    :raises click.Abort: when the answer is no.
    """
    if click.get_current_context().meta.get(YES_KEY, False):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{what} There is no terminal to ask on: repeat it with --yes.")
    # asyncio's handler would only cancel the task, which waits for the answer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.confirm(what, abort=True, err=True)
    finally:
        signal.signal(signal.SIGINT, handler)
