"""Small figures as SVG text: panels of lines with bands. Nothing in them depends on machine, clock or library, so a
figure that is made again from the same numbers is the same file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, told apart by people who see few colours."""
GREY = "#8a8a8a"
WIDTH, HEIGHT = 320, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 28, 40
ENTRY = 12
"""Height of one entry of a legend."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points with an optional band (low, high of every point)."""

    label: str
    points: Sequence[Point]
    band: Sequence[Point] = ()
    colour: str | None = None
    """None takes the next colour."""
    thin: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]
    """Places on the x axis and what is written there."""
    null: tuple[float, float] | None = None
    """A band over the whole width: where an untrained network lies."""


def write_figure(panels: Sequence[Panel], columns: int = 3) -> str:
    """An SVG file with the panels in rows; one legend a panel. Panels of one quantity (`y_label`) share their scale."""
    columns = min(columns, len(panels))
    alike = [[other for other in panels if other.y_label == panel.y_label] for panel in panels]
    width, height = columns * WIDTH, ceil(len(panels) / columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place % columns * WIDTH} {place // columns * HEIGHT})">')
        parts += _panel(panel, *_span(alike[place]))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, low: float, high: float) -> list[str]:
    left, right = panel.ticks[0][0], panel.ticks[-1][0]

    def x(value: float) -> float:
        return LEFT + (value - left) / ((right - left) or 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" font-size="11" font-weight="bold">{escape(panel.title)}</text>']
    if panel.null is not None:
        top, end = y(panel.null[1]), y(panel.null[0])
        parts.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{end - top:.1f}" fill="#ddd"/>'
        )
    for tick in _ticks(low, high):
        parts.append(_path([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], 'stroke="#eee"'))
        parts.append(f'<text x="{LEFT - 4}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:g}</text>')
    for place, name in panel.ticks:
        parts.append(f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{escape(name)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(panel.x_label)}</text>')
    turned = f'transform="translate(11 {TOP + (HEIGHT - TOP - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(panel.y_label)}</text>")
    parts.append(_path([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], 'stroke="#444"'))
    coloured, legend = 0, 0
    for line in panel.lines:
        colour = line.colour or COLOURS[coloured % len(COLOURS)]
        coloured += line.colour is None
        if line.band:
            edge = [(x(p[0]), y(b[1])) for p, b in zip(line.points, line.band, strict=True)]
            edge += [(x(p[0]), y(b[0])) for p, b in zip(line.points, line.band, strict=True)][::-1]
            parts.append(_path(edge, f'fill="{colour}" fill-opacity="0.15"', close=True))
        style = f'stroke="{colour}" stroke-width="{0.6 if line.thin else 1.6}"'
        style += ' stroke-dasharray="4 3"' if line.dashed else ""
        parts.append(_path([(x(a), y(b)) for a, b in line.points], style))
        if line.label:
            height, start = TOP + 8 + ENTRY * (legend // 2), LEFT + 6 + legend % 2 * (WIDTH - LEFT - RIGHT) // 2
            parts.append(_path([(start, height - 3), (start + 14, height - 3)], style))
            parts.append(f'<text x="{start + 18}" y="{height}">{escape(line.label)}</text>')
            legend += 1
    return parts


def _path(points: Sequence[Point], style: str, close: bool = False) -> str:
    fill = "" if "fill=" in style else ' fill="none"'
    steps = " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    return f'<path d="M{steps}{" Z" if close else ""}"{fill} {style}/>'


def _span(panels: Sequence[Panel]) -> tuple[float, float]:
    """From the least to the largest with room for the legend above, two entries a line; never empty."""
    lines = [line for panel in panels for line in panel.lines]
    values = [y for line in lines for _, y in line.points] + [
        edge for line in lines for ends in line.band for edge in ends
    ]
    values += [edge for panel in panels for edge in panel.null or ()]
    entries = max(sum(bool(line.label) for line in panel.lines) for panel in panels)
    low, high = min(values), max(values)
    size = (high - low) or abs(high) or 1.0
    legend = min(0.6, (ceil(entries / 2) * ENTRY + 4) / (HEIGHT - TOP - BOTTOM))  # share of the panel's height
    return low - 0.05 * size, low - 0.05 * size + 1.1 * size / (1.0 - legend)


def _ticks(low: float, high: float) -> list[float]:
    """Three to nine round numbers."""
    raw = (high - low) / 8
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = ceil(low / step), floor(high / step)
    return [round(place * step, 10) for place in range(first, last + 1)]
