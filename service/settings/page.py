"""The page ``docs/settings.md``, made from the declarations of the settings."""

from typing import Any

from service.settings import REQUIRED, SURROUNDINGS, variables


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
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{default}`" if default != "" else "empty"
