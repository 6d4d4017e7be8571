"""Two steps of one run: a planted change is told from none, paired over what both steps were measured on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.__main__ import main
from analysis.base import Attachment, Row
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.overlap import ConceptOverlap
from analysis.probes.dip import DipCounts, measure_dip
from analysis.report.comparison.steps import change_of
from analysis.report.report import verdicts
from analysis.report.run import read_run
from analysis.results import ResultTable
from analysis.snapshots import SnapshotId

NUM_KEYS = 400


def dip_counts(depth: float) -> DipCounts:
    """Sentences of ten tokens of which 9 are right at the ends and `depth` fewer in the middle."""
    generator = np.random.default_rng(0)
    ends = generator.binomial(10, 0.9, NUM_KEYS).astype(float)
    total = np.full(NUM_KEYS, 10.0)
    return DipCounts(tuple(f"s{n}" for n in range(NUM_KEYS)), ends, np.maximum(ends - 10 * depth, 0), ends, total)


def write(folder: Path, rise: float, deeper: float) -> Path:
    """Steps 8 and 64: `shared` of every concept rises by `rise`, the dip deepens by `deeper`."""
    table, noise = ResultTable(folder / "results"), np.random.default_rng(1).normal(0, 0.01, 20)
    for step, level, depth in ((8, 0.1, 0.1), (64, 0.1 + rise, 0.1 + deeper)):
        here = SnapshotId(folder.name, step, step * 100)
        other = np.random.default_rng(step).normal(0, 0.001, 20)
        shared = [
            Row(metric="shared", value=float(level + n + o), concept=f"c{i:02d}", chance=0.01)
            for i, (n, o) in enumerate(zip(noise, other, strict=True))
        ]
        pairs = [
            Row(metric="shared", value=level, language="de", other_language=to, chance=0.01) for to in ("en", "es")
        ]
        layers = [Row(metric="shared_units", value=level + layer, layer=layer, chance=1.0) for layer in range(3)]
        overall = Row(metric="shared", value=level, chance=0.01)
        table.write(here, ConceptOverlap(concepts="none.parquet"), [overall, *shared, *pairs, *layers], seconds=1.0)
        counts = dip_counts(depth)
        dip = measure_dip(counts)
        probe = [Row(metric="accuracy", value=0.5, layer=layer, chance=1 / 3) for layer in (-1, 0, 1)]
        probe += [Row(metric="middle_dip", value=dip.value, low=dip.low, high=dip.high, chance=0.0)]
        probe += [Row(metric="recall", value=0.4, language=language) for language in ("de", "en")]
        table.write(
            here, LanguageProbe(texts="none.parquet"), [*probe, Attachment("dip", counts.to_arrow())], seconds=1.0
        )
    return folder


@pytest.mark.parametrize(("rise", "deeper", "said"), [(0.02, 0.2, "it deepened"), (0.0, 0.0, "no change is shown")])
def test_a_change_is_told_from_none(tmp_path: Path, rise: float, deeper: float, said: str) -> None:
    record = read_run(write(tmp_path / "run", rise, deeper))
    low, high = change_of(record, "overlap", "shared", 8, 64) or (0.0, 0.0)
    assert low <= rise <= high
    assert (low > 0) == (rise > 0)
    dip = change_of(record, "language_probe", "middle_dip", 8, 64)
    assert dip is not None
    assert (dip[1] < 0) == (deeper > 0)
    assert change_of(record, "overlap", "shared_units", 8, 64) is None
    assert any(f"since step 8 {0.0 - deeper:+.3f}" in line and said in line for line in verdicts(record))


def test_steps_that_were_measured_on_different_sentences_have_no_paired_change(tmp_path: Path) -> None:
    run = write(tmp_path / "run", 0.02, 0.2)
    table, here = ResultTable(run / "results"), SnapshotId("run", 64, 6400)
    counts = replace(dip_counts(0.3), keys=tuple(f"other{n}" for n in range(NUM_KEYS)))
    rows = table.rows(64, "language_probe")
    table.write(here, LanguageProbe(texts="none.parquet"), [*rows, Attachment("dip", counts.to_arrow())], seconds=1.0)
    record = read_run(run)
    assert change_of(record, "language_probe", "middle_dip", 8, 64) is None
    assert any(said.startswith("Language identity") and "since step" not in said for said in verdicts(record))


def test_the_page_shows_both_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", 0.02, 0.2)
    assert main(["report", str(run), "--steps", "8", "64"]) == 0
    text = (run / "steps_8_64.html").read_text(encoding="utf-8")
    figures = [json.loads(part) for part in re.findall(r'id="figure-\d+">(.*?)</script>', text, flags=re.DOTALL)]
    titles = {figure["layout"]["title"]["text"] for figure in figures}
    assert {"Shared units by layer", "Recall by language", "Shared, change"} <= titles
    assert "+0.0200 [" in text
    assert "2 of 2 measures that can be paired" in text
    assert (
        next(f for f in figures if f["layout"]["title"]["text"] == "Shared, change")["data"][0]["colorbar"]["title"][
            "text"
        ]
        == "share of K"
    )
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--steps", "8", "9"], "no results at step 9; it has 8, 64"), (["--steps", "8", "8"], "name two steps")],
)
def test_steps_that_are_not_there_are_named(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", 0.02, 0.2)
    assert main(["report", str(run), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(run.glob("*.html"))


def test_a_path_that_looks_like_markup_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a[/b]run"
    assert main(["report", str(write(folder, 0.02, 0.2))]) == 0
    assert "a[/b]run" in capsys.readouterr().out.replace("\n", "")
