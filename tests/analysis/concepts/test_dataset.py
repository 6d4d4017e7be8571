"""Concept files are read whole or refused with the line; halves and limits are the same sentences in every language."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.dataset import load_concepts
from analysis.concepts.file import write_labelling
from analysis.concepts.labelling import label_concepts
from analysis.concepts.matching import LabellingSettings


def records(
    languages: tuple[str, ...] = ("de", "en"), concepts: tuple[str, ...] = ("fire", "water"), positives: int = 12
) -> list[dict]:
    """Each concept has `positives` sentences with two negatives each; sentence i of all languages has the same uid."""
    found = []
    for concept in concepts:
        for index in range(positives):
            for language in languages:
                base = {"concept": concept, "language": language, "split": "test" if index % 4 == 0 else "train"}
                uid = f"{concept}/{index}"
                found.append(
                    {**base, "uid": uid, "text": f"{language} {uid}", "label": 1, "weak": index == 0, "match": None}
                )
                for number in range(2):
                    other = f"{concept}/{index}/no{number}"
                    found.append(
                        {**base, "uid": other, "text": f"{language} {other}", "label": 0, "weak": None, "match": uid}
                    )
    return found


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def keys(concept_set: ConceptSet, language: str, concept: str, side: str) -> set[str]:
    pool = concept_set.pools[language]
    return {pool.keys[index] for index in getattr(pool, side)[concept].tolist()}


@pytest.mark.parametrize("name", ["concepts.parquet", "concepts.jsonl"])
def test_long_file_gives_one_pool_per_language(name: str, tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / name, records()))
    assert loaded.languages == ("de", "en")
    assert loaded.concepts == ("fire", "water")
    pool = loaded.pools["en"]
    assert len(pool.texts) == 2 * 12 * 3
    assert keys(loaded, "en", "fire", "positives") == {f"fire/{index}" for index in range(12)}
    assert len(pool.negatives["fire"]) == 24
    assert pool.texts[pool.keys.index("fire/3")] == "en fire/3"
    assert pool.prevalence("fire") == pytest.approx(1 / 3)
    assert [len(side) for side in pool.labels(["fire"])[1]] == [24]


def test_copies_of_sentences_under_other_keys_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_concepts(write(tmp_path / "concepts.parquet", records()))
    assert "under another key" not in caplog.text
    rows = records(positives=24)
    for row in rows:
        if row["language"] == "de":
            row["text"] = f"de {row['uid'].replace('1', '')}"
    load_concepts(write(tmp_path / "copies.parquet", rows))
    assert "sentences in de are copies of others under another key" in caplog.text


def test_all_other_sentences_may_be_negatives(tmp_path: Path) -> None:
    path = write(tmp_path / "concepts.parquet", records())
    loaded = load_concepts(path, negatives="all")
    assert keys(loaded, "de", "fire", "negatives") == set(loaded.pools["de"].keys) - {f"fire/{i}" for i in range(12)}
    limited = load_concepts(path, negatives="all", max_positives=10)
    left_out = {f"fire/{i}" for i in range(12)} - keys(limited, "de", "fire", "positives")
    assert len(left_out) == 2
    assert not left_out & keys(limited, "de", "fire", "negatives")


def test_limits_choose_the_same_sentences_in_every_language(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records()), max_positives=10, max_negatives=1)
    for side in ("positives", "negatives"):
        assert keys(loaded, "de", "water", side) == keys(loaded, "en", "water", side)
    chosen = keys(loaded, "en", "water", "positives")
    assert len(chosen) == 10
    assert {key.rpartition("/")[0] for key in keys(loaded, "en", "water", "negatives")} == chosen


def test_weak_positives_are_left_out_when_strict(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records()), strict=True)
    assert "fire/0" not in keys(loaded, "en", "fire", "positives")
    assert len(loaded.pools["en"].positives["fire"]) == 11


def test_halves_are_disjoint_complete_equal_and_common_to_languages(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records(positives=40)))
    halves = [loaded.half(0), loaded.half(1)]
    for side, size in (("positives", 20), ("negatives", 40)):
        parts = [keys(half, "en", "fire", side) for half in halves]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == keys(loaded, "en", "fire", side)
        assert parts[0] == keys(halves[0], "de", "fire", side)
        assert len(parts[0]) == len(parts[1]) == size
    assert halves[0].pools["en"].texts == loaded.pools["en"].texts


def test_a_negative_is_in_the_half_of_its_positive(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records(positives=40)))
    for which in (0, 1):
        half = loaded.half(which)
        chosen = keys(half, "en", "water", "positives")
        assert {key.rpartition("/")[0] for key in keys(half, "en", "water", "negatives")} == chosen


def test_halves_stay_equal_where_languages_have_other_sentences_and_no_matches(tmp_path: Path) -> None:
    rows = [row | {"uid": f"{row['language']}/{row['uid']}", "match": None} for row in records(positives=13)]
    loaded = load_concepts(write(tmp_path / "c.parquet", rows))
    for language in loaded.languages:
        sizes = [len(loaded.half(which).pools[language].positives["fire"]) for which in (0, 1)]
        assert sorted(sizes) == [6, 7]
        assert [len(loaded.half(which).pools[language].negatives["fire"]) for which in (0, 1)] == [13, 13]


def test_the_partition_never_changes(tmp_path: Path) -> None:
    """Numbers of earlier runs hang on it."""
    loaded = load_concepts(write(tmp_path / "c.parquet", records(positives=16)))
    assert "".join(str(loaded.halves["fire"][f"fire/{index}"]) for index in range(16)) == PARTITION


PARTITION = "1000010101110011"


def test_sentences_in_both_halves_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A negative of fire is one of water, too, whose positive is in the other half."""
    rows = records(positives=50)
    assert load_concepts(write(tmp_path / "apart.parquet", rows)).halves
    assert not caplog.records
    for row in rows:
        if row["concept"] == "water" and row["label"] == 0:
            row["uid"], row["text"] = row["uid"].replace("water", "fire"), row["text"].replace("water", "fire")
    mixed = load_concepts(write(tmp_path / "mixed.parquet", rows))
    assert mixed.halves["fire"] != mixed.halves["water"]
    [said] = [record.getMessage() for record in caplog.records]
    assert re.match(r"\d+ of 200 sentences are in one half for a concept and in the other for another", said)
    caplog.clear()
    half = [row | {"half": int(row["uid"].split("/")[1]) % 2} for row in rows]
    assert load_concepts(write(tmp_path / "half.parquet", half)).halves
    assert not caplog.records


def with_halves(rows: list[dict]) -> list[dict]:
    return [row | {"half": int(row["uid"].split("/")[1]) % 2, "group": row["concept"][:3]} for row in rows]


def test_halves_and_groups_of_the_file_are_those_of_all_concepts(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", with_halves(records(concepts=("fire", "fires", "water")))))
    for concept in loaded.concepts:
        assert keys(loaded.half(1), "en", concept, "positives") == {f"{concept}/{index}" for index in range(1, 12, 2)}
    forms = {"fires": {"de": ["ung"]}, "water": {"de": ["ung"]}}
    (tmp_path / "c.parquet.lexicon.json").write_text(json.dumps({"lexicon": forms}), encoding="utf-8")
    assert load_concepts(tmp_path / "c.parquet").groups == loaded.groups == (0, 0, 2), (
        "what a search found ties nothing"
    )
    few = load_concepts(tmp_path / "c.parquet", max_positives=2, min_positives=1)
    assert [len(few.half(which).pools["en"].positives["fire"]) for which in (0, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [
        ("half", 2, "half is 2, expected 0 or 1"),
        ("half", 1, "is in two halves of the sentences"),
        ("half", None, "is in two halves of the sentences"),
        ("group", "other", "concept 'fire' is in two groups"),
    ],
)
def test_halves_and_groups_that_contradict_each_other_are_refused(
    column: str, value: object, match: str, tmp_path: Path
) -> None:
    rows = with_halves(records())
    rows[3] = rows[3] | {column: value}
    with pytest.raises(ValueError, match=match):
        load_concepts(write(tmp_path / "c.jsonl", rows))
    some = [row | {"half": None} if row["concept"] == "water" else row for row in with_halves(records())]
    with pytest.raises(ValueError, match="some sentences have a half and others none"):
        load_concepts(write(tmp_path / "c.jsonl", some))


def test_a_concept_without_sentences_in_one_half_is_refused(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records(positives=1)), min_positives=1)
    with pytest.raises(ValueError, match="'fire' in 'de' has no positives or no negatives in one half"):
        loaded.half(1)


def test_a_field_and_its_words_are_one_group(tmp_path: Path) -> None:
    """By the word forms beside the file, or by the sentences that they share."""
    path = write(tmp_path / "c.parquet", records(concepts=("fire", "water", "metal", "metals", "river")))
    assert load_concepts(path).groups == (0, 1, 2, 3, 4)
    forms = {"fire": {"en": ["fire"]}, "metal": {"en": ["metal"]}, "metals": {"en": ["metal*", "iron"]}}
    (tmp_path / "c.parquet.lexicon.json").write_text(json.dumps({"lexicon": forms}), encoding="utf-8")
    assert load_concepts(path).groups == (0, 1, 2, 2, 4)
    assert load_concepts(path, concepts=["metals", "fire", "metal"]).clusters.tolist() == [0, 1, 0]
    rows = records(concepts=("fire", "water", "sea"))
    for row in rows:
        if row["concept"] == "sea" and row["label"] and int(row["uid"].rpartition("/")[2]) < 4:
            row["uid"], row["text"] = row["uid"].replace("sea", "water"), row["text"].replace("sea", "water")
    assert load_concepts(write(tmp_path / "shared.parquet", rows)).groups == (0, 1, 1)


def test_scarce_concepts_are_named_with_the_way_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row for row in records() if not (row["language"] == "de" and row["uid"] > "water/5")]
    path = write(tmp_path / "c.parquet", rows)
    with pytest.raises(
        ValueError, match=r"'water' has 8 positives and 14 negatives in 'de', min_positives is 10; leave"
    ):
        load_concepts(path)
    with caplog.at_level(logging.WARNING):
        assert load_concepts(path, drop_scarce=True).concepts == ("fire",)
    assert "left out: concept 'water'" in caplog.text
    assert "fewer than 50 positives" in caplog.text
    assert load_concepts(path, min_positives=8).concepts == ("fire", "water")
    with pytest.raises(ValueError, match="no concept has 13 positives"):
        load_concepts(path, min_positives=13, drop_scarce=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"languages": ["en", "fr"]}, "no language 'fr'; it has de, en"),
        ({"concepts": ["earth"]}, "no concept 'earth'; it has fire, water"),
        ({"splits": ["valid"]}, "no split 'valid'; it has test, train"),
        ({"negatives": "some"}, "choose one of matched, all"),
        ({"min_positives": 0}, "at least 1"),
        ({"concepts": ["fire", "water", "fire"]}, "'fire' is listed twice"),
    ],
)
def test_unknown_names_and_options_are_refused(options: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        load_concepts(write(tmp_path / "c.parquet", records()), **options)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"label": 2}, "line 2: label is 2"),
        ({"label": None}, "line 2: label is None"),
        ({"text": " "}, "line 2: text is ' '"),
        ({"concept": None}, "line 2: concept is None"),
        ({"language": 3}, "line 2: language is 3"),
        ({"uid": "fire/0", "label": 0, "language": "de"}, "line 2: 'fire/0' is labelled both 1 and 0"),
        ({"uid": "fire/0", "label": 1, "language": "de", "text": "x"}, "line 2: 'fire/0' stands for two different"),
    ],
)
def test_malformed_lines_are_named(change: dict, match: str, tmp_path: Path) -> None:
    rows = records()
    rows[1] = {**rows[1], **change}
    with pytest.raises(ValueError, match=match):
        load_concepts(write(tmp_path / "c.jsonl", rows))


def test_a_split_is_honoured(tmp_path: Path) -> None:
    loaded = load_concepts(write(tmp_path / "c.parquet", records(positives=40)), splits=["test"])
    assert keys(loaded, "en", "fire", "positives") == {f"fire/{index}" for index in range(0, 40, 4)}


def test_concept_without_negatives_is_refused(tmp_path: Path) -> None:
    rows = [row for row in records(concepts=("fire",)) if row["label"] == 1]
    with pytest.raises(ValueError, match="has 12 positives and 0 negatives"):
        load_concepts(write(tmp_path / "c.parquet", rows))
    with pytest.raises(ValueError, match="no negatives"):
        load_concepts(write(tmp_path / "c.parquet", rows), negatives="all")


def test_labelled_real_text_loads_with_its_matches(tmp_path: Path) -> None:
    """The embedded sample through the labelling command's own code."""
    data = Path(__file__).resolve().parents[3] / "data"
    settings = LabellingSettings(languages=("en", "de", "ja"), concepts=("water", "wood"), cap=40, negatives=3)
    labelling = label_concepts(data / "embedded_cdda10.parquet", data / "concepts.tsv", settings)
    path = tmp_path / "concepts.parquet"
    write_labelling(labelling, path, {})
    loaded = load_concepts(path, max_positives=20, max_negatives=2)
    assert loaded.languages == ("de", "en", "ja")
    for concept in ("water", "wood"):
        positives = keys(loaded, "en", concept, "positives")
        assert len(positives) == 20
        assert positives == keys(loaded, "ja", concept, "positives")
        assert len(keys(loaded, "ja", concept, "negatives")) == 40
    pool = loaded.pools["en"]
    assert all("water" in pool.texts[index].lower() for index in pool.positives["water"].tolist())
    halves = [len(loaded.half(which).pools["de"].positives["wood"]) for which in (0, 1)]
    assert halves == [10, 10]
