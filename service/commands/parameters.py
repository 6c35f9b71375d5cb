"""Option types, parsed as the API parses their values, and options of many commands."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import click

from service import money
from service.accounts import find_key_id, find_organization_id
from service.database.database import Database
from service.formats.parsing import parse_decimal, parse_moment, parse_whole

F = TypeVar("F", bound=Callable[..., Any])

DURATION: Final = re.compile(r"([0-9]{1,9})(s|min|h|d)", re.ASCII)
UNITS_S: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


class WholeNumber(click.ParamType[int]):
    """A whole number within bounds."""

    name = "number"

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """See click."""
        try:
            number = parse_whole(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if not self.low <= number <= self.high:
            self.fail(f"must be between {self.low} and {self.high}.", param, ctx)
        return number


class Time(click.ParamType[datetime]):
    """A day, which begins at midnight UTC, or a time with its zone."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """See click."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Duration(click.ParamType[int]):
    """A number of seconds, minutes, hours or days. Returns seconds."""

    name = "duration"

    def __init__(self, high_s: int) -> None:
        self.high_s = high_s

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """See click."""
        if isinstance(value, int):
            return value
        match = DURATION.fullmatch(value)
        if match is None:
            self.fail("must be a number with s, min, h or d, as 24h.", param, ctx)
        seconds = int(match[1]) * UNITS_S[match[2]]
        if seconds > self.high_s:
            self.fail(f"must be at most {self.high_s // 86_400} d.", param, ctx)
        return seconds


class Share(click.ParamType[float]):
    """A share of a whole, from 0 to 1, or a percentage."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """See click."""
        if isinstance(value, float):
            return value
        try:
            share = float(parse_decimal(value.removesuffix("%")))
        except ValueError:
            share = -1.0
        if value.endswith("%"):
            share /= 100
        if not 0 <= share <= 1:
            self.fail("must be from 0 to 1, as 0.8, or a percentage, as 80%.", param, ctx)
        return share


class Tag(click.ParamType[tuple[str, str]]):
    """A tag, as ``name=value``."""

    name = "tag"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        """See click."""
        if isinstance(value, tuple):
            return value
        name, _, rest = value.partition("=")
        if not (name and rest):
            self.fail("must be name=value.", param, ctx)
        return name, rest


class Usd(click.ParamType[int]):
    """An amount in US dollars. Returns nano-dollars."""

    name = "USD"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """See click."""
        if isinstance(value, int):
            return value
        try:
            return money.parse_usd(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


TIME: Final = Time()
TAG: Final = Tag()
USD: Final = Usd()


def of_organization(*, required: bool = True, help: str = "") -> Callable[[F], F]:  # noqa: A002
    """Give a command the option ``--organization``, a name or an id."""
    return click.option("--organization", metavar="NAME", required=required, help=help or None)


def in_period(command: F) -> F:
    """Give a command the options ``--from`` and ``--to``, as ``start`` and ``end``."""
    end = click.option(
        "--to", "end", type=TIME, metavar="TIME", help="End before this day or time."
    )
    start = click.option(
        "--from", "start", type=TIME, metavar="TIME", help="Start at this day (UTC) or time."
    )
    return start(end(command))


async def optional_organization(database: Database, text: str | None) -> UUID | None:
    """Return the id of the organization of an option, None without the option.

    :raises NotFound: when there is no such organization.
    """
    return None if text is None else await find_organization_id(database, text)


async def optional_key(
    database: Database, text: str | None, organization_id: UUID | None
) -> UUID | None:
    """Return the id of the key of an option, None without the option.

    :raises NotFound: when there is no such key.
    """
    return None if text is None else await find_key_id(database, text, organization_id)


async def period(
    database: Database, start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """Return the period of the options, by default this month until now.

    :raises click.BadParameter: when it does not start before it ends.
    """
    now = await database.now()
    since = start or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    until = end or now
    if since >= until:
        raise click.BadParameter("must be before --to.", param_hint="--from")
    return since, until
