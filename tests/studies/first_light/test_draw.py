"""Panels of one quantity can be compared by eye."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from studies.first_light.draw import Line, Panel, write_figure


def scale(group: ElementTree.Element) -> dict[float, float]:
    """Numbers at the y axis and their heights."""
    texts = [part for part in group if part.tag.endswith("text") and part.get("text-anchor") == "end"]
    return {float(part.text or ""): float(part.attrib["y"]) for part in texts}


def panel(label: str, *heights: float, band: tuple[float, float] | None = None) -> Panel:
    line = Line("a", [(float(place), height) for place, height in enumerate(heights)])
    return Panel("", "step", label, [line], [(0.0, "0"), (len(heights) - 1.0, "end")], band)


def test_panels_of_one_quantity_share_their_scale() -> None:
    panels = [panel("R", 0.0, 0.1), panel("R", 0.02, 0.03, band=(-0.05, 0.04)), panel("D", 10.0, 30.0)]
    figure = ElementTree.fromstring(write_figure(panels))
    first, second, other = (scale(group) for group in figure if group.tag.endswith("}g"))
    assert first == second
    assert min(first) <= 0.0 < 0.1 <= max(first), "everything that is drawn lies on the axis"
    assert min(other) >= 5.0
    assert 3 <= len(first) <= 9
    assert 3 <= len(other) <= 9


def test_one_level_line_has_a_scale_too() -> None:
    assert len(re.findall(r'text-anchor="end"', write_figure([panel("R", 0.02, 0.02)]))) >= 3
