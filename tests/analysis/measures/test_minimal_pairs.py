"""Minimal pairs against sums of plain transformers, on planted preferences, and on bad files."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import build_analyses
from analysis.measures.minimal_pairs import MinimalPairs, Pair, read_pairs
from analysis.snapshots import Snapshot
from analysis.statistics import wilson_interval

PAIRS = {
    "eng": [
        ("the dog barks.", "the dog bark.", "SV-#"),
        ("the dogs bark.", "the dogs barks.", "SV-#"),
        ("I am.", "I is.", "SV-P"),
    ],
    "deu": [
        ("der Hund bellt.", "der Hund bellen.", "SV-#"),
        ("ich bin.", "ich bist.", "SV-P"),
        ("wir sind.", "wir ist.", "SV-P"),
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language, pairs in PAIRS.items():
        (tmp_path / language).mkdir()
        lines = ["sen\twrong_sen\tphenomenon\tverb", *("\t".join([*pair, "x"]) for pair in pairs)]
        (tmp_path / language / "data.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def plain(model: PreTrainedModel, snapshot: Snapshot, text: str) -> float:
    ids = torch.tensor([snapshot.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return float(F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))


def by_cell(rows: list[Row]) -> dict[tuple[str, str | None, str | None], Row]:
    return {(row.metric, row.language, row.concept): row for row in rows}


@pytest.mark.parametrize("name", ["tiny_xglm", "tiny_bloom", "tiny_llama"])
def test_margins_are_those_of_plain_transformers(
    name: str, folder: Path, request: pytest.FixtureRequest, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = request.getfixturevalue(name)
    snapshot = tiny_snapshot(model)
    found = by_cell(list(MinimalPairs(pairs=str(folder)).measure(snapshot)))
    for language, pairs in PAIRS.items():
        margins = np.array([plain(model, snapshot, bad) - plain(model, snapshot, good) for good, bad, _ in pairs])
        assert found["pair_margin", language, None].value == pytest.approx(margins.mean(), abs=1e-4)
        assert found["pair_accuracy", language, None].value == pytest.approx((margins > 0).mean())
        here = [place for place, pair in enumerate(pairs) if pair[2] == "SV-P"]
        assert found["pair_margin", language, "SV-P"].value == pytest.approx(margins[here].mean(), abs=1e-4)
    mean = np.mean([found["pair_accuracy", language, None].value for language in PAIRS])
    assert found["pair_accuracy", None, None].value == pytest.approx(mean)


def test_a_model_that_learned_the_right_sentences_is_right(
    folder: Path, tiny_gpt2: PreTrainedModel, tiny_snapshot: Callable[..., Snapshot]
) -> None:
    model = deepcopy(tiny_gpt2).requires_grad_(True)
    snapshot = tiny_snapshot(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    texts = [good for good, _, _ in PAIRS["eng"]] * 2
    encoded = snapshot.tokenizer(texts, return_tensors="pt", padding=True)
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    for _ in range(80):
        optimizer.zero_grad()
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
    found = by_cell(list(MinimalPairs(pairs=str(folder)).measure(tiny_snapshot(model.eval()))))
    learned = found["pair_accuracy", "eng", None]
    assert learned.value == 1.0
    assert learned.chance == 0.5
    assert 0.3 < learned.low < 1.0, "three right ones of three leave much open"
    assert found["pair_margin", "eng", None].value > 1


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_mean_over_languages_has_the_interval_that_theirs_make(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_xglm: PreTrainedModel, tiny_snapshot: Callable
) -> None:
    """All pairs right leave a width; half of them right, as for one binomial share of all pairs together."""
    lines = [f"{language}\tgood {number}\tbad {number}\tx" for language in ("de", "en") for number in range(50)]
    (tmp_path / "pairs.tsv").write_text("language\tgood\tbad\tphenomenon\n" + "\n".join(lines), encoding="utf-8")

    def losses(self: MinimalPairs, snapshot: Snapshot, texts: list[str]) -> np.ndarray:
        return np.array([float(text.startswith("bad") == (int(text.split()[1]) < 50 * share)) for text in texts])

    monkeypatch.setattr(MinimalPairs, "_losses", losses)
    found = by_cell(list(MinimalPairs(pairs=str(tmp_path / "pairs.tsv")).measure(tiny_snapshot(tiny_xglm))))
    row = found["pair_accuracy", None, None]
    low, high = wilson_interval(round(100 * share), 100)
    assert row.value == share
    assert row.low == pytest.approx(low, abs=0.02)
    assert row.high == pytest.approx(high, abs=0.005)
    assert row.low < row.value


def test_a_single_file_names_the_language_and_pairs_are_spread(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("language\tgood\tbad\tphenomenon\nen\tgo\tgoes\tx\nde\tgehe\tgehst\ty\n", encoding="utf-8")
    assert read_pairs(path) == {"de": [Pair("gehe", "gehst", "y", "de")], "en": [Pair("go", "goes", "x", "en")]}
    assert list(read_pairs(path, ["en"])) == ["en"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good\tphenomenon\tlanguage\na\tx\ten\n", "no column wrong_sen or bad"),
        ("good\tbad\tphenomenon\na\tb\tx\n", "no column language or lang"),
        ("good\tbad\tphenomenon\tlanguage\na\ta\tx\ten\n", "line 2: a pair needs two different sentences"),
        ("good\tbad\tphenomenon\tlanguage\na\t\tx\ten\n", "line 2: a pair needs two different sentences"),
        ("good\tbad\tphenomenon\tlanguage\n", "holds no pairs"),
    ],
)
def test_bad_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_bad_settings_are_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no minimal pairs"):
        read_pairs(folder / "eng")
    with pytest.raises(ValueError, match="no language 'fra'; it has deu, eng"):
        read_pairs(folder, ["fra"])
    with pytest.raises(ValueError, match="max_pairs=1"):
        MinimalPairs(pairs=str(folder), max_pairs=1)


def test_files_of_a_folder_count_in_the_fingerprint(folder: Path) -> None:
    (built,) = build_analyses([{"class_path": "MinimalPairs", "init_args": {"pairs": str(folder)}}])
    before = built.fingerprint()
    with (folder / "eng" / "data.tsv").open("a") as file:
        file.write("he goes\the go\tSV-P\tx\n")
    assert built.fingerprint() != before
