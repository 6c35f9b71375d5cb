"""SQL functions: one in each file of ``migrations/functions/``.

After the migrations, the migrator applies each file whose text the database lacks. Migrations call
none of these functions, so a text can change without a migration, and a migration always finds the
database that it was written for.

The bookkeeping keeps every text that was applied. A text that another one has replaced belongs to
the release before, whose processes may start again during a rollout: such a start leaves the newer
text alone. So a revert to an old text needs ``scripts/migrate.sh``, or another comment.

A batch that waits for a lock while the functions are replaced goes on in the old text of
``settle_and_admit`` and calls the new texts of its steps. So a step whose meaning changes for those
that call it gets a new name, as one with another signature does.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from service.errors import StartupError

DIRECTORY: Final = "functions"
HEAD: Final = re.compile(r"(?:--[^\n]*\n)+CREATE OR REPLACE FUNCTION public\.(\w+)\s*\(")

RECORDED: Final = """
    SELECT name, array_agg(checksum ORDER BY applied_at DESC) AS checksums
    FROM yoyo.functions
    WHERE to_regproc('public.' || quote_ident(name)) IS NOT NULL
    GROUP BY name
"""
"""The texts of each function that exists, by their checksums, the newest first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function as this release has it."""

    name: str
    path: Path
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_functions(migrations: Path) -> list[Function]:
    """Read the functions beside the migrations, in the order of their names.

    :raises StartupError: when a file does not create the function of its name.
    """
    functions = []
    for path in sorted((migrations / DIRECTORY).glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        head = HEAD.match(text)
        if head is None or head[1] != path.stem:
            raise StartupError(
                f"{DIRECTORY}/{path.name} does not create public.{path.stem}.",
                "The file is a comment, then CREATE OR REPLACE FUNCTION with the file's name.",
            )
        functions.append(Function(name=path.stem, path=path, text=text))
    return functions


def compare(
    functions: Sequence[Function], recorded: Mapping[str, Sequence[str]]
) -> tuple[list[Function], list[Function]]:
    """Return the functions whose text the database lacks, and those that it has replaced since."""
    lacking, replaced = [], []
    for function in functions:
        checksums = recorded.get(function.name, ())
        if function.checksum not in checksums:
            lacking.append(function)
        elif function.checksum != checksums[0]:
            replaced.append(function)
    return lacking, replaced
