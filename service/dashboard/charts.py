"""The geometry of charts. ``components.html`` draws them, with a table of their values beneath."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import msgspec

WIDTH: Final = 1000
HEIGHT: Final = 140
GAP_SHARE: Final = Decimal("0.25")
"""How much of the width of a point is left free beside its column."""
MIN_HEIGHT: Final = Decimal(2)
"""A value that is not zero can be seen, however small it is."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A value of a chart, and the value that it is compared with. The texts are those of the table;
    ``url`` leads to what makes up the value."""

    label: str
    value: Decimal
    text: str
    before: Decimal | None = None
    before_text: str = ""
    url: str | None = None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column in the coordinates of the chart."""

    x: str
    y: str
    width: str
    height: str
    title: str
    is_before: bool


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """Columns over time, with the earlier ones behind them."""

    points: Sequence[Point]
    columns: Sequence[Column]
    top_text: str
    """The largest value, which reaches the top."""
    has_before: bool
    width: int = WIDTH
    height: int = HEIGHT


def columns(points: Sequence[Point]) -> Chart:
    """Lay out one column for each point, in order."""
    top = max(
        (max(point.value, point.before or Decimal(0)) for point in points), default=Decimal(0)
    )
    top_text = ""
    drawn: list[Column] = []
    slot = Decimal(WIDTH) / max(1, len(points))
    for index, point in enumerate(points):
        left = slot * index
        for value, text, is_before in (
            (point.before, point.before_text, True),
            (point.value, point.text, False),
        ):
            if value is None:
                continue
            if value == top:
                top_text = text
            gap = Decimal(0) if is_before else slot * GAP_SHARE
            height = _height(value, top)
            drawn.append(
                Column(
                    x=_written(left + gap / 2 + slot / 20),
                    y=_written(HEIGHT - height),
                    width=_written(slot - gap - slot / 10),
                    height=_written(height),
                    title=f"{point.label}: {text}",
                    is_before=is_before,
                )
            )
    return Chart(
        points=points,
        columns=drawn,
        top_text=top_text,
        has_before=any(point.before is not None for point in points),
    )


def _height(value: Decimal, top: Decimal) -> Decimal:
    if value <= 0 or top <= 0:
        return Decimal(0)
    return max(MIN_HEIGHT, value / top * HEIGHT)


def _written(number: Decimal) -> str:
    return f"{number:.2f}"
