"""The figures of a run as a picture: SVG, written by hand, without a library."""

import math
from collections.abc import Sequence
from html import escape

from bench.scenarios import Axis, Row

_WIDTH = 900
_BAR, _GAP, _NAMES = 20, 8, 300
_OURS, _OTHERS, _INK, _GRID = "#1b6ca8", "#9aa5b1", "#222222", "#dddddd"
_PANEL_WIDTH, _PANEL_HEIGHT = 420, 190


def draw(rows: Sequence[Row], axes: Sequence[Axis]) -> str:
    """Draw the CPU of a post for each peer, and how ours grows."""
    parts, height = _bars([row for row in rows if row.plain or row.tls])
    for number, axis in enumerate(axes):
        left, top = 20 + number % 2 * (_PANEL_WIDTH + 20), height + number // 2 * (_PANEL_HEIGHT + 30)
        parts += _panel(axis, left, top)
    height += (len(axes) + 1) // 2 * (_PANEL_HEIGHT + 30) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif"'
        f' fill="{_INK}">\n<rect width="{_WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(rows: Sequence[Row]) -> tuple[list[str], int]:
    """One bar a peer, on a logarithmic scale that begins at 1 µs."""
    values = [shown.cpu for row in rows if (shown := row.plain or row.tls)]
    parts = [_text(20, 24, "CPU microseconds a confirmed post (logarithmic; less is better)", size=15)]
    longest = _WIDTH - _NAMES - 90
    decades = max(1, math.ceil(math.log10(max([*values, 10]))))
    top = 40
    bottom = top + len(rows) * (_BAR + _GAP)
    for decade in range(decades + 1):
        x = _NAMES + longest * decade / decades
        parts.append(f'<line x1="{x:.0f}" y1="{top}" x2="{x:.0f}" y2="{bottom}" stroke="{_GRID}"/>')
        parts.append(_text(x, bottom + 14, f"{10**decade:,}", anchor="middle"))
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        y = top + number * (_BAR + _GAP)
        width = longest * max(math.log10(max(value, 1)), 0) / decades
        colour = _OURS if row.name.startswith("Millrace") else _OTHERS
        name = row.name if row.plain else f"{row.name} (TLS)"
        parts.append(_text(_NAMES - 8, y + 15, name, anchor="end"))
        parts.append(f'<rect x="{_NAMES}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
        parts.append(_text(_NAMES + width + 6, y + 15, f"{value:,.1f}"))
    return parts, bottom + 40


def _panel(axis: Axis, left: float, top: float) -> list[str]:
    """One line: the cost of a post along an axis, its points at equal distances."""
    costs = [point.result.cpu for point in axis.points]
    plot_left, plot_top, width, height = left + 45, top + 28, _PANEL_WIDTH - 75, _PANEL_HEIGHT - 60
    low, high = math.floor(math.log10(max(min(costs), 0.1))), math.ceil(math.log10(max(*costs, 1)) + 1e-9)
    high = max(high, low + 1)
    parts = [_text(left, top + 14, f"CPU µs a post, by {axis.name}", size=13)]
    for decade in range(low, high + 1):
        y = plot_top + height * (high - decade) / (high - low)
        parts.append(f'<line x1="{plot_left}" y1="{y:.0f}" x2="{plot_left + width}" y2="{y:.0f}" stroke="{_GRID}"/>')
        parts.append(_text(plot_left - 6, y + 4, f"{10.0**decade:g}", anchor="end"))
    step = width / max(len(costs) - 1, 1)
    places = [
        (plot_left + step * number, plot_top + height * (high - math.log10(max(value, 0.1))) / (high - low))
        for number, value in enumerate(costs)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_OURS}" stroke-width="2"/>')
    for (x, y), point in zip(places, axis.points, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_OURS}"/>')
        parts.append(_text(x, y - 8, f"{point.result.cpu:.1f}", anchor="middle"))
        parts.append(_text(x, plot_top + height + 16, point.label, anchor="middle"))
    return parts


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
