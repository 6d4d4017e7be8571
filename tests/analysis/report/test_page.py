"""The page in a browser: no errors, drawn when seen, nothing wider than the window; colours that eyes tell apart."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from analysis.__main__ import main
from analysis.report import browser
from analysis.report.explanations import MEASURES, explain, heading_of, in_words, trap, unit_of
from analysis.report.page import Captioned, Page
from analysis.report.report import write_report
from analysis.report.style import DASHES, MARKERS, PALETTE, line_style
from tests.benchmarks.bench_report import write_large

CHROMIUM = browser.find_browser()
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([write_large(tmp_path_factory.mktemp("large"), steps=45, layers=24)])


def open_page(page: Path, tmp_path: Path, width: int, probe: str = "", height: int = 900) -> tuple[str, str]:
    """The page's elements once it is drawn, and what the console said; `probe` runs at its end."""
    copy = tmp_path / "page.html"
    script = f"<script>addEventListener('load',()=>setTimeout(()=>{{{probe}}},2000))</script></body>"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    command = [str(CHROMIUM), *browser.FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    command += [f"--window-size={width},{height}", "--virtual-time-budget=6000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@needs_chromium
def test_a_page_of_the_real_size_draws_what_is_seen(large: Path, tmp_path: Path) -> None:
    """What it costs is in benchmarks/bench_report.py: it follows from the number of figures drawn."""
    assert large.stat().st_size < 15e6
    assert '<figure class="card broad">' in large.read_text(encoding="utf-8"), "a matrix of 16 languages"
    drawn = []
    for height in (900, 2700):  # a headless window gets no frame after it was scrolled, so a taller one stands for that
        elements, console = open_page(large, tmp_path, 1400, height=height)
        assert console == ""
        figures = re.findall(r'<div class="figure[^>]*>', elements)
        drawn.append(sum("data-drawn" in figure for figure in figures))
    assert 1 <= drawn[0] <= 4, "the first screen"
    assert drawn[0] < drawn[1] < len(figures) / 2, "the others wait until they are seen"


@needs_chromium
def test_a_narrow_window_shows_the_whole_page_without_scrolling_sideways(large: Path, tmp_path: Path) -> None:
    probe = (
        "document.querySelectorAll('details').forEach(fold => fold.open = true);"
        "all().slice(0, 12).forEach(draw);"
        "parent.postMessage(innerWidth + ' ' + document.documentElement.scrollWidth, '*')"
    )
    script = f"<script>addEventListener('load',()=>setTimeout(()=>{{{probe}}},500))</script></body>"
    framed = tmp_path / "framed.html"
    framed.write_text(large.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    outer = tmp_path / "outer.html"  # a window of headless Chromium is at least 500 wide
    outer.write_text(
        "<body><script>addEventListener('message', event => document.body.dataset.seen = event.data)</script>"
        f'<iframe width="420" height="900" style="border:0" src="{framed.as_uri()}"></iframe></body>'
    )
    elements, console = open_page(outer, tmp_path, 900)
    assert console == ""
    [(inner, wide)] = re.findall(r'data-seen="(\d+) (\d+)"', elements)
    assert (inner, wide) == ("420", "420")


@needs_chromium
def test_every_axis_and_every_figure_draws_and_gives_its_data(large: Path, tmp_path: Path) -> None:
    probe = (
        "for (const value of ['linear', 'log', 'tokens']) { axis.value = value; all().forEach(draw); }"
        "const tables = all().map(csv).filter(text => text.split('\\n').length > 3);"
        "document.body.dataset.seen = all().filter(place => place.dataset.drawn).length + ' ' + tables.length"
    )
    elements, console = open_page(large, tmp_path, 1400, probe)
    assert console == ""
    count = str(len(re.findall(r'<div class="figure', elements)))
    assert re.findall(r'data-seen="(\d+) (\d+)"', elements) == [(count, count)]
    assert 'class="pick"' in elements, "a concept can be chosen"


@needs_chromium
def test_pdf_and_png_are_made_beside_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_large(tmp_path / "run", steps=3, layers=2)
    for options, name, start in (
        (["--format", "png"], "report.png", b"\x89PNG"),
        (["--out", str(run / "mine.pdf")], "mine.pdf", b"%PDF"),
    ):
        assert main(["report", str(run), *options]) == 0
        assert (run / name).read_bytes().startswith(start)
        assert (run / name).with_suffix(".html").is_file()


@pytest.mark.parametrize("kind", ["pdf", "png"])
def test_an_older_picture_does_not_pass_for_a_new_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "find_browser", lambda: "/bin/false")
    page, out = tmp_path / "report.html", tmp_path / f"report.{kind}"
    page.write_text("<p>")
    out.write_bytes(b"of yesterday")
    with pytest.raises(OSError, match=f"made no report.{kind}"):
        browser.render(page, out)


def test_without_a_browser_another_format_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["report", str(tmp_path), "--format", "pdf"]) == 2
    assert capsys.readouterr().err.startswith("error: --format pdf needs Chromium or Chrome")
    assert not (tmp_path / "report.html").exists()


def test_every_metric_has_a_unit_and_every_class_says_how_it_misleads() -> None:
    text = MEASURES.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", text, re.MULTILINE)
    assert len(rows) > 60
    assert not [name for name, unit in rows if not unit.strip()]
    classes = re.findall(r"^## .*`analysis\.[\w.]*?(\w+)`$", text, re.MULTILINE)
    assert not [name for name in classes if not trap(name)]
    assert unit_of("ConceptOverlap", "shared_by_3") == "share of K"
    assert unit_of("Alignment", "mutual_knn_calibrated") == "share of neighbours, calibrated"


def test_explanations_come_from_the_page_of_measures() -> None:
    said = explain("ConceptOverlap", "shared")
    assert re.fullmatch(
        r"Shared experts .*\. Unit: share of K\. Chance: K / N\. How it can mislead: shared grows .*\.", said
    )
    assert explain("ConceptOverlap", "shared_by_3")
    assert "Chance: the same by shuffled labels" in explain("ConceptOverlap", "ap_experts"), "as above, in the page"
    assert "Chance" not in explain("HeldOutLoss", "unknown_share"), "an empty cell"
    assert explain("Alignment", "mutual_knn_calibrated").endswith("calibrated. Chance: 0.")
    assert explain("ConceptOverlap", "no_such_metric") == ""
    assert explain("NoSuchAnalysis", "shared") == ""
    assert (heading_of("Lape"), heading_of("NoSuchAnalysis")) == ("Language neurons", "")
    assert in_words("ap_best") == "AP best"


def test_a_chapter_explains_a_measure_once(tmp_path: Path) -> None:
    page = Page("a page")
    figure = go.Figure()
    page.chapter("one")
    page.grid([Captioned(figure, "What it is.", "First."), Captioned(figure, "What it is.", "Second.")])
    page.grid([Captioned(figure, "", "No word."), Captioned(figure, "")])
    page.chapter("two")
    page.grid([Captioned(figure, "What it is.")])
    page.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("What it is.") == 2
    assert text.count("What it is. First.") == 1
    assert text.count("The measure of a figure above.") == text.count("The measure of a figure above. Second.") == 1


# colours -------------------------------------------------------------------------------------------------------------

# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
SEEN_BY = {
    "all": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip


def to_lab(colour: str, matrix: np.ndarray) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = TO_XYZ @ np.clip(matrix @ linear, 0, 1) / (0.95047, 1.0, 1.08883)
    f = [np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: np.ndarray, other: np.ndarray) -> float:
    """Sharma, Wu & Dalal (2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    g = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(g**7 / (g**7 + 25.0**7)))
    c1, c2 = np.hypot(a1 * (1 + g), b1), np.hypot(a2 * (1 + g), b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * (1 + g))) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    mean_h = (h1 + turn / 2) % 360
    t = 1 - 0.17 * np.cos(np.radians(mean_h - 30)) + 0.24 * np.cos(np.radians(2 * mean_h))
    t += 0.32 * np.cos(np.radians(3 * mean_h + 6)) - 0.2 * np.cos(np.radians(4 * mean_h - 63))
    l_part = (l2 - l1) / (1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2))
    c_part = (c2 - c1) / (1 + 0.045 * mean_c)
    h_part = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * mean_c * t)
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7))
    rotation *= np.sin(np.radians(60 * np.exp(-(((mean_h - 275) / 25) ** 2))))
    return float(np.sqrt(l_part**2 + c_part**2 + h_part**2 + rotation * c_part * h_part))


def test_the_difference_of_colours_is_that_of_its_paper() -> None:
    assert ciede2000(np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])) == pytest.approx(2.0425, abs=1e-4)
    assert ciede2000(np.array([50, 2.5, 0]), np.array([73, 25, -18])) == pytest.approx(27.1492, abs=1e-4)


SCRIPT = Path(browser.__file__).with_name("page.js").read_text(encoding="utf-8")
ON_DARK = json.loads(re.findall(r"ON_DARK = (\{.*\});", SCRIPT)[0])


@pytest.mark.parametrize("ground", ["light", "dark"])
@pytest.mark.parametrize("eye", SEEN_BY)
def test_lines_can_be_told_apart_by_every_eye(eye: str, ground: str) -> None:
    colours = [ON_DARK.get(colour, colour) if ground == "dark" else colour for colour in PALETTE]
    seen = [to_lab(colour, SEEN_BY[eye]) for colour in colours]
    assert min(ciede2000(a, b) for a, b in itertools.combinations(seen, 2)) >= 10


def test_lines_differ_in_dash_or_marker_as_well_as_in_colour() -> None:
    styles = [line_style(index) for index in range(len(PALETTE) * len(DASHES))]
    without_colour = {(style["line"]["dash"], style["marker"]["symbol"]) for style in styles}
    assert len(without_colour) == len(styles)
    assert len(set(MARKERS)) == len(MARKERS)
