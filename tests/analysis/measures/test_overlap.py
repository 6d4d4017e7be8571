"""The overlap analysis on planted truth: copies share everything, and every figure comes with its controls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from analysis.base import Attachment, Row
from analysis.measures import build_analyses
from analysis.measures.overlap import ConceptOverlap
from analysis.snapshots import Snapshot

WORDS = {"fire": "qq", "water": "jj", "wood": "zz"}
LETTERS = {"de": "abcdefgh", "en": "abcdefgh", "ru": "абвгдежз"}


def write_concepts(path: Path, languages: tuple[str, ...] = ("de", "en", "ru"), positives: int = 12) -> Path:
    """Texts of random letters; a concept is a doubled letter. `de` and `en` have the very same sentences."""
    rows = []
    for language in languages:
        generator = np.random.default_rng(len(LETTERS[language].encode()))
        for concept, mark in WORDS.items():
            for index in range(positives * 3):
                letters = "".join(generator.choice(list(LETTERS[language]), size=int(generator.integers(5, 12))))
                rows.append(
                    {
                        "concept": concept,
                        "language": language,
                        "uid": f"{concept}/{index}",
                        "text": letters + (mark if index < positives else ""),
                        "label": int(index < positives),
                    }
                )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def measure(snapshot: Snapshot, path: Path, **options: object) -> tuple[list[Row], Attachment]:
    found = list(ConceptOverlap(concepts=str(path), **({"k": 20, "bootstrap": 200} | options)).measure(snapshot))
    *rows, attachment = found
    assert all(isinstance(row, Row) for row in rows)
    assert isinstance(attachment, Attachment)
    return rows, attachment  # type: ignore[return-value]


def one(rows: list[Row], metric: str, *languages: str | None, **where: object) -> Row:
    language, other = languages or (None, None)
    wanted = {
        "metric": metric,
        "language": language,
        "other_language": other,
        "concept": None,
        "layer": None,
        "condition": None,
    }
    wanted |= where
    chosen = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    assert len(chosen) == 1, (metric, languages, len(chosen))
    return chosen[0]


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> tuple[list[Row], Attachment]:
    torch.set_num_threads(1)
    path = write_concepts(tmp_path_factory.mktemp("concepts") / "concepts.jsonl")
    return measure(tiny_snapshot(tiny_xglm), path, shuffles=2)


def test_copies_share_all_their_experts(measured: tuple[list[Row], Attachment]) -> None:
    rows = measured[0]
    row = one(rows, "shared", "de", "en")
    assert row.value == row.low == row.high == 1.0
    assert row.p < 1e-30
    assert one(rows, "normalized", "de", "en").value == pytest.approx(1.0)
    same = one(rows, "rank_transfer", "de", "en")
    assert same.value == pytest.approx(one(rows, "rank_ceiling", "de", None).value)
    assert same.value > 0.05
    assert one(rows, "shared", "de", "ru").value < 1.0
    assert one(rows, "shared_surface", "de", "en").value == 1.0
    assert one(rows, "shared_mismatched", "de", "en").value < 0.9
    assert one(rows, "transfer", "de", "en").value > one(rows, "transfer", "de", "en").chance


def test_chance_levels_are_those_of_the_definitions(measured: tuple[list[Row], Attachment]) -> None:
    rows = measured[0]
    chance = 20 / 448
    for pair in (("de", "en"), ("de", "ru"), ("en", "ru"), (None, None)):
        assert one(rows, "shared", *pair).chance == pytest.approx(chance)
        assert one(rows, "shared_shuffled", *pair).chance == pytest.approx(chance)
        assert one(rows, "rank_transfer", *pair).chance == 0.0
    for metric in ("shared", "rank_transfer"):
        overall = one(rows, metric)
        pairs = [one(rows, metric, *pair).value for pair in (("de", "en"), ("de", "ru"), ("en", "ru"))]
        assert overall.value == pytest.approx(np.mean(pairs))
        assert overall.low <= overall.value <= overall.high
        by_concept = [one(rows, metric, concept=concept).value for concept in WORDS]
        assert overall.value == pytest.approx(np.mean(by_concept))
    for language in ("de", "en", "ru"):
        for metric in ("ap_best", "ap_experts"):
            row = one(rows, metric, language, None)
            assert 1 / 3 < row.chance < row.value, "the best of 448 units by shuffled labels is above the prevalence"
        held = one(rows, "ap_heldout", language, None)
        assert held.value < one(rows, "ap_experts", language, None).value
        assert held.chance < one(rows, "ap_experts", language, None).chance


def test_profiles_add_up(measured: tuple[list[Row], Attachment]) -> None:
    rows, attachment = measured
    layers = [row for row in rows if row.metric == "shared_units"]
    assert [row.layer for row in layers] == [0, 1]
    assert sum(row.value for row in layers) == pytest.approx(one(rows, "shared").value)
    assert 20 / 448 < sum(row.chance for row in layers) < one(rows, "shared").value
    kinds = [row for row in rows if row.metric == "expert_units" and row.kind is not None]
    assert {row.kind for row in kinds} == {"attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"}
    for group in (kinds, [row for row in rows if row.metric == "expert_units" and row.layer is not None]):
        assert sum(row.value for row in group) == pytest.approx(1.0)
        assert sum(row.chance for row in group) == pytest.approx(1.0)
    assert attachment.name == "experts"
    assert attachment.table.num_rows == 3 * 3 * 20
    reach = one(rows, "shared_by_2").value
    assert reach >= one(rows, "shared_by_3").value
    assert reach >= 1.0  # de and en share everything, so all their experts are in at least two languages


PROMISED = {
    *("rank_transfer", "rank_ceiling", "normalized", "heldout_shared", "ceiling", "transfer", "transfer_gain"),
    *("shared", "shared_shuffled", "shared_mismatched", "shared_surface", "shared_units", "expert_units"),
    *("shared_by_2", "shared_by_3", "ap_best", "ap_experts", "ap_heldout"),
}


def test_every_promised_metric_is_there(measured: tuple[list[Row], Attachment]) -> None:
    assert {row.metric for row in measured[0]} == PROMISED
    documented = ConceptOverlap.__doc__ or ""
    assert all(f"`{metric}`" in documented for metric in PROMISED - {"shared_by_2", "shared_by_3"})


def test_pairs_are_told_apart_by_script_and_family(measured: tuple[list[Row], Attachment]) -> None:
    """The concept marks are Latin letters, but fewer than a tenth of the Russian sentences' letters."""
    rows = measured[0]
    assert {row.condition for row in rows} == {None, "same_family", "disjoint_scripts"}
    for metric in ("rank_transfer", "shared", "shared_shuffled"):
        pairs = [one(rows, metric, *pair).value for pair in (("de", "ru"), ("en", "ru"))]
        assert one(rows, metric, condition="disjoint_scripts").value == pytest.approx(np.mean(pairs))
        related = one(rows, metric, condition="same_family")
        assert related.value == pytest.approx(one(rows, metric, "de", "en").value)
        by_concept = [one(rows, metric, condition="same_family", concept=name).value for name in WORDS]
        assert related.value == pytest.approx(np.mean(by_concept))


def test_held_out_overlap_comes_for_every_k(measured: tuple[list[Row], Attachment]) -> None:
    rows = [row for row in measured[0] if row.metric == "heldout_shared"]
    assert {row.k for row in rows} == {1, 4, 13, 45}  # 0.3, 1, 3 and 10 % of 448 units
    for k in (4, 13, 45):
        assert one(rows, "heldout_shared", condition="same_family", k=k).value > 0.0
        assert one(rows, "heldout_shared", concept="fire", k=k).chance == 0.0


def test_measuring_twice_gives_the_same_and_touches_no_generator(
    tmp_path: Path, tiny_bloom: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_concepts(tmp_path / "c.jsonl")
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [measure(tiny_snapshot(tiny_bloom), path)[0] for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_parts_can_be_left_out(
    tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    path = write_concepts(tmp_path / "c.jsonl")
    rows, _ = measure(tiny_snapshot(tiny_xglm), path, halves=False, surface=False, languages=["de", "en"])
    left_out = {"rank_transfer", "rank_ceiling", "heldout_shared", "ceiling", "normalized", "ap_heldout"}
    assert {row.metric for row in rows} == PROMISED - left_out - {"shared_surface", "shared_by_3"}
    assert {row.condition for row in rows} == {None, "same_family"}
    assert one(rows, "transfer", "en", "de").value > 0.0


def test_one_concept_has_no_mismatch_but_everything_else(
    tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    rows, _ = measure(tiny_snapshot(tiny_xglm), write_concepts(tmp_path / "c.jsonl"), names=["fire"])
    metrics = {row.metric for row in rows}
    assert not {"shared_mismatched", "transfer_gain", "rank_transfer", "heldout_shared"} & metrics
    assert {"shared", "shared_shuffled", "transfer", "ceiling", "ap_heldout"} <= metrics
    assert {(row.low, row.high) for row in rows} == {(None, None)}, "one concept shows no spread"


def test_all_units_as_experts_is_defined(
    tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    rows, _ = measure(tiny_snapshot(tiny_xglm), write_concepts(tmp_path / "c.jsonl"), share=1.0)
    assert one(rows, "shared").value == one(rows, "shared").chance == 1.0
    assert one(rows, "shared", "de", "ru").p == 1.0
    assert one(rows, "ceiling").value == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"languages": ["de"]}, "compares with nothing"),
        ({"languages": ["de", "de"]}, "listed twice"),
        ({"names": ["fire", "water", "fire"]}, "'fire' is listed twice"),
        ({"k": 0}, "k=0 must be at least 1"),
        ({"share": 2.0}, "share=2.0 must be above 0 and at most 1"),
        ({"bootstrap": 0}, "bootstrap=0"),
        ({"shuffles": 0}, "shuffles=0"),
        ({"shares": [0.01, 2.0]}, "shares=.*above 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ConceptOverlap(concepts="c.parquet", **options)


def test_bad_input_is_named(tmp_path: Path, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]) -> None:
    snapshot = tiny_snapshot(tiny_xglm)
    path = write_concepts(tmp_path / "c.jsonl")
    with pytest.raises(FileNotFoundError, match="no such concept file"):
        measure(snapshot, tmp_path / "absent.parquet")
    with pytest.raises(ValueError, match="no language 'fr'"):
        measure(snapshot, path, languages=["de", "fr"])
    with pytest.raises(ValueError, match="only 448 units"):
        measure(snapshot, path, k=500)
    with pytest.raises(ValueError, match="unknown site kind"):
        measure(snapshot, path, site_set="mlp")
    with pytest.raises(ValueError, match="only 'de'; two languages"):
        measure(snapshot, write_concepts(tmp_path / "one.jsonl", languages=("de",)))
    with pytest.raises(ValueError, match="'fire' has 4 positives"):
        measure(snapshot, write_concepts(tmp_path / "few.jsonl", positives=4))


def test_settings_hold_the_content_of_the_concept_file(tmp_path: Path) -> None:
    path = write_concepts(tmp_path / "c.jsonl")
    entry = {
        "class_path": "ConceptOverlap",
        "init_args": {"concepts": str(path), "share": 0.01},
    }
    (analysis,) = build_analyses([entry])
    before = analysis.fingerprint()
    assert build_analyses([{**entry, "init_args": entry["init_args"] | {"batch_tokens": 7}}])[0].fingerprint() == before
    assert build_analyses([{**entry, "init_args": entry["init_args"] | {"seed": 7}}])[0].fingerprint() != before
    write_concepts(path, positives=13)
    assert analysis.fingerprint() != before
    assert len(analysis.concept_set({}).pools["de"].positives["fire"]) == 13
    write_concepts(path, positives=15)
    assert len(analysis.concept_set({}).pools["de"].positives["fire"]) == 15
