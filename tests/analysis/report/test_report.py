"""The report: every row finds a place, the verdict follows the data, the file stands alone."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.__main__ import main
from analysis.base import Analysis, Attachment, Row
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.probe_suite import ProbeSuite
from analysis.report.chapters.methods import methods
from analysis.report.closing import closing_tables
from analysis.report.comparison.runs import SIZE_DEPENDENT, depends_on_size
from analysis.report.explanations import MEASURES
from analysis.report.figures import profile, select
from analysis.report.pair_figures import dendrogram, is_directed, pair_table
from analysis.report.report import write_report
from analysis.report.run import read_run
from analysis.results import FRAME_COLUMNS, ResultTable
from analysis.snapshots import Snapshot, SnapshotId

LANGUAGES = ("de", "en", "es")
PAIRS = [("de", "en"), ("de", "es"), ("en", "es")]


OVERLAP = ConceptOverlap(concepts="none.parquet")
LOSS = HeldOutLoss(texts="none.parquet")
PROBE = LanguageProbe(texts="none.parquet")


@dataclass(kw_only=True)
class SomethingNew(Analysis):
    """A measure that the report has never heard of.

    Its rows have layers and pairs.
    """

    default_name: ClassVar[str] = "something_new"

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        raise AssertionError("the rows of these tests are written by hand")


def write(folder: Path, steps: dict[int, float], name: str = "planted", chance: float = 0.01) -> Path:
    """A run in which `steps` maps steps to the shared share of every pair (plus a fixed spread over concepts)."""
    table = ResultTable(folder / "results")
    for step, level in steps.items():
        here = SnapshotId(name, step, step * 1000)
        rows = [Row(metric="shared", value=level, chance=chance, low=level - 0.01, high=level + 0.01)]
        rows += [
            Row(metric="shared", value=level + 0.001 * ((7 * i) % 5), concept=f"c{i}", chance=chance) for i in range(12)
        ]
        rows += [
            Row(metric="shared", value=level, language=a, other_language=b, chance=0.01, p=0.001) for a, b in PAIRS
        ]
        rows += [Row(metric="shared_units", value=5.0 + layer, layer=layer, chance=1.0) for layer in range(3)]
        table.write(here, OVERLAP, rows, seconds=1.0)
        probe = [Row(metric="accuracy", value=0.5 + 0.1 * layer, layer=layer, chance=1 / 3) for layer in (-1, 0, 1)]
        probe += [Row(metric="accuracy_majority", value=1 / 3), Row(metric="recall", value=0.4, language="de")]
        table.write(here, PROBE, probe, seconds=0.5)
        new = [Row(metric="cka", value=0.3, layer=0, language=a, other_language=b) for a, b in PAIRS]
        table.write(here, SomethingNew(), new, seconds=0.1)
    return folder


def figures_in(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="figure-\d+">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    return [json.loads(data) for data in found]


def test_the_file_stands_alone_and_shows_every_analysis(tmp_path: Path) -> None:
    run = write(tmp_path / "planted", {0: 0.05, 4: 0.07, 16: 0.09})
    path = write_report([run])
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    outside = re.findall(r'(?:src|href)="(?!#)([^"]+)"', markup)
    assert outside == [], "nothing is fetched"
    assert "A measure that the report has never heard of." in text
    titles = [figure["layout"]["title"]["text"] for figure in figures_in(path)]
    for expected in (
        "Probe accuracy, layer by training step",
        "Probe accuracy by layer",
        "Sharing of concept neurons (shared)",
        "Where the shared neurons are",
        "Shared by language pair, step 16",
        "Shared, change against the untrained network, step 16",
        "Languages by shared concept neurons, step 16",
        "CKA, layer by training step",
    ):
        assert expected in titles
    assert not list(run.glob(".report*")), "no temporary file is left"


def test_the_overlap_is_drawn_beside_chance_and_the_untrained_network(tmp_path: Path) -> None:
    path = write_report([write(tmp_path / "planted", {0: 0.05, 16: 0.09})], tmp_path / "out.html")
    figure = next(f for f in figures_in(path) if f["layout"]["title"]["text"].startswith("Sharing of concept"))
    assert {trace["name"] for trace in figure["data"]} == {"95 % interval", "measured", "chance", "untrained (step 0)"}


def test_a_page_that_is_watched_is_renewed_when_there_are_new_results_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", {0: 0.05})
    waits = iter([lambda: None, lambda: write(run, {16: 0.09}), lambda: None])

    def wait(_: float) -> None:
        if (happens := next(waits, None)) is None:
            raise KeyboardInterrupt
        happens()

    monkeypatch.setattr("analysis.commands.report.time.sleep", wait)
    assert main(["report", str(run), "--watch"]) == 130
    assert capsys.readouterr().out.count("renewed:") == 1
    assert "step 16" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_of_different_size_are_compared_on_corrected_measures_only(tmp_path: Path) -> None:
    small = write(tmp_path / "small", {0: 0.05, 16: 0.09}, name="small", chance=0.01)
    large = write(tmp_path / "large", {0: 0.05, 16: 0.09}, name="large", chance=0.001)
    path = write_report([small, large], tmp_path / "both.html")
    assert "differ in the number of units" in path.read_text(encoding="utf-8")
    titles = [figure["layout"]["title"]["text"] for figure in figures_in(path)]
    assert "Shared" not in titles
    assert "Accuracy, mean of layers" in titles
    same = write_report([small, write(tmp_path / "twin", {0: 0.1, 16: 0.2}, name="twin")], tmp_path / "same.html")
    assert "Shared" in [figure["layout"]["title"]["text"] for figure in figures_in(same)]
    assert "differ in the number" not in same.read_text(encoding="utf-8")


def test_sizes_are_told_without_overlap_and_hold_for_all_analyses(tmp_path: Path) -> None:
    """With `share` the chance of an overlap is the same at every size, and a list may have no overlap at all."""
    suite, codes = ProbeSuite(texts="none.parquet"), [Row(metric="compression_mdl", value=2.0, chance=1.0)]
    codes.append(Row(metric="accuracy_mlp", value=0.5, chance=0.1))
    overlap = ConceptOverlap(concepts="none.parquet", share=0.01)
    for name, parameters in (("small", 10), ("large", 20), ("old", None)):
        table = ResultTable(tmp_path / name)
        for step in (0, 8):
            told = {} if parameters is None else {"parameters": parameters}
            table.write(SnapshotId(name, step, step), suite, codes, 1.0, told)
            if parameters is not None:
                table.write(SnapshotId(name, step, step), overlap, [Row(metric="shared", value=0.1, chance=0.01)], 1.0)

    def shown(*names: str) -> tuple[str, set[str]]:
        path = write_report([tmp_path / name for name in names], tmp_path / "both.html")
        titles = {figure["layout"]["title"]["text"] for figure in figures_in(path)}
        return path.read_text(encoding="utf-8"), titles

    text, titles = shown("small", "large")
    assert "number of parameters without embeddings (small: 10, large: 20)" in text
    assert titles == {"Accuracy MLP"}
    text, titles = shown("small", "old")
    assert "Not all results say the size of their model" in text
    assert "Compression MDL" in titles


def test_what_depends_on_the_size_are_metrics_that_are_measured() -> None:
    package = MEASURES.parents[1] / "analysis"
    emitting = [path for folder in ("measures", "experts", "geometry") for path in (package / folder).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in emitting)
    assert {metric for metric in SIZE_DEPENDENT if f'"{metric}"' not in code} == set()
    assert {metric for metric in SIZE_DEPENDENT if f"`{metric}`" not in MEASURES.read_text(encoding="utf-8")} == set()
    assert depends_on_size("shared_by_3")
    assert not depends_on_size("rank_transfer")


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """The name comes from the results, so a folder of another name would not help."""
    one, other = (write(tmp_path / name, {0: 0.1, 1: 0.1}) for name in "ab")
    own = write_report([one])
    before = own.read_text(encoding="utf-8")
    path = write_report([one, other])
    assert path == one / "comparison.html"
    assert own.read_text(encoding="utf-8") == before, "a run's own page stays"
    names = {trace["name"] for figure in figures_in(path) for trace in figure["data"]}
    assert {f"planted ({one})", f"planted ({other})"} <= names
    assert "different settings" not in path.read_text(encoding="utf-8")
    another = ConceptOverlap(concepts="none.parquet", k=7)
    ResultTable(other / "results").write(SnapshotId("planted", 1, 1), another, [Row(metric="shared", value=0.1)], 1.0)
    text = write_report([one, other]).read_text(encoding="utf-8")
    assert "Measured with different settings: k;" in text
    assert "overlap was measured in 2 ways (steps 0; 1)" in text
    with pytest.raises(ValueError, match="is named twice"):
        write_report([one, one])


def test_a_comparison_has_units_chance_and_explanations(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, {0: 0.05, 16: 0.09}, name=name) for name in ("one", "other")]
    path = write_report(runs)
    figure = next(f for f in figures_in(path) if f["layout"]["title"]["text"] == "Shared")
    assert figure["layout"]["yaxis"]["title"]["text"] == "share of K"
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["chance"]
    assert "Shared experts / K" in path.read_text(encoding="utf-8")


def test_a_single_snapshot_worse_than_a_guess_has_a_page_with_chance_and_interval(tmp_path: Path) -> None:
    """As a folder of freshly made weights, which passes for step 1: no step may feed a verdict."""
    write(tmp_path, {1: 0.05})
    table, here = ResultTable(tmp_path / "results"), SnapshotId("planted", 1, None)
    path = write_report([tmp_path])
    assert "step 1</th><th>step 1" not in path.read_text(encoding="utf-8")
    figure = next(f for f in figures_in(path) if f["layout"]["title"]["text"].startswith("Sharing of concept"))
    assert [(trace["name"], trace["error_y"]["type"]) for trace in figure["data"]] == [("measured", "data")]
    assert figure["layout"]["annotations"][0]["text"] == "chance"
    losses = [
        Row(metric="bits_per_byte", value=9.0),
        Row(metric="perplexity", value=400.0, chance=384.0, language="en"),
    ]
    table.write(here, LOSS, losses, seconds=1.0)
    assert "Shared by language pair, step 1" in [
        f["layout"]["title"]["text"] for f in figures_in(write_report([tmp_path]))
    ]


def test_files_that_cannot_be_read_and_settings_that_changed_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", {0: 0.05, 8: 0.07, 16: 0.09})
    ResultTable(run / "results").path(16, "language_probe").write_bytes(b"torn")
    other = ConceptOverlap(concepts="none.parquet", k=7)
    ResultTable(run / "results").write(SnapshotId("planted", 8, 8), other, [Row(metric="shared", value=0.1)], 1.0)
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "Not readable: language_probe at step 16;" in said
    assert "Mixed settings: overlap was measured in 2 ways (steps 0, 16; 8)" in said
    text = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    assert {'"k": 7', '"k": 500'} <= {*re.findall(r'"k": \d+', text)}, "both stand in Provenance"


def test_another_precision_is_another_way_and_another_name_of_the_class_is_not(tmp_path: Path) -> None:
    """Stamps of before 2026-11-25 name the module of a class, and their hash is of that."""
    table, rows, settings = ResultTable(tmp_path), [Row(metric="accuracy", value=0.5)], PROBE.settings()
    for step in (0, 8, 16):
        table.write(SnapshotId("run", step, step), PROBE, rows, 1.0, {"dtype": "float32"} if step else {})
    old = pq.read_table(table.path(8, PROBE.name))
    stamp = json.loads(old.schema.metadata[b"babelscope"])
    stamp |= {"settings": settings | {"analysis": "analysis.language_probe.LanguageProbe"}, "fingerprint": "old"}
    pq.write_table(old.replace_schema_metadata({b"babelscope": json.dumps(stamp)}), table.path(8, PROBE.name))
    assert read_run(tmp_path).warnings == [], "step 0 was measured live, in float32"
    table.write(SnapshotId("run", 32, 32), PROBE, rows, 1.0, {"dtype": "bfloat16"})
    [said] = read_run(tmp_path).warnings
    assert "language_probe was measured in 2 ways (steps 0, 8, 16; 32)" in said
    text = html.unescape(write_report([tmp_path]).read_text(encoding="utf-8"))
    assert {'"dtype": "float32"', '"dtype": "bfloat16"'} == {*re.findall(r'"dtype": "\w+"', text)}


def test_a_mean_that_never_moves_is_no_figure(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "results")
    for step in (0, 8):
        rows = []
        for layer, (place, (a, b)) in itertools.product((0, 1), enumerate(PAIRS)):
            for metric, value in (("confusion", 0.1 + 0.1 * ((place + layer) % 3)), ("cka", 0.1 * layer)):
                rows.append(Row(metric=metric, value=value, layer=layer, language=a, other_language=b))
        table.write(SnapshotId("planted", step, step), SomethingNew(), rows, seconds=0.1)
    titles = [figure["layout"]["title"]["text"] for figure in figures_in(write_report([tmp_path]))]
    assert "CKA by layer" in titles
    assert "Confusion by layer" not in titles


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "{}/there"], "there: not written (Is a directory); --out names another place"),
        (["--out", "{}/x.pdf", "--format", "png"], "the name says pdf; leave out one of the two"),
        (["--capacity", "--steps", "0", "16"], "leave out --capacity"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    run = write(tmp_path / "run", {0: 0.05, 16: 0.09})
    assert main(["report", str(run), *(option.format(tmp_path) for option in options)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.html"))


def test_closing_tables_show_loss_against_unigram_and_the_cost(tmp_path: Path) -> None:
    run = write(tmp_path / "planted", {0: 0.05, 16: 0.09})
    bits = [Row(metric="bits_per_byte", value=2.0, chance=3.5, language="de")]
    ResultTable(run / "results").write(SnapshotId("planted", 16, 16000), LOSS, bits, seconds=0.1)
    rows = [{"kind": "analysis", "step": 16, "tokens": 1, "time": 0.0, "values": {"analysis_cost/share": 0.25}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {table.title.split(",")[0].split(" (")[0]: table for table in closing_tables(read_run(run))}
    assert tables["Bits per byte on held-out text"].rows == (("de", "2.0000", "3.5000", "-1.5000"),)
    assert "25.0 %" in tables["Cost of the analyses"].note
    assert tables["Language probe"].rows[1][1] == "0.6000 (L01)"
    [paper] = tables["Concept neurons across languages"].rows
    assert paper[:4] == ("overlap: shared, all pairs", "0.0518", "0.0918", "+0.0400 [+0.0400, +0.0400]")


def test_a_folder_without_results_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_report([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="python -m analysis run"):
        write_report([tmp_path])
    with pytest.raises(ValueError, match="at least one run"):
        write_report([])


def test_the_profile_by_layer_stands_beside_the_range_of_random_networks() -> None:
    levels = {"step": [0, 0, 8, 8], "layer": [0, 1, 0, 1], "value": [0.1, 0.1, 0.3, 0.1], "chance": 0.05}
    nulls = pd.DataFrame({"network": [0, 0, 1, 1], "layer": [0, 1, 0, 1], "value": [0.08, 0.12, 0.1, 0.09]})
    figure = profile(pd.DataFrame(levels), nulls, "Where they are")
    band = next(trace for trace in figure.data if trace.name == "2 random networks")
    assert list(zip(band.x, band.y, strict=True)) == [("L00", 0.1), ("L01", 0.12), ("L01", 0.09), ("L00", 0.08)]
    assert [trace.name for trace in profile(pd.DataFrame(levels), nulls[:0], "").data] == ["step 0", "step 8", "chance"]


def test_the_methods_say_what_was_trained_and_measured_in_words(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {0: 0.05, 16: 0.09})
    options = {"seed_everything": 3, "trainer": {"default_root_dir": "runs/planted"}}
    options |= {"model": {"num_layers": 2, "d_model": 32}, "data": {"languages": ["de", "en"]}}
    (run / "config.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    training, *measures = methods(read_run(run))
    assert training == (
        "Model: 2 layers, width 32. Trained on 16,000 tokens in 16 steps. Languages of the training text: de, en. "
        "Seed 3. 2 checkpoints were measured (steps 0 to 16). Command: python -m train fit --config "
        "runs/planted/config.yaml."
    )
    overlap = next(line for line in measures if line.startswith("Concept neurons (overlap"))
    assert "12 concepts, 3 languages, K 500, pooled over tokens by max" in overlap


def test_a_run_without_analyses_has_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"kind": "train", "step": 1, "tokens": 10, "time": 0.0, "values": {"train/loss": 3.0}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["report", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out.replace("\n", "")
    assert "No analysis was measured yet" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_text_from_a_run_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    run = write(tmp_path / "planted", {0: 0.05, 16: 0.09})
    (run / "config.yaml").write_text("note: '</pre></script><script>alert(1)</script>'\n")
    text = write_report([run]).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text


def test_pair_helpers() -> None:
    rows = pd.DataFrame(
        [("de", "en", 0.2), ("de", "es", 0.1), ("en", "es", 0.4)], columns=["language", "other_language", "value"]
    )
    matrix = pair_table(rows)
    assert matrix.loc["en", "de"] == matrix.loc["de", "en"] == 0.2
    assert matrix.loc["de", "de"] != matrix.loc["de", "de"], "the diagonal is empty"
    assert not is_directed(rows)
    assert dendrogram(rows, "tree") is not None
    assert dendrogram(rows.iloc[:2], "gaps") is None
    assert select(pd.DataFrame(columns=FRAME_COLUMNS), "a", "b").empty


def test_one_correction_over_steps_layers_and_pairs(tmp_path: Path) -> None:
    """p = 0.006 would stand among the 6 tests of pairs over both steps, but not among the 18 with layers."""
    table = ResultTable(tmp_path / "results")
    for step in (0, 8):
        rows = []
        for layer in (0, 1, None):
            for index, (a, b) in enumerate(PAIRS):
                p = 0.006 if (step, layer, index) == (8, None, 0) else 0.5
                rows.append(Row(metric="cka", value=0.3, layer=layer, language=a, other_language=b, p=p))
            rows.append(Row(metric="cka", value=0.3, layer=layer, p=1e-9))  # means over pairs are no tests of pairs
        table.write(SnapshotId("planted", step, step), SomethingNew(), rows, seconds=0.1)
    page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"\b0 of 18 tests \(steps x layers x pairs\)", page)
