"""Option types for numbers and times, parsed as the API parses them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import click

from service.formats.parsing import parse_day, parse_instant, parse_whole


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
    """A time, parsed by ``parse``."""

    name = "time"

    def __init__(self, parse: Callable[[str], datetime]) -> None:
        self.parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """See click."""
        if isinstance(value, datetime):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


DAY: Final = Time(parse_day)
INSTANT: Final = Time(parse_instant)
