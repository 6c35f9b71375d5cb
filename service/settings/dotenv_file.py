"""The ``.env`` file, below the environment."""

import difflib
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream
from environs import Env

MIN_SIMILARITY: Final = 0.85
"""How alike two names are of which one may be meant for the other, from 0 to 1."""


def read(env: Env, path: Path) -> list[str]:
    """Take the file's variables that the environment does not set; returns its mistakes, which name
    the line and never show it."""
    # It would log what is reported here.
    logging.getLogger("dotenv").setLevel(logging.CRITICAL)
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            bad = [one.original for one in parse_stream(file) if _is_mistaken(one)]
        env.read_env(path, recurse=False)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        return [f"{path}: cannot be read: {reason}"]
    # A statement begins with the empty lines before it.
    lines = [one.line + one.string.rstrip().count("\n") for one in bad]
    return [f"{path}: line {line} cannot be read; the form is NAME=value" for line in lines]


def _is_mistaken(line: Binding) -> bool:
    """Whether it cannot be parsed, or is ``NAME:value``, which passes for a bare name."""
    is_bare = line.key is not None and line.value is None
    return line.error or (is_bare and not str(line.key).isidentifier())


def names(path: Path) -> Collection[str]:
    """The variables that the file sets; none when it cannot be read, which ``read`` reports."""
    try:
        return dotenv_values(path).keys()
    except (OSError, ValueError):
        return ()


def misspelt(names: Collection[str], known: Collection[str]) -> dict[str, str | None]:
    """Names that are not known and look like a misspelt one that is, with that one; all that begin
    with ``VENICE_`` look like one."""
    found: dict[str, str | None] = {}
    for name in sorted(set(names) - set(known)):
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=MIN_SIMILARITY)
        if close or name.startswith("VENICE_"):
            found[name] = close[0] if close else None
    return found
