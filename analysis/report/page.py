"""The HTML page of a report: chapters, a grid of cards, one plotting script inside, nothing fetched."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.files import write_text_atomic
from analysis.report.tables import Table, table_markup

STYLE = """
:root{--ink:#1d2733;--soft:#5d6b7a;--line:#dfe4ea;--ground:#f6f7f9;--accent:#2f6db3}
*{box-sizing:border-box}body{margin:0;font:15px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif;color:var(--ink);
background:var(--ground)}
nav{position:fixed;inset:0 auto 0 0;width:230px;padding:26px 18px;overflow:auto;background:#fff;
border-right:1px solid var(--line)}
nav b{display:block;font-size:17px;margin-bottom:14px}nav a{display:block;padding:4px 0;color:var(--soft);
text-decoration:none;font-size:14px}nav a:hover{color:var(--accent)}
main{margin-left:230px;padding:30px 36px 90px;max-width:1500px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:20px;margin:44px 0 6px;padding-top:10px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:22px 0 6px}
p{max-width:80ch}.soft{color:var(--soft);font-size:13.5px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px;margin:14px 0}
.card{background:#fff;border:1px solid var(--line);border-radius:8px;padding:8px 10px 10px;min-width:0;
overflow:auto hidden}
.card p{margin:2px 8px 4px;font-size:12.5px;color:var(--soft)}
table{border-collapse:collapse;font-size:13.5px;background:#fff;width:100%}
th,td{padding:5px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}
.verdict{background:#fff;border-left:4px solid var(--accent);padding:10px 16px;margin:14px 0;max-width:90ch}
details{margin:10px 0}summary{cursor:pointer;color:var(--accent)}pre{overflow:auto;background:#fff;
border:1px solid var(--line);padding:12px;font-size:12.5px}
td.text{text-align:left;max-width:760px;white-space:pre-wrap;overflow-wrap:anywhere}mark{background:#ffe08a}
input.filter{padding:6px 10px;border:1px solid var(--line);border-radius:6px;width:320px;margin:8px 0}
.scroll{max-height:560px;overflow:auto;border:1px solid var(--line)}
@media(max-width:900px){nav{position:static;width:auto;border:0}main{margin:0;padding:20px}}
"""


class Page:
    """Collects chapters and figures, then writes one file."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._chapters: list[tuple[str, str]] = []
        self._body: list[str] = []
        self._figures: list[str] = []

    def chapter(self, title: str, introduction: str = "") -> None:
        anchor = f"c{len(self._chapters)}"
        self._chapters.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{html.escape(title)}</h2>')
        if introduction:
            self._body.append(f'<p class="soft">{html.escape(introduction)}</p>')

    def heading(self, title: str) -> None:
        self._body.append(f"<h3>{html.escape(title)}</h3>")

    def raw(self, markup: str) -> None:
        self._body.append(markup)

    def verdict(self, text: str) -> None:
        self._body.append(f'<div class="verdict">{html.escape(text)}</div>')

    def grid(self, items: Iterable[go.Figure | Table | tuple[go.Figure, str] | None]) -> None:
        cells = [cell for cell in (self._cell(item) for item in items if item is not None) if cell]
        if cells:
            self._body.append(f'<div class="grid">{"".join(cells)}</div>')

    def _cell(self, item: go.Figure | Table | tuple[go.Figure, str]) -> str:
        if isinstance(item, Table):
            return f'<div class="card"><h3>{html.escape(item.title)}</h3>{table_markup(item)}</div>'
        figure, caption = item if isinstance(item, tuple) else (item, "")
        anchor = f"f{len(self._figures)}"
        # "</" would end the script element that holds the data
        data = figure.to_json().replace("</", "<\\/")
        self._figures.append(f'["{anchor}",{data}]')
        note = f"<p>{html.escape(caption)}</p>" if caption else ""
        return f'<div class="card"><div id="{anchor}"></div>{note}</div>'

    def write(self, path: Path) -> None:
        links = "".join(f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title in self._chapters)
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head><body>"
            f"<nav><b>Babelscope</b>{links}</nav><main><h1>{html.escape(self.title)}</h1>"
            f'<p class="soft">Made {made} from the result tables.</p>{"".join(self._body)}</main>'
            f"<script>{get_plotlyjs()}</script><script>const F=[{','.join(self._figures)}];"
            "for(const [id,f] of F)Plotly.newPlot(id,f.data,f.layout,"
            "{responsive:true,displaylogo:false,displayModeBar:'hover'});"
            "for(const d of document.querySelectorAll('details'))d.addEventListener('toggle',()=>"  # drawn while hidden
            "{for(const p of d.querySelectorAll('.js-plotly-plot'))Plotly.Plots.resize(p)});"
            "for(const i of document.querySelectorAll('input.filter'))i.addEventListener('input',()=>{"
            "const q=i.value.toLowerCase();for(const r of document.querySelectorAll('#'+i.dataset.table+' tbody tr'))"
            "r.hidden=!r.textContent.toLowerCase().includes(q)});</script></body></html>"
        )
        write_text_atomic(path, text)


def folded(title: str, content: dict) -> str:
    """JSON behind a disclosure triangle."""
    text = html.escape(json.dumps(content, indent=1, ensure_ascii=False, default=str))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>"
