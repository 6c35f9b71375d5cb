"""``docs/settings.md`` and ``.env.example``, made from the declarations of the settings."""

import textwrap
from typing import Any, Final

from service.settings import REQUIRED, SURROUNDINGS, variables

DOTENV_HEAD: Final = """\
# Copy this file to .env and uncomment what you change. The environment wins over .env.
#
# The values are the defaults of development. docs/settings.md has those of production and the range
# of each number. Made from service/settings/settings.py by scripts/docs.sh; do not edit.
"""
COMMENT_WIDTH: Final = 98


def dotenv() -> str:
    """The file ``.env.example``: every variable with a comment, none of them set."""
    defaults = {variable.name: (variable.text, variable.development) for variable in variables()}
    names = {name: (text, None) for name, text in SURROUNDINGS.items()} | defaults
    paragraphs = [
        "\n".join(
            [
                *(f"# {line}" for line in textwrap.wrap(text.replace("`", ""), COMMENT_WIDTH)),
                f"#{name}={_dotenv_value(default)}",
            ]
        )
        for name, (text, default) in names.items()
    ]
    return "\n".join([DOTENV_HEAD, "\n\n".join(paragraphs), ""])


def _dotenv_value(default: Any) -> str:
    return "" if default in (None, ()) else _written(default)


def markdown() -> str:
    """The page ``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "Made from `service/settings/settings.py` by `scripts/docs.sh`; do not edit.",
        "",
        "Settings come from the environment and, below it, from a `.env` file. All mistakes are",
        "reported at once and the process exits with status 78 before it opens anything.",
        "",
        "These decide what the others mean:",
        "",
        "| variable | meaning |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in SURROUNDINGS.items()),
        "",
        "| variable | kind | development | production | meaning |",
        "|---|---|---|---|---|",
    ]
    for variable in variables():
        kind = f"{variable.kind}: {variable.rule.text}" if variable.rule.text else variable.kind
        shown = [_shown(variable.development), _shown(variable.production)]
        lines.append(f"| `{variable.name}` | {kind} | {shown[0]} | {shown[1]} | {variable.text} |")
    return "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
    if default is None:
        return "–"
    if default == REQUIRED:
        return "**required**"
    return f"`{_written(default)}`" if default != "" else "empty"


def _written(default: Any) -> str:
    is_whole = isinstance(default, float) and default.is_integer()
    return str(int(default) if is_whole else default)
