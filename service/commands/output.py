"""Prints the results of commands: the only place where a result becomes a table or JSON.

A command returns its result with a description of its columns. On a terminal that is a table; where
the output is piped, and with ``--json``, it is one JSON object on each line.
"""

import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

import click
import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from service.telemetry.console import format_duration, format_milliseconds

Kind = Literal["text", "id", "state", "count", "usd", "time", "milliseconds", "share"]
"""How a value is shown. A ``state`` is a word that is green, yellow or red by its meaning."""

RIGHT_ALIGNED: Final = ("count", "usd", "milliseconds", "share")
GAP: Final = 2
"""Spaces between two columns."""
NONE: Final = "–"
MAX_RELATIVE_S: Final = 60 * 86_400
"""Times further away than this are shown as a date."""
STATE_STYLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("active", "ok", "well", "intact", "yes"), "green"),
    **dict.fromkeys(("suspended", "low", "cooldown", "warning", "unknown", "note"), "yellow"),
    **dict.fromkeys(
        ("revoked", "expired", "disabled", "deleted", "invalid", "spent", "forbidden", "problem"),
        "red",
    ),
}
UNPRINTABLE: Final = "�"
JSON_KEY: Final = "rialto.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or a line of one object.

    ``value`` is an attribute or a function of the row. ``none`` is shown for None. A column that
    ``is_optional`` is left out of a table where no row has a value, or where the terminal has no
    room for it. One that ``is_cut`` is shortened to fit instead of using more lines.
    """

    title: str
    value: str | Callable[[Any], Any]
    kind: Kind = "text"
    none: str = NONE
    is_optional: bool = False
    is_cut: bool = False

    def of(self, row: Any) -> Any:
        """Return the value of a row."""
        return getattr(row, self.value) if isinstance(self.value, str) else self.value(row)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A list. ``empty`` is what a terminal shows instead of an empty table.

    ``total`` is a last row of the table. ``as_json`` replaces the rows as JSON, for a result that
    is one object. ``notes`` and ``next_steps`` (commands) follow the table on a terminal only.
    """

    rows: Sequence[Any]
    columns: Sequence[Column]
    empty: str = "There are none."
    total: Any = None
    as_json: Sequence[Any] | None = None
    notes: Sequence[str] = ()
    next_steps: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One object, on a terminal a line for each column. ``parts`` are lists below it.

    ``as_json`` replaces the object as JSON.
    """

    item: Any
    columns: Sequence[Column]
    as_json: Any = None
    parts: Sequence[tuple[str, Rows]] = ()
    notes: Sequence[str] = ()
    next_steps: Sequence[str] = ()


Result = Rows | Facts | None
"""None prints nothing."""


def _use_json(context: click.Context, _: click.Parameter, is_json: bool) -> None:
    context.meta[JSON_KEY] = is_json


class Command(click.Command):
    """A command with a result, which has the option ``--json``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.append(
            click.Option(
                ["--json"],
                is_flag=True,
                expose_value=False,
                callback=_use_json,
                help="Print JSON, as into a pipe.",
            )
        )


class CommandGroup(click.Group):
    """A group of commands with results."""

    command_class = Command


def is_for_people() -> bool:
    """Return whether the result goes to a terminal, as tables."""
    context = click.get_current_context(silent=True)
    is_json = context is not None and context.meta.get(JSON_KEY, False)
    return sys.stdout.isatty() and not is_json


def show(result: Result) -> None:
    """Print the result of a command."""
    if result is None:
        return
    if not is_for_people():
        for line in _json_of(result):
            click.echo(msgspec.json.encode(line).decode())
        return
    show_parts(result)
    console = Console()
    for note in result.notes:
        console.print(_text(note))
    if result.next_steps:
        console.print()
        for number, step in enumerate(result.next_steps):
            lead = "       " if number else "Next:  "
            console.print(Text(lead, "dim").append(_printable(step), "cyan"), soft_wrap=True)


def show_parts(*parts: Result | str) -> None:
    """Print results and headings to the terminal, one below the other."""
    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(_text(part, "bold"))
        elif part is not None:
            shown = _facts(part, console) if isinstance(part, Facts) else _rows(part, console)
            console.print(shown)


def _json_of(result: Rows | Facts) -> Sequence[Any]:
    if isinstance(result, Facts):
        return [result.item if result.as_json is None else result.as_json]
    return result.rows if result.as_json is None else result.as_json


def _rows(result: Rows, console: Console) -> Any:
    if not result.rows:
        return _text(result.empty)
    rows = [*result.rows, *([] if result.total is None else [result.total])]
    cells = {column: [cell(column, row) for row in rows] for column in result.columns}
    columns = _fitting(result, cells, console.width)
    max_widths = _max_widths(columns, cells, console.width)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    for column in columns:
        is_right = column.kind in RIGHT_ALIGNED
        table.add_column(
            Text(column.title),
            justify="right" if is_right else "left",
            no_wrap=is_right or column.is_cut or column.kind in ("id", "time", "state"),
            overflow="ellipsis" if column.is_cut else "fold",
            max_width=max_widths.get(column),
        )
    for number in range(len(rows)):
        is_total = result.total is not None and number == len(rows) - 1
        if is_total:
            table.add_section()
        table.add_row(
            *(cells[column][number] for column in columns), style="bold" if is_total else None
        )
    return table


def _fitting(result: Rows, cells: Mapping[Column, Sequence[Text]], width: int) -> Sequence[Column]:
    """Return the columns that are not optional, and of the others those that have a value and fit,
    the first ones first."""
    chosen = {column for column in result.columns if not column.is_optional}
    for column in result.columns:
        if column.is_optional and any(column.of(row) is not None for row in result.rows):
            wider = {*chosen, column}
            if _width(wider, cells) <= width:
                chosen = wider
    return [column for column in result.columns if column in chosen]


def _max_widths(
    columns: Sequence[Column], cells: Mapping[Column, Sequence[Text]], width: int
) -> Mapping[Column, int]:
    """Share the room that the other columns leave among those that may be cut."""
    cut = sorted(
        (column for column in columns if column.is_cut), key=lambda one: _width([one], cells)
    )
    others = [column for column in columns if not column.is_cut]
    room = width - _width(others, cells) - GAP * len(cut)
    widths: dict[Column, int] = {}
    for number, column in enumerate(cut):
        widths[column] = max(1, min(_width([column], cells), room // (len(cut) - number)))
        room -= widths[column]
    return widths


def _width(columns: Collection[Column], cells: Mapping[Column, Sequence[Text]]) -> int:
    widths = (
        max(cell_len(column.title), *(cell_len(one.plain) for one in cells[column]))
        for column in columns
    )
    return sum(widths) + GAP * (len(columns) - 1)


def _facts(result: Facts, console: Console) -> Any:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, GAP, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for column in result.columns:
        value = column.of(result.item)
        if value is None and column.none == "":
            continue
        shown = cell(column, result.item)
        if isinstance(value, datetime):
            shown = Text(f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({shown.plain})")
        table.add_row(Text(column.title), shown)
    parts: list[Any] = [table]
    for title, rows in result.parts:
        parts += [Text(), _text(title, "bold"), _rows(rows, console)]
    return Group(*parts)


def cell(column: Column, row: Any) -> Text:
    """Return the text of a value, without control characters, whoever chose the value."""
    value = column.of(row)
    if value is None:
        return Text(column.none, "dim")
    text = _printable(_format(column.kind, value))
    style = STATE_STYLES.get(text, "") if column.kind == "state" else ""
    return Text(text, "dim" if column.kind == "id" else style)


def _format(kind: Kind, value: Any) -> str:
    if isinstance(value, datetime):
        return format_age(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or NONE
    return FORMATS.get(kind, str)(value)


def format_usd(amount: str) -> str:
    """Format a decimal string of US dollars, with every digit: ``$1,234.50``, ``-$0.0000123``."""
    whole, _, fraction = amount.lstrip("-").partition(".")
    sign = "-" if amount.startswith("-") else ""
    return f"{sign}${Decimal(whole):,}.{fraction.ljust(2, '0')}"


def format_age(at: datetime) -> str:
    """Format a time from now: ``3 min ago``, ``in 2 h``; as a date if it is months away."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    if abs(seconds) > MAX_RELATIVE_S:
        return f"{at.astimezone(UTC):%Y-%m-%d}"
    if abs(seconds) < 1:
        return "now"
    duration = format_duration(abs(seconds))
    return f"{duration} ago" if seconds > 0 else f"in {duration}"


def _format_count(count: int | str) -> str:
    return f"{count:,}" if isinstance(count, int) else count


FORMATS: Final[Mapping[Kind, Callable[[Any], str]]] = {
    "usd": format_usd,
    "count": _format_count,
    "milliseconds": format_milliseconds,
    "share": "{:.0%}".format,
}


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else UNPRINTABLE for one in text)


def _text(text: str, style: str = "") -> Text:
    return Text(_printable(text), style)
