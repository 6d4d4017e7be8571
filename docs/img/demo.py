"""The figure of the README, drawn from a finished run by an installed Chromium.

python docs/img/demo.py runs/demo docs/img/demo.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from analysis.report.browser import render
from analysis.report.figures import against_random, layer_curves, select
from analysis.report.run import read_run

SIZE = (1240, 430)
PAGE = "<!doctype html><meta charset='utf-8'><body style='margin:0;display:flex'>{}</body>"


def main(run: str, out: str) -> None:
    """Language identity by layer, and sharing over training beside random networks."""
    record = read_run(run)
    probe = select(record.frame, "language_probe", "accuracy", by=("layer",))
    baselines = {"token alone": select(record.frame, "language_probe", "accuracy_token_identity")}
    sharing = select(record.frame, "overlap", "rank_transfer")
    band = select(record.null_band("overlap"), "overlap", "rank_transfer")
    figures = [
        layer_curves(probe, "Language of a token, read by a linear probe", unit="accuracy", baselines=baselines),
        against_random(sharing, band, "Concept neurons shared between languages", unit="rank correlation (R)"),
    ]
    figures[1].update_xaxes(type="linear")
    parts = [
        figure.update_layout(width=SIZE[0] // 2, height=SIZE[1], legend={"orientation": "h", "y": -0.2}).to_html(
            full_html=False, include_plotlyjs=number == 0, config={"displayModeBar": False}
        )
        for number, figure in enumerate(figures)
    ]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "figure.html"
        page.write_text(PAGE.format("".join(parts)), encoding="utf-8")
        render(page, Path(out), SIZE)


if __name__ == "__main__":
    main(*sys.argv[1:])
