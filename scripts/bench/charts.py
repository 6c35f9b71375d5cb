"""Draws charts as SVG: a line per side, a dot at the median, a bar from the lowest to the highest
run.

The axis is logarithmic, because the sides differ a hundredfold; the length of a column would
mislead on it, so there are dots. Text and lines follow the reader's light or dark colors.
"""

import math
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 760, 130, 90, 52, 28, 34
HIGHLIGHTED = "rialto"
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.quiet { fill: #59636e; font-size: 12px }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.other { fill: #818b98; stroke: #818b98 }
.own { fill: #0969da; stroke: #0969da }
text.own { stroke: none; font-weight: 600 }
.range { stroke-width: 5; stroke-opacity: 0.35; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .other { fill: #9198a1; stroke: #9198a1 }
  .own { fill: #4493f8; stroke: #4493f8 }
}
"""


def svg(title, unit, values):
    """Return the chart of ``values``: median, minimum and maximum, all above zero, by side."""
    least = min(low for _, low, _ in values.values())
    most = max(high for _, _, high in values.values())
    first = math.floor(math.log10(least))
    last = max(math.ceil(math.log10(most)), first + 1)

    def at(value):
        share = (math.log10(value) - first) / (last - first)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    height = TOP + ROW * len(values) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' width="{WIDTH}" height="{height}" aria-label="{escape(title)}, {escape(unit)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
    ]
    for decade in range(first, last + 1):
        parts += _gridline(at(10.0**decade), height, _number(10.0**decade))
    for number, (side, value) in enumerate(values.items()):
        parts += _row(side, TOP + ROW * number + ROW / 2, value, at)
    label = f"{escape(unit)}, logarithmic"
    parts += [
        f'<text class="quiet" x="{WIDTH - 16}" y="26" text-anchor="end">{label}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _gridline(x, height, label):
    y = height - BOTTOM
    return [
        f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{y}"/>',
        f'<text class="quiet" x="{x}" y="{y + 18}" text-anchor="middle">{label}</text>',
    ]


def _row(side, y, value, at):
    middle, low, high = value
    kind = "own" if side.startswith(HIGHLIGHTED) else "other"
    name_kind = ' class="own"' if kind == "own" else ""
    return [
        f'<text{name_kind} x="{LEFT - 14}" y="{y + 4}" text-anchor="end">{escape(side)}</text>',
        f'<line class="range {kind}" x1="{at(low)}" x2="{at(high)}" y1="{y}" y2="{y}"/>',
        f'<circle class="{kind}" cx="{at(middle)}" cy="{y}" r="5"/>',
        f'<text{name_kind} x="{at(high) + 12}" y="{y + 4}">{_number(middle)}</text>',
    ]


def _number(value):
    """Format a number with three digits."""
    if value >= 100:
        digits = 3 - len(str(int(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"
