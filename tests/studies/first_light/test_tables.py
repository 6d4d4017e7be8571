"""The page is made from the tables alone, twice the same, and shows nothing before the seeds are finished."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from studies.first_light import tables
from studies.first_light.contents import decision_table, depth_table, kinship_table, onset_table
from studies.first_light.extent import extent_table
from studies.first_light.hypotheses import claim_read, decide
from studies.first_light.panels import draw_figures
from studies.first_light.secondary import again_table, birth_table, capacity_table, transfer_table
from studies.first_light.study import SEEDS, Study
from tests.studies.first_light.planted import STEPS, STRATA, WIDTH, Truth, write_study


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("planted"))


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
        "beside its nulls",
        "disjoint halves",
        "follows",
        "Onsets",
        "identity",
        "neurons do",
        "What there is",
        "first steps",
        "languages join",
        "clone alone",
        "Capacity",
    ):
        assert re.search(f"^### .*{heading}", text, re.MULTILINE), heading
    for name, content in first.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(content)
            assert b"nan" not in content
            assert name in text


def outcomes(results: Path) -> dict[str, str]:
    return {name: one.outcome for name, one in decide(Study.read(results)).items()}


HYPOTHESES = ("H1", "H1b", "H2", "H3", "H4")
FEW = (0, 256, 2048, 20_480)


def test_the_planted_truth_is_decided(planted: Path) -> None:
    found = decide(Study.read(planted))
    assert {name: one.outcome for name, one in found.items()} == dict.fromkeys(HYPOTHESES, "supported")
    assert found["H1"].contrast.low < 0.03 < found["H1"].contrast.high
    assert found["H2"].visible > 0.02
    assert all(one.p_holm is not None and one.p_holm < 0.05 for name, one in found.items() if name != "H1b")


def test_the_opposite_is_refuted(tmp_path: Path) -> None:
    opposite = Truth(rise=dict.fromkeys(STRATA, -0.004), middle=0.1, transfer=dict.fromkeys(STRATA, 0.0), slope=0.02)
    assert outcomes(write_study(tmp_path, opposite, steps=FEW)) == dict.fromkeys(HYPOTHESES, "refuted")


def test_nothing_there_supports_nothing(tmp_path: Path) -> None:
    nothing = Truth(rise=dict.fromkeys(STRATA, 0.0), middle=0.0, transfer=dict.fromkeys(STRATA, 0.0), slope=0.0)
    found = decide(Study.read(write_study(tmp_path, nothing, steps=FEW)))
    assert set(found) == set(HYPOTHESES)
    assert not any(one.outcome == "supported" for one in found.values())
    assert found["H4"].outcome == "refuted"
    for name in ("H1", "H1b", "H4"):
        assert found[name].contrast.low < 0 < found[name].contrast.high
    assert found["H2"].contrast.low > -0.02


def test_what_looks_like_the_claims_and_is_not_supports_none(tmp_path: Path) -> None:
    """Only related languages share more; an untrained network is high already; D falls because the ends rise; wider
    models share more because they learn faster; any ablation hurts, and only related languages by the concept's."""
    related = {"same_family": 0.1, "same_script": 0.06, "disjoint_scripts": -0.004, "clone": -0.004}
    confounded = Truth(
        rise=related,
        level=0.1,
        middle=0.05,
        ends=0.15,
        transfer={"same_family": 0.1, "same_script": 0.1, "disjoint_scripts": 0.0, "clone": 0.1},
        slope=0.0,
        by_loss=0.1,
    )
    results = write_study(tmp_path, confounded, steps=FEW)
    assert outcomes(results) == dict.fromkeys(HYPOTHESES, "refuted") | {"H3": "undecided"}
    study = Study.read(results)
    assert decide(study)["H3"].contrast.low > 0, "at equal tokens alone"
    rows = {(row[0], row[1]): row[2] for row in transfer_table(study).rows}
    assert rows["causal transfer: against random units, no common script", "20,480"].startswith("+0.2")


def test_a_hypothesis_that_lacks_numbers_of_one_seed_is_not_decided(planted: Path, tmp_path: Path) -> None:
    study = Study.read(planted)
    last = study.steps[-1]
    late = study.dips["step"] == last
    for dips in (study.dips[~late], study.dips[~late | (study.dips["run_seed"] < 5)]):
        assert set(decide(replace(study, dips=dips))) == set(HYPOTHESES) - {"H2"}
    for metric in ("causal_transfer", "causal_own"):
        gone = (study.rows["metric"] == metric) & (study.rows["run_seed"] == 3) & (study.rows["step"] == last)
        assert set(decide(replace(study, rows=study.rows[~gone]))) == set(HYPOTHESES) - {"H4"}
    said = decision_table(replace(study, dips=study.dips[~late])).rows
    assert [row[1] for row in said if row[0].startswith("H2")] == ["not measured"]


def test_a_seed_with_one_width_does_not_stop_the_others(planted: Path) -> None:
    study = Study.read(planted)
    begun = (study.rows["part"] == "capacity") & (study.rows["run_seed"] == 5) & (study.rows["width"] > 32)
    found = decide(replace(study, rows=study.rows[~begun]))["H3"]
    assert (found.outcome, len(found.by_seed)) == ("supported", 4)
    two = (study.rows["part"] == "capacity") & ((study.rows["run_seed"] > 1) | (study.rows["width"] > 64))
    assert "H3" not in decide(replace(study, rows=study.rows[~two])), "two runs have no error"


def test_one_seed_of_all_widths_decides_nothing_and_has_no_spread(planted: Path) -> None:
    study = Study.read(planted)
    others = (study.rows["part"] == "capacity") & (study.rows["run_seed"] > 1)
    single = replace(study, rows=study.rows[~others])
    found = decide(single)["H3"]
    assert found.outcome == "undecided"
    assert "4 runs cannot decide it" in found.why
    assert not any("(" in cell for row in capacity_table(single).rows for cell in row)
    assert all(row[-1].count("(") == 1 for row in capacity_table(study).rows)


def test_the_clone_is_held_against_languages_it_has_no_token_in_common_with(planted: Path) -> None:
    [row] = [row for row in depth_table(Study.read(planted)).rows if "no token in common" in row[1]]
    assert (row[2], row[3], row[5]) == ("0.0000", "0.0200", "+ + + + +")


def test_births_count_seeds_without_any(planted: Path) -> None:
    study = Study.read(planted)
    assert birth_table(study).rows == [
        ["en", "256", "1.000 (1.000 to 1.000)", "20,480"],
        ["de", "256", "0.000 (0.000 to 0.000)", "never"],
    ]
    late = study.births.copy()
    late.loc[(late["run_seed"] == 2) & (late["birth"] == 20_480), "birth"] = np.nan
    assert birth_table(replace(study, births=late)).rows[0] == ["en", "256", "0.800 (0.000 to 1.000)", "20,480"]


def test_kinship_and_onsets_say_what_was_planted(planted: Path) -> None:
    study = Study.read(planted)
    rows = {row[0]: row for row in kinship_table(study).rows}
    assert rows["script"][1].startswith("-")
    assert rows["script"][2].startswith("-")
    assert float(rows["script"][4].removeprefix("< ")) < 0.01
    assert float(rows["family"][4].removeprefix("< ")) > 0.01
    onsets = {row[0]: row for row in onset_table(study).rows}
    crossings = [
        octave - WIDTH * np.log(rise / (float(onsets[label][1]) - 0.01) - 1)
        for label, rise, octave in (("same script and family", 0.1, 9.0), ("no common script", 0.03, 11.0))
    ]
    said = onsets["no common script, later than same script and family"][3]
    low, high = map(float, re.findall(r"[+-]\d+\.\d", said)[1:3])
    assert low - 0.05 < crossings[1] - crossings[0] < high + 0.05, said


def cut(results: Path, out: Path, seeds: int, steps: tuple[int, ...]) -> Path:
    """The tables as they are when only these seeds and steps are measured."""
    out.mkdir()
    for path in results.iterdir():
        table = pd.read_parquet(path)
        if "run_seed" in table:
            table = table[table["run_seed"] <= seeds]
        if "step" in table:
            table = table[table["step"].isin(steps) | (table["part"] != "seeds")]
        table.to_parquet(out / path.name)
    return out


@pytest.mark.parametrize(("seeds", "steps"), [(5, STEPS[:5]), (4, STEPS), (2, STEPS[:3])])
def test_unfinished_seeds_show_nothing_unless_it_is_a_trial(
    planted: Path, seeds: int, steps: tuple[int, ...], page: Path, tmp_path: Path
) -> None:
    results = cut(planted, tmp_path / "results", seeds, steps)
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


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    root = Path(__file__).parents[3]
    page, results = root / "docs" / "first_light.md", root / "studies" / "first_light" / "results"
    study = Study.read(results)
    drawn = list(draw_figures(study)) if len(study.finished) == SEEDS else []
    named = [(f"../studies/first_light/figures/{name}.svg", caption) for name, caption, _ in drawn]
    assert tables.make_page(page.read_text(encoding="utf-8"), study, named) == page.read_text(encoding="utf-8")
    committed = {path.stem: path.read_text(encoding="utf-8") for path in results.with_name("figures").glob("*.svg")}
    assert committed == {name: svg for name, _, svg in drawn}


def test_the_claim_beyond_surface_is_not_read_where_nothing_is_shared(planted: Path) -> None:
    found = decide(Study.read(planted))
    said = {
        outcome: claim_read("H1b", found | {"H1b": replace(found["H1b"], outcome=outcome)}, {"refuted": "open"})
        for outcome in ("supported", "refuted")
    }
    assert said == {"supported": "supported", "refuted": "open"}
    nothing = found | {"H1": replace(found["H1"], outcome="refuted")}
    assert claim_read("H1b", nothing, {}) == "not read, since H1 is not supported"
    small = found | {"H1": replace(found["H1"], caveat="there and small: below 0.01")}
    assert claim_read("H1", small, {}) == "supported, there and small: below 0.01"
    assert claim_read("H4", {}, {}) == "not measured"


def gaps(study: Study) -> dict[str, Study]:
    """The study with five finished seeds and lists that are done in part."""
    rows, dips = study.rows, study.dips
    probe = (rows["metric"] == "accuracy_shared") & (rows["part"] == "seeds")
    later, last = rows["run_seed"] > 1, rows["step"] == study.steps[-1]
    causal = rows["metric"].isin(("causal_transfer", "causal_transfer_random", "causal_own"))
    directions = rows["metric"].isin(("direction_transfer", "accuracy_mlp"))
    none = pd.DataFrame()
    return {
        "no probe at the last step": replace(
            study, rows=rows[~(probe & last)], dips=dips[dips["step"] != study.steps[-1]]
        ),
        "the probe of one seed": replace(study, rows=rows[~(probe & later)], dips=dips[dips["run_seed"] == 1]),
        "R of one seed at the ends alone": replace(
            study,
            rows=rows[
                ~((rows["run_seed"] == 5) & ~rows["step"].isin([0, 20_480]) & (rows["metric"] == "rank_transfer"))
            ],
        ),
        "causal transfer of one seed": replace(study, rows=rows[~((causal | directions) & later)]),
        "directions without causal transfer": replace(study, rows=rows[~causal]),
        "causal transfer of four seeds": replace(study, rows=rows[~(causal & (rows["run_seed"] == 3))]),
        "seeds alone": replace(study, rows=rows[rows["part"] == "seeds"], births=none),
        "core alone": replace(
            study, rows=rows[~(probe | causal | directions | (rows["part"] != "seeds"))], dips=none, births=none
        ),
    }


def test_a_seed_trained_again_fills_what_its_first_run_lacks(planted: Path) -> None:
    whole = Study.read(planted)
    rows = whole.rows
    third = (rows["part"] == "seeds") & (rows["run_seed"] == 3) & (rows["step"] == whole.steps[-1])
    causal = third & rows["metric"].str.startswith("causal")
    copies = rows[third & (rows["metric"] == "rank_transfer")].assign(part="again", value=0.5)
    moved = rows.assign(part=rows["part"].mask(causal, "again"))
    study = replace(whole, rows=pd.concat([moved, copies]))
    found = decide(study)
    for name, decision in decide(whole).items():
        assert found[name].by_seed == pytest.approx(decision.by_seed), name
        assert found[name].outcome == decision.outcome
    assert "H4" not in decide(replace(study, rows=moved[moved["part"] != "again"]))
    assert dict(extent_table(study).rows)["of these from a seed trained again"] == "seed 3: step 20,480"
    table = again_table(study)
    assert [(row[1], row[3]) for row in table.rows] == [("3", "0.5000")] * len(STRATA)
    assert table.markdown() in tables.results_part(study, [])
    assert "another machine" not in tables.results_part(whole, [])


def test_a_page_is_made_of_lists_that_are_done_in_part_and_says_what_is_there(planted: Path) -> None:
    whole = Study.read(planted)
    for name, study in gaps(whole).items():
        figures = [(name, caption) for name, caption, _ in draw_figures(study)]
        page = tables.results_part(study, figures)
        assert "### Decisions" in page, name
        for part in page.split("### ")[1:]:
            assert part.count("\n| ") > 2, f"{name}: a table without rows\n{part}"
        there = dict(extent_table(study).rows)
        missing = [row[-1] for row in decision_table(study).rows if row[1] == "not measured"]
        if name == "no probe at the last step":
            assert there["language probe, H2"] == "seeds 1, 2, 3, 4, 5: all but step 20,480"
            assert missing == ["no language probe of seed 1 at 1 of its steps, the last of them 20,480"]
        if name == "R of one seed at the ends alone":
            assert "H2" not in [row[0][:2] for row in decision_table(study).rows if row[1] == "not measured"]
        if name == "causal transfer of four seeds":
            assert there["causal transfer, H4"] == "seeds 1, 2, 4, 5: steps 0, 2,048, 20,480"
            assert missing == ["no causal transfer of seed 3 at 1 of its steps, the last of them 20,480"]
            assert "+ + · + +" in page
        if name == "seeds alone":
            assert there["capacity runs, H3"] == there["English with its clone alone"] == "none"
    there = dict(extent_table(whole).rows)
    assert there["sharing (R) and held-out loss"] == f"seeds 1, 2, 3, 4, 5: all {len(STEPS)} snapshots"
    assert there["capacity runs, H3"].startswith("d32: seeds 1, 2, 3, 4, 5 (3 snapshots); d64")
