"""A cloned language is read as its original in other token ids, in every measure and from every folder."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from analysis.base import Row
from analysis.concepts.dataset import load_concepts
from analysis.extraction.encoding import encode_texts, shifted
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.overlap import ConceptOverlap
from analysis.snapshots import CLONES_FILE, Snapshot, SnapshotId, hash_tokenizer, read_clones
from analysis.texts import ClonedText, read_texts
from babelscope.records import Clone

WORDS = {"de": ("Wasser", "Feuer", "und ein Satz"), "en": ("water", "fire", "and a sentence")}


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    return write(
        tmp_path / "texts.jsonl",
        [
            {"lang": language, "uid": str(i), "text": f"{words[i % 2]} {words[2]} {i}", "split": split}
            for language, words in WORDS.items()
            for i, split in enumerate(["train"] * 20 + ["valid"] * 20)
        ],
    )


@pytest.fixture
def concept_file(tmp_path: Path) -> str:
    return write(
        tmp_path / "concepts.jsonl",
        [
            {
                "concept": concept,
                "language": language,
                "uid": str(i),
                "text": f"{words[i % 2]} {words[2]} {i}",
                "label": int(i % 2 == place),
            }
            for language, words in WORDS.items()
            for place, concept in enumerate(("water", "fire"))
            for i in range(40)
        ],
    )


@pytest.fixture
def tied(tiny_xglm: PreTrainedModel, byte_tokenizer: PreTrainedTokenizerFast) -> Snapshot:
    """A model to which every token and its clone are the same."""
    size = len(byte_tokenizer)
    model = deepcopy(tiny_xglm)
    model.resize_token_embeddings(2 * size, mean_resizing=False)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[size:] = rows[:size]
    return Snapshot(SnapshotId("tied", 1), model.eval(), byte_tokenizer, clones={"en2": Clone("en", size)})


def by_language(rows: list[Row], metric: str) -> dict[tuple[object, ...], float]:
    return {(row.language, row.other_language, row.concept): row.value for row in rows if row.metric == metric}


def test_ids_of_a_clone_are_shifted_and_special_tokens_are_not(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    assert shifted([2, 7, 3, 9], 100, {2, 3}) == [2, 107, 3, 109]
    plain, cloned = encode_texts(byte_tokenizer, ["ein Satz", ClonedText("ein Satz", 500)]).ids
    assert cloned == [plain[0], *(token + 500 for token in plain[1:])]


def test_a_cloned_text_is_never_taken_for_the_plain_one() -> None:
    text = ClonedText("water", 500)
    assert text != "water"
    assert "water" != text  # noqa: SIM300
    assert {text: 1}.get("water") is None
    assert text == ClonedText("water", 500) != ClonedText("water", 501)
    assert pickle.loads(pickle.dumps(text)) == text
    assert deepcopy(text).shift == 500


def test_texts_and_concepts_of_a_clone_are_those_of_its_original(text_file: str, concept_file: str) -> None:
    clones = {"en2": Clone("en", 500)}
    texts = read_texts(text_file, clones=clones)
    assert sorted(texts) == ["de", "en", "en2"]
    assert [(text.key, str(text.text)) for text in texts["en2"]] == [(text.key, text.text) for text in texts["en"]]
    assert all(isinstance(text.text, ClonedText) for text in texts["en2"])
    assert list(read_texts(text_file, languages=["en2", "de"], clones=clones)) == ["en2", "de"]
    assert list(read_texts(text_file, languages=["en"], clones=clones)) == ["en"]
    with pytest.raises(ValueError, match="no language 'en2'; it has de, en"):
        read_texts(text_file, languages=["en2", "de"])
    pools = load_concepts(concept_file, clones=clones).pools
    assert pools["en2"].keys == pools["en"].keys
    assert list(map(str, pools["en2"].texts)) == list(pools["en"].texts)
    assert all(isinstance(text, ClonedText) for text in pools["en2"].texts)
    assert pools["en2"].positives["water"].tolist() == pools["en"].positives["water"].tolist()


def test_a_model_with_tied_weights_gives_equal_rows_for_both(tied: Snapshot, text_file: str, concept_file: str) -> None:
    losses = by_language(list(HeldOutLoss(texts=Path(text_file), samples=0).measure(tied)), "bits_per_byte")
    assert losses["en2", None, None] == pytest.approx(losses["en", None, None], rel=1e-6)
    assert losses["de", None, None] != pytest.approx(losses["en", None, None], rel=1e-3)
    analysis = ConceptOverlap(concepts=concept_file, k=10, bootstrap=50, surface=True)
    rows = [row for row in analysis.measure(tied) if isinstance(row, Row)]
    shared = by_language(rows, "shared")
    assert shared["en", "en2", None] == 1.0
    assert shared["de", "en2", None] == pytest.approx(shared["de", "en", None])
    surface = by_language(rows, "shared_surface")
    assert surface["en", "en2", None] == 0.0  # not one token in common
    quality = by_language(rows, "ap_experts")
    cloned = {key: value for key, value in quality.items() if key[0] == "en2"}
    assert cloned
    assert all(value == pytest.approx(quality["en", *key[1:]]) for key, value in cloned.items())
    options = {"tokens_per_language": 60, "test_tokens_per_language": 30, "seeds": [0]}
    probe = LanguageProbe(texts=text_file, splits=["train", "valid"], languages=["en", "en2"], **options)
    accuracy = [row.value for row in probe.measure(tied) if row.metric == "accuracy" and row.language is None]
    assert accuracy
    assert max(accuracy) < 0.8  # nothing tells them apart


def test_a_folder_says_which_languages_are_cloned(tmp_path: Path) -> None:
    assert read_clones(tmp_path, 600) == {}
    (tmp_path / CLONES_FILE).write_text('{"en2": {"of": "en", "shift": 300}}')
    assert read_clones(tmp_path, 600) == {"en2": Clone("en", 300)}
    with pytest.raises(ValueError, match="en2 is shifted by 300, but the model knows 300 tokens"):
        read_clones(tmp_path, 300)
    for content in ("[]", '{"en2": "en"}', "{", '{"en2": {"of": "en"}}'):
        (tmp_path / CLONES_FILE).write_text(content)
        with pytest.raises(ValueError, match="not a file of cloned languages") as caught:
            read_clones(tmp_path, 600)
        assert "\n" not in str(caught.value)


def test_use_does_not_change_a_tokenizers_hash_but_rules_do(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = deepcopy(byte_tokenizer)
    before = hash_tokenizer(tokenizer)
    tokenizer(["a", "long text"], truncation=True, max_length=3, padding=True)
    assert hash_tokenizer(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert hash_tokenizer(tokenizer) != before
