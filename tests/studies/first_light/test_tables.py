"""The page is made from the tables alone, twice the same, and shows nothing before the seeds are finished."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from studies.first_light import tables
from studies.first_light.contents import kinship_table, onset_table
from studies.first_light.hypotheses import decide
from studies.first_light.study import Study
from tests.studies.first_light.planted import STEPS, write_study


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("planted") / "results")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"# Before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n", encoding="utf-8")
    return path


def make(results: Path, page: Path, out: Path, *more: str) -> dict[str, bytes]:
    assert tables.main(["--results", str(results), "--page", str(page), "--out", str(out), *more]) == 0
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_everything_is_made_twice_to_the_same_bytes(planted: Path, page: Path, tmp_path: Path) -> None:
    first, second = (make(planted, page, tmp_path / name) for name in ("one", "two"))
    assert first == second
    assert {"page.md", "sharing.svg", "experts.svg", "identity.svg", "depth.svg", "capacity.svg"} == set(first)
    text = first["page.md"].decode()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "nan" not in text.lower().replace("-nan", "nan").split("| ")
    for heading in (
        "Decisions",
        "by stratum",
        "Expert sets",
        "follows",
        "Onsets",
        "identity",
        "neurons do",
        "Births",
        "clone alone",
        "Capacity",
    ):
        assert re.search(f"^### .*{heading}", text, re.MULTILINE), heading
    for name, content in first.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(content)
            assert b"nan" not in content
            assert name in text


def test_the_planted_truth_is_decided(planted: Path, tmp_path: Path) -> None:
    found = decide(Study.read(planted))
    assert {name: one.outcome for name, one in found.items()} == dict.fromkeys(
        ("H1", "H1b", "H2", "H3", "H4"), "supported"
    )
    assert found["H1"].contrast.low < 0.03 < found["H1"].contrast.high
    assert all(one.p_holm is not None and one.p_holm < 0.05 for name, one in found.items() if name != "H1b")
    flat = dict.fromkeys(("same_family", "same_script", "disjoint_scripts", "clone"), -0.004)
    null = decide(Study.read(write_study(tmp_path / "null", rise=flat, fall=-0.1, transfer=0.0, slope=0.02)))
    assert {name: one.outcome for name, one in null.items()} == dict.fromkeys(
        ("H1", "H1b", "H2", "H3", "H4"), "refuted"
    )


def test_kinship_and_onsets_say_what_was_planted(planted: Path) -> None:
    study = Study.read(planted)
    rows = {row[0]: row for row in kinship_table(study).rows}
    assert rows["script"][1].startswith("-")
    assert float(rows["script"][3].removeprefix("< ")) < 0.01
    assert float(rows["family"][3].removeprefix("< ")) > 0.01
    later = next(row for row in onset_table(study).rows if row[0].startswith("no common script, later"))
    low, high = map(float, re.findall(r"[+-]\d+\.\d", later[3])[1:3])
    assert 0 < low < 2.0 + 0.9 < high + 1.5, later


@pytest.mark.parametrize(("seeds", "steps"), [(5, STEPS[:5]), (4, STEPS), (2, STEPS[:3])])
def test_unfinished_seeds_show_nothing_unless_it_is_a_trial(
    seeds: int, steps: tuple[int, ...], page: Path, tmp_path: Path
) -> None:
    results = write_study(tmp_path / "results", seeds=seeds, steps=steps)
    made = make(results, page, tmp_path / "out")
    assert set(made) == {"page.md"}
    assert b"The seeds are not finished" in made["page.md"]
    assert b"###" not in made["page.md"]
    trial = make(results, page, tmp_path / "trial", "--partial")
    assert b"### Decisions" in trial["page.md"]
    assert b"The seeds are not finished" in trial["page.md"]


def test_without_results_the_page_says_so(page: Path, tmp_path: Path) -> None:
    made = make(tmp_path / "nothing", page, tmp_path / "out")
    assert b"0 of 5" in made["page.md"]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no part between"):
        tables.main(["--results", str(tmp_path), "--page", str(page), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        tables.main(["--partial"])


def test_the_committed_page_is_that_of_the_committed_results(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    page, results = root / "docs" / "first_light.md", root / "studies" / "first_light" / "results"
    study = Study.read(results)
    named = re.findall(r"!\[(.*?)\]\((\.\./studies/first_light/figures/.*?)\)", page.read_text(encoding="utf-8"))
    figures = [(name, caption) for caption, name in named]
    assert tables.make_page(page.read_text(encoding="utf-8"), study, figures) == page.read_text(encoding="utf-8")
