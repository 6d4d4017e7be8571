"""The HTML page of a report: chapters, a grid of cards, one plotting script inside, nothing fetched.

A page is a list of blocks; `page.html` says how each of them looks, with every text escaped, `page.css` in which
colours, and `page.js` draws a figure when it comes into view.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.report.tables import Table
from babelscope.files import write_text


@dataclass(frozen=True)
class Captioned:
    """A figure with the sentences that belong under it."""

    figure: go.Figure
    caption: str
    """What the measure is: said once a chapter."""
    more: str = ""
    """What only this figure needs."""


@dataclass(frozen=True)
class Texts:
    """A table of generated texts that can be searched."""

    header: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[tuple[str, bool], ...]], ...]
    """Per text its plain cells, and the text in pieces, of which some are marked."""


@dataclass(frozen=True)
class Unit:
    """A unit of a concept."""

    name: str
    num_languages: int
    """Languages in which it is an expert."""
    ap: dict[str, float]
    """Language to average precision."""
    sentences: list[tuple[str, float, bool, str]]
    """Language, response, whether labelled with the concept, text; the strongest of each language first."""


@dataclass(frozen=True)
class Units:
    """Concept to its units, behind a picker."""

    by_concept: dict[str, list[Unit]]


Card: TypeAlias = go.Figure | Captioned | Table


class Page:
    """Collects blocks, then writes one file.

    Args:
        tokens: step to tokens seen, for the axis of all figures over steps.
    """

    def __init__(self, title: str, tokens: Mapping[int, int | None] | None = None) -> None:
        self.title = title
        self._tokens = dict(tokens or {})
        self._blocks: list[dict] = []
        self._figures: list[str] = []
        self._said: set[str] = set()

    def chapter(self, title: str, introduction: str = "") -> None:
        self._said.clear()
        self._blocks.append({"type": "chapter", "title": title, "text": introduction})

    def heading(self, title: str) -> None:
        self._blocks.append({"type": "heading", "title": title})

    def verdicts(self, sentences: Sequence[str], card: Card | None = None) -> None:
        """Sentences, each headed by what stands before its first colon, and beside them a figure."""
        cards = [] if card is None else [self._card(card)]
        self._blocks.append({"type": "verdicts", "sentences": sentences, "cards": cards})

    def paragraph(self, text: str) -> None:
        self._blocks.append({"type": "paragraph", "text": text})

    def grid(self, items: Iterable[Card | None]) -> None:
        cards = [self._card(item) for item in items if item is not None]
        if cards:
            self._blocks.append({"type": "grid", "cards": cards})

    def texts(self, texts: Texts) -> None:
        self._blocks.append({"type": "texts", "texts": texts})

    def units(self, units: Units) -> None:
        self._blocks.append({"type": "units", "units": _script_data(asdict(units)["by_concept"])})

    def data(self, title: str, content: object) -> None:
        """JSON behind a disclosure triangle."""
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        self._blocks.append({"type": "data", "title": title, "text": text})

    @contextmanager
    def fold(self, title: str) -> Iterator[None]:
        """What is added inside stands behind a disclosure triangle."""
        outside, self._blocks = self._blocks, []
        try:
            yield
        finally:
            inside, self._blocks = self._blocks, outside
        if inside:
            self._blocks.append({"type": "fold", "title": title, "blocks": inside})

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            OSError: the place cannot be written to; names it.
        """
        chapters = [block for block in self._blocks if block["type"] == "chapter"]
        for number, chapter in enumerate(chapters):
            chapter["anchor"] = f"c{number}"
        text = _ENVIRONMENT.get_template("page.html").render(
            title=self.title,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            chapters=chapters,
            blocks=self._blocks,
            style=_inside("page.css"),
            script=_inside("page.js"),
            plotly=Markup(get_plotlyjs()),
            figures=[Markup(figure) for figure in self._figures],
            tokens=_script_data(self._tokens),
        )
        try:
            write_text(path, text)
        except OSError as error:  # it speaks of a temporary file, or of none
            raise OSError(f"{path}: not written ({error.strerror}); --out names another place") from error

    def _card(self, item: Card) -> dict:
        if isinstance(item, Table):
            return {"table": item}
        figure, caption = (item.figure, self._caption(item)) if isinstance(item, Captioned) else (item, "")
        data = json.loads(figure.to_json())
        self._figures.append(_script_data(data))
        card = {"figure": len(self._figures) - 1, "title": figure.layout.title.text or "", "caption": caption}
        return card | {"broad": (data["layout"].get("meta") or {}).get("broad", False)}

    def _caption(self, item: Captioned) -> str:
        caption = "The measure of a figure above." if item.caption in self._said else item.caption
        self._said |= {item.caption} - {""}
        return " ".join(part for part in (caption, item.more) if part)


def _script_data(content: object) -> Markup:
    """JSON that cannot end the script element which holds it, nor keep it open as `<!--` and `<script` would."""
    return Markup(json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"))


def _inside(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))


def marked_pieces(text: str, spans: Sequence[int]) -> tuple[tuple[str, bool], ...]:
    """The text in pieces, each with whether it lies within one of the spans (start, end, start, end, ...)."""
    pieces, at = [], 0
    for start, end in zip(spans[::2], spans[1::2], strict=True):
        pieces += [(text[at:start], False), (text[start:end], True)]
        at = end
    return tuple(piece for piece in (*pieces, (text[at:], False)) if piece[0])


_ENVIRONMENT = Environment(
    loader=PackageLoader("analysis.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
