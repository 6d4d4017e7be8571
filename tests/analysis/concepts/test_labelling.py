"""Labelling: planted sentences with known labels, translations and strata, and the embedded sample."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import mannwhitneyu

from analysis.concepts.dataset import load_concepts
from analysis.concepts.file import Labelling, format_summary, write_labelling
from analysis.concepts.halves import half_of
from analysis.concepts.labelling import label_concepts
from analysis.concepts.lexicon import EntryIndex, entries_of, find_lexicon, fold, lexicon_pattern, read_lexicon
from analysis.concepts.matching import LENGTH_CLASSES, LabellingSettings
from analysis.concepts.rules import ConceptRule, read_concept_rules

DATA = Path(__file__).parents[3] / "data"

CONCEPTS = (
    "# name\tkind\tforms\texcluded\tdomain\n"
    "water\tword\twater waters\twater (mill|color)\tstory\n"
    "window\tword\twindow windows\t\\bWindows\\b\tdocs\n"
    "fire\tword\tfire fires\trate of fire\tany\n"
)


def rule(text: str, tmp_path: Path) -> ConceptRule:
    path = tmp_path / "one.tsv"
    path.write_text(text + "\n", encoding="utf-8")
    return next(iter(read_concept_rules(path).values()))


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Bring some water to the camp", True),
        ("WATER, at last!", True),
        ("The waters rise", True),
        ("The king's water", True),
        ("The old water mill stands", None),
        ("The water mill stands by the water", True),
        ("A water-proof coat", None),
        ("An underwater cave", False),
        ("Watery soup again", False),
        ("open water.txt now", None),
    ],
)
def test_only_whole_tokens_outside_excluded_phrases_count(sentence: str, expected: bool | None, tmp_path: Path) -> None:
    assert rule("water\tword\twater waters\twater (mill|color)\tstory", tmp_path).judge(sentence) is expected


def test_an_excluded_phrase_with_a_capital_is_matched_as_written(tmp_path: Path) -> None:
    window = rule("window\tword\twindow windows\t\\bWindows\\b\tdocs", tmp_path)
    assert window.judge("Install Windows on it") is None
    assert window.judge("Close all windows first") is True


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("water\tword", "2 tab-separated fields"),
        ("water\tword\twater\t\tstory\tmore", "6 tab-separated fields"),
        ("water\tnoun\twater\t\tstory", "kind 'noun' is unknown"),
        ("water\tword\twater\t\tfiction", "domain 'fiction' is unknown"),
        ("water\tword\t\t\tstory", "forms must not be empty"),
        ("percent\tword\tpercent %", "form '%' has no letter or digit"),
        ("water\tword\twater\t(mill\tstory", "no regular expression"),
        ("fire\tword\tfire\t\tstory", "listed twice"),
    ],
)
def test_a_malformed_concept_line_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text(f"# head\nfire\tword\tfire\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"list\.tsv:3: .*{complaint}".replace("(mill", ".mill")):
        read_concept_rules(path)


def test_a_list_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such concept list"):
        read_concept_rules(tmp_path / "none.tsv")
    (tmp_path / "empty.tsv").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no concepts"):
        read_concept_rules(tmp_path / "empty.tsv")


def planted_rows(segments: int = 1200) -> list[dict[str, Any]]:
    """English, German and, but for every fourth segment, Japanese.

    Two segments in five speak of water or of a window; in German every fifth of the water segments loses the word.
    """
    draw = random.Random(7)
    fillers = {
        "en": "the old man walks over green hills with many good friends and sings about long summer days",
        "de": "der alte mann geht über grüne hügel mit vielen guten freunden und singt von langen tagen",
        "ja": "古い男 緑の丘 歩く 友達 歌う 長い夏 日々 道 森 山",
    }
    planted = {"water": ("water", "wasserfall", "水"), "window": ("window", "fenster", "窓")}
    rows = []
    for number in range(segments):
        concept = ("water", "window", None, None, None)[number % 5]
        length = (5, 6, 10, 12, 18, 30, 50)[(number // 5) % 7]
        words = {lang: [draw.choice(filler.split()) for _ in range(length)] for lang, filler in fillers.items()}
        if concept is not None:
            for lang, form in zip(("en", "de", "ja"), planted[concept], strict=True):
                lost = lang == "de" and concept == "water" and number % 25 == 0
                if not lost:
                    words[lang][length // 2] = form
        split = ("train", "train", "train", "valid", "test")[(number // 5) % 5]
        source = ("cdda", "lohelp")[(number // 25) % 2]
        for lang in fillers:
            if lang == "ja" and number % 4 == 0:
                continue
            text = ("" if lang == "ja" else " ").join(words[lang])
            rows.append(
                {"lang": lang, "source": source, "doc": "d", "sent_id": f"s{number:04d}", "split": split, "text": text}
            )
    return rows


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the planted text (long.parquet), more of it (large.parquet) and the concept list (list.tsv)."""
    folder = tmp_path_factory.mktemp("planted")
    pq.write_table(pa.Table.from_pylist(planted_rows(4800)), folder / "large.parquet")
    pq.write_table(pa.Table.from_pylist(planted_rows()), folder / "long.parquet")
    (folder / "list.tsv").write_text(CONCEPTS, encoding="utf-8")
    return folder


def label(folder: Path, text: str = "long.parquet", **settings: Any) -> Labelling:
    chosen = {"min_positives": 10, "concepts": ("water",), "negatives": 2} | settings
    return label_concepts(folder / text, folder / "list.tsv", LabellingSettings(**chosen))


def test_positives_are_the_planted_segments_of_the_domain_in_every_language(planted: Path) -> None:
    rows = label(planted, cap=1000).table.to_pylist()
    english = {row["uid"] for row in rows if row["language"] == "en" and row["label"] == 1}
    expected = {f"d/s{n:04d}" for n in range(0, 1200, 5) if (n // 25) % 2 == 0}  # water, in a story
    assert english == expected
    german = {row["uid"] for row in rows if row["language"] == "de" and row["label"] == 1}
    japanese = {row["uid"] for row in rows if row["language"] == "ja" and row["label"] == 1}
    assert german == expected
    assert japanese == {uid for uid in expected if int(uid[3:]) % 4}


def test_a_text_under_several_keys_is_taken_once_with_its_translations(planted: Path, tmp_path: Path) -> None:
    """In two halves of the sentences, copies would pass for a concept: R of 0.11 where there is none."""
    rows = planted_rows()
    copies = [{**row, "doc": "copy", "text": row["text"].capitalize()} for row in rows if row["lang"] == "en"]
    pq.write_table(pa.Table.from_pylist([*copies, *rows]), tmp_path / "long.parquet")
    (tmp_path / "list.tsv").write_text(CONCEPTS, encoding="utf-8")
    assert label(tmp_path).table == label(planted).table


def test_the_domain_decides_which_sources_count(planted: Path) -> None:
    rows = label(planted, concepts=("window",)).table.to_pylist()
    numbers = {int(row["uid"][3:]) for row in rows}
    assert {(n // 25) % 2 for n in numbers} == {1}


def test_text_without_sources_serves_every_domain(planted: Path, tmp_path: Path) -> None:
    table = pq.read_table(planted / "long.parquet").drop_columns(["source"])
    pq.write_table(table, tmp_path / "text.parquet")
    (tmp_path / "list.tsv").write_text(CONCEPTS, encoding="utf-8")
    labelling = label(tmp_path, "text.parquet", concepts=("water", "window"), cap=1000)
    assert {cell.available for cell in labelling.cells if cell.language == "en"} == {240}


def test_negatives_match_their_positive_in_everything_but_the_concept(planted: Path) -> None:
    rows = label(planted, "large.parquet").table.to_pylist()
    segments: dict[str, dict[str, Any]] = {}
    languages = defaultdict(set)
    for row in planted_rows(4800):
        uid = f"d/{row['sent_id']}"
        languages[uid].add(row["lang"])
        if row["lang"] == "en":
            words = len(row["text"].split())
            stratum = (row["source"], row["split"], sum(words > bound for bound in LENGTH_CLASSES), half_of(uid))
            segments[uid] = {"stratum": stratum, "text": row["text"]}
    negatives = [row for row in rows if row["label"] == 0]
    assert negatives
    for row in negatives:
        assert segments[row["uid"]]["stratum"] == segments[row["match"]]["stratum"]
        assert languages[row["match"]] <= languages[row["uid"]]
        assert "water" not in segments[row["uid"]]["text"]
    for language in ("en", "de", "ja"):
        here = [row for row in negatives if row["language"] == language]
        assert len({row["uid"] for row in here}) == len(here), "a negative serves one positive"
        assert set(Counter(row["match"] for row in here).values()) == {2}
        positives = {row["uid"] for row in rows if row["language"] == language and row["label"] == 1}
        assert {row["match"] for row in here} == positives


def test_negatives_are_as_long_as_their_positives_within_a_class_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = []
    for number in range(1200):
        positive = number % 20 == 0
        size = int(draw.integers(19, 23) if positive else draw.integers(15, 23))  # one class, of 15 to 22 words
        words = [str(draw.choice(["ab", "abcd", "abcdefgh"])) for _ in range(size)]
        rows.append((f"k{number}", " ".join(["water", *words[1:]] if positive else words)))
    frame = pd.DataFrame(rows, columns=["uid", "text"])
    frame = pd.concat(
        [frame.assign(lang="en"), frame.assign(lang="es", text=frame["text"].str.replace("water", "agua"))]
    )
    frame.to_parquet(tmp_path / "text.parquet")
    (tmp_path / "list.tsv").write_text("water\tword\twater\n", encoding="utf-8")
    labelling = label_concepts(tmp_path / "text.parquet", tmp_path / "list.tsv", LabellingSettings(negatives=4))
    write_labelling(labelling, tmp_path / "concepts.parquet", {})
    made = pd.read_parquet(tmp_path / "concepts.parquet")
    lengths = {
        label: own["text"].str.len().to_numpy() for label, own in made[made["language"] == "en"].groupby("label")
    }
    everywhere = frame.loc[~frame["text"].str.contains("water|agua") & (frame["lang"] == "en"), "text"].str.len()
    longer = [
        mannwhitneyu(lengths[1], other).statistic / len(lengths[1]) / len(other) for other in (lengths[0], everywhere)
    ]
    assert longer[1] > 0.65, "what is planted: sentences of the concept are longer"
    assert abs(longer[0] - 0.5) < 0.05


def test_a_segment_has_the_same_label_in_all_languages(planted: Path) -> None:
    labels = defaultdict(set)
    for row in label(planted).table.to_pylist():
        labels[row["uid"]].add(row["label"])
    assert all(len(found) == 1 for found in labels.values())


def test_the_lexicon_is_the_planted_translation_and_lost_words_are_weak(planted: Path) -> None:
    labelling = label(planted, cap=1000)
    lexicon = labelling.lexicon["water"]
    assert lexicon["en"] == ["water", "waters"]
    assert lexicon["ja"] == ["*水*"]
    assert lexicon_pattern(lexicon["de"]).search("ein wasserfall")
    rows = [row for row in labelling.table.to_pylist() if row["language"] == "de" and row["label"] == 1]
    assert {row["uid"] for row in rows if row["weak"]} == {row["uid"] for row in rows if int(row["uid"][3:]) % 25 == 0}
    cells = {cell.language: cell for cell in labelling.cells}
    assert cells["de"].support == pytest.approx(0.8)
    assert cells["ja"].support == 1.0
    assert cells["de"].false_hits == 0.0
    assert cells["en"].support is None
    for language in ("de", "ja"):
        floor = cells[language].support_floor
        assert floor is not None
        assert floor < 0.3


def test_strict_leaves_out_weak_positives_with_their_negatives(planted: Path) -> None:
    table = label(planted, "large.parquet", strict=True).table.to_pylist()
    german = [row for row in table if row["language"] == "de"]
    assert not any(row["weak"] for row in german)
    kept = {row["uid"] for row in german if row["label"] == 1}
    assert kept
    assert all(int(uid[3:]) % 25 for uid in kept)
    assert {row["match"] for row in german if row["label"] == 0} == kept
    english = {row["uid"] for row in table if row["language"] == "en" and row["label"] == 1}
    assert any(int(uid[3:]) % 25 == 0 for uid in english), "weak in German only"


def test_support_below_the_threshold_drops_a_concept(planted: Path) -> None:
    labelling = label(planted, concepts=(), min_support=0.95)
    assert set(labelling.lexicon) == {"window"}
    assert "support of 0.90" in labelling.dropped["water"]
    assert "0 positives in 'en'" in labelling.dropped["fire"]


def test_a_sentence_has_one_half_for_all_concepts_and_both_halves_have_as_many_positives(
    planted: Path, tmp_path: Path
) -> None:
    anywhere = CONCEPTS.replace("story", "any").replace("docs", "any")
    (tmp_path / "list.tsv").write_text(anywhere, encoding="utf-8")
    settings = LabellingSettings(concepts=("water", "window"), cap=81)
    rows = label_concepts(planted / "large.parquet", tmp_path / "list.tsv", settings).table.to_pylist()
    halves = defaultdict(set)
    for row in rows:
        halves[row["uid"]].add(row["half"])
    assert {len(found) for found in halves.values()} == {1}
    assert len(halves) < len({(row["uid"], row["concept"]) for row in rows}), "sentences serve several concepts"
    for concept, language in product(("water", "window"), ("en", "de", "ja")):
        here = [row for row in rows if (row["concept"], row["language"]) == (concept, language)]
        assert Counter(row["half"] for row in here if row["label"] == 1) == {0: 41, 1: 40}


def test_groups_are_by_the_forms_of_the_list(planted: Path, tmp_path: Path) -> None:
    glass = CONCEPTS + "glass\tfield\twindow pane\t\tdocs\n"
    (tmp_path / "list.tsv").write_text(glass, encoding="utf-8")
    settings = LabellingSettings(min_positives=10, concepts=("water", "window", "glass"), negatives=2)
    labelling = label_concepts(planted / "long.parquet", tmp_path / "list.tsv", settings)
    groups = {row["concept"]: row["group"] for row in labelling.table.to_pylist()}
    assert groups == {"water": "water", "window": "window", "glass": "window"}
    write_labelling(labelling, tmp_path / "concepts.parquet", {})
    assert load_concepts(tmp_path / "concepts.parquet", min_positives=5).groups == (0, 1, 1)


def test_the_cap_holds_and_complete_segments_come_first(planted: Path) -> None:
    rows = [row for row in label(planted, cap=40).table.to_pylist() if row["label"] == 1]
    uids = {language: {row["uid"] for row in rows if row["language"] == language} for language in ("en", "de", "ja")}
    assert {language: len(found) for language, found in uids.items()} == {"en": 40, "de": 40, "ja": 40}
    assert uids["en"] == uids["de"] == uids["ja"]


def test_complete_uses_only_segments_of_all_languages(planted: Path) -> None:
    rows = label(planted, complete=True, cap=1000).table.to_pylist()
    by_language = {lang: {(r["uid"], r["label"]) for r in rows if r["language"] == lang} for lang in ("en", "de", "ja")}
    assert by_language["en"] == by_language["de"] == by_language["ja"]


def test_splits_are_honoured(planted: Path) -> None:
    assert set(label(planted, splits=("train",)).table["split"].to_pylist()) == {"train"}
    with pytest.raises(ValueError, match="no split 'dev'; it has test, train, valid"):
        label(planted, splits=("dev",))


def test_word_limits_are_those_of_the_pivot(planted: Path) -> None:
    rows = label(planted, min_words=10, max_words=20).table.to_pylist()
    assert {len(row["text"].split()) for row in rows if row["language"] == "en"} == {10, 12, 18}


def test_long_wide_and_jsonl_text_give_the_same_labels_in_any_row_order(planted: Path, tmp_path: Path) -> None:
    rows = planted_rows()
    wide: dict[str, dict[str, Any]] = {}
    for row in rows:
        uid = f"d/{row['sent_id']}"
        entry = wide.setdefault(uid, {"uid": uid, "source": row["source"], "doc": "d", "split": row["split"]})
        entry[row["lang"]] = row["text"]
    table = [{"ja": None, "n_langs": 3} | entry for entry in wide.values()]
    random.Random(0).shuffle(table)
    random.Random(1).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "wide.parquet")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "long.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "list.tsv").write_text(CONCEPTS, encoding="utf-8")
    expected = label(planted)
    for name in ("wide.parquet", "long.jsonl"):
        found = label(tmp_path, name)
        assert found.table.equals(expected.table)
        assert found.cells == expected.cells


def test_the_richest_concepts_are_kept_and_order_is_that_of_the_list(planted: Path) -> None:
    labelling = label(planted, concepts=(), cap=1000, max_concepts=1)
    assert len(labelling.lexicon) == 1
    assert [reason for reason in labelling.dropped.values() if "max_concepts" in reason]
    assert list(label(planted, concepts=("window", "water")).lexicon) == ["water", "window"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"languages": ("fr",)}, "no language 'fr'; it has de, en, ja"),
        ({"concepts": ("wind",)}, "unknown concept 'wind'; the list has: fire, water, window"),
        ({"concepts": ("fire",)}, r"concept 'fire' has 0 positives in 'en' \(min_positives 10\)"),
        ({"kinds": ("noun",)}, "unknown kind of concept 'noun'"),
        ({"concepts": (), "kinds": ("field",)}, "no concept is left"),
        ({"min_words": 200, "max_words": 300}, "no segment has 200 to 300 words in 'en'"),
    ],
)
def test_what_cannot_be_labelled_is_named(settings: dict[str, Any], complaint: str, planted: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        label(planted, **settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"cap": 0}, "cap must be at least 1"),
        ({"min_positives": 300}, "cannot be reached under cap 200"),
        ({"max_words": 2}, "max_words 2 is below min_words 4"),
        ({"min_support": 1.5}, "between 0 and 1"),
        ({"max_concepts": 0}, "max_concepts must be at least 1"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LabellingSettings(**settings)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda row: row.pop("sent_id") and row.pop("doc"), r"long\.jsonl, line 2: expected the columns"),
        (lambda row: row.update(text=7), r"long\.jsonl, line 2: the text in language 'de' must be a non-empty string"),
        (lambda row: row.update(lang="en"), r"long\.jsonl, line 2: segment 'd/s0001' occurs twice in 'en'"),
        (lambda row: row.update(split="test"), r"line 2: segment 'd/s0001' is in split 'train' in one language"),
    ],
)
def test_a_bad_row_is_named(spoil: Callable[[dict[str, Any]], Any], complaint: str, tmp_path: Path) -> None:
    common = {"doc": "d", "sent_id": "s0001", "split": "train"}
    rows = [common | {"lang": "en", "text": "water for four men"}, common | {"lang": "de", "text": "wasser"}]
    spoil(rows[1])
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "list.tsv").write_text(CONCEPTS, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint):
        label(tmp_path, "long.jsonl")


def test_a_failed_write_leaves_the_earlier_file(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelling, out = label(planted), tmp_path / "c.parquet"
    write_labelling(labelling, out, {})
    before = out.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_labelling(labelling, out, {})
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lexicon_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such lexicon"):
        read_lexicon(tmp_path / "x.lexicon.json")
    for content in (
        '{"lexicon": [1]}',
        '{"lexicon": {"water": {"en": "water"}}}',
        '{"lexicon": {"water": {"en": [1]}}}',
    ):
        (tmp_path / "bad.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="not a lexicon file"):
            read_lexicon(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("entry", "hits", "misses"),
    [
        ("water", ["Water!", "the water"], ["waters", "underwater"]),
        ("wass*", ["Wasserfall", "wassrig"], ["abwasser"]),
        ("*wasser", ["Abwasser", "wasser"], ["wasserfall"]),
        ("*水*", ["飲料水です"], ["みず"]),
        ("*ماء*", ["والماء البارد"], ["مئ"]),
        ("con đường", ["trên Con đường này"], ["con đườngs", "đường con"]),
        ("ısı*", ["ısıtma"], ["isim"]),
    ],
)
def test_stars_tell_where_an_entry_may_stand(entry: str, hits: list[str], misses: list[str]) -> None:
    pattern = lexicon_pattern([entry])
    assert all(pattern.search(fold(text)) for text in hits)
    assert not any(pattern.search(fold(text)) for text in misses)


def test_folding_keeps_positions() -> None:
    text = "İSTANBUL'da Su İçtim"
    assert len(fold(text)) == len(text)
    found = lexicon_pattern(["su"]).search(fold(text))
    assert found is not None
    assert text[found.start() : found.end()] == "Su"


def test_an_empty_lexicon_is_refused() -> None:
    with pytest.raises(ValueError, match="empty lexicon"):
        lexicon_pattern([])
    with pytest.raises(ValueError, match="no letters"):
        lexicon_pattern(["**"])


def test_every_entry_of_a_sentence_matches_that_sentence() -> None:
    for row in pq.read_table(DATA / "embedded_udhr18.parquet").slice(0, 90).to_pylist():
        for entry in entries_of(row["text"], row["lang"]):
            assert lexicon_pattern([entry]).search(fold(row["text"])), (row["lang"], entry)


def test_a_lexicon_without_negatives_or_common_words_is_defined() -> None:
    texts = [f"{letter * 4} {letter * 5}" for letter in "abcdefghij"]
    index = EntryIndex(texts, "de")
    entries, covered, false_hits = find_lexicon(index, *_rows(range(10), []), size=3, min_share=0.03)
    assert entries == []
    assert not covered.any()
    assert false_hits == 0.0
    entries, covered, _ = find_lexicon(
        EntryIndex(["haus"] * 5 + ["hof"] * 9, "de"), *_rows(range(5), range(5, 14)), size=3, min_share=0.03
    )
    assert covered.all()
    assert len(entries) == 1


def _rows(*groups: Iterable[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(list(group), dtype=np.intp) for group in groups)


@pytest.fixture(scope="module")
def embedded() -> Labelling:
    settings = LabellingSettings(min_positives=30, min_support=0.0)
    return label_concepts(DATA / "embedded_cdda10.parquet", DATA / "concepts.tsv", settings)


@pytest.mark.parametrize(("minimum", "concepts"), [(30, 49), (50, 35), (100, 15)])
def test_the_embedded_sample_has_the_published_number_of_concepts(
    embedded: Labelling, minimum: int, concepts: int
) -> None:
    """The counts of an independent implementation of the rule."""
    poorest: dict[str, int] = {}
    for cell in embedded.cells:
        poorest[cell.concept] = min(cell.available, poorest.get(cell.concept, cell.available))
    assert sum(count >= minimum for count in poorest.values()) == concepts


def test_labels_of_the_embedded_sample_survive_translation(embedded: Labelling) -> None:
    support = [cell.support for cell in embedded.cells if cell.support is not None]
    floor = [cell.support_floor for cell in embedded.cells if cell.support_floor is not None]
    assert sum(support) / len(support) > 0.8
    assert sum(floor) / len(floor) < 0.25
    assert max(cell.false_hits or 0.0 for cell in embedded.cells) < 0.15
    assert lexicon_pattern(embedded.lexicon["water"]["de"]).search("trinkwasser")
    assert lexicon_pattern(embedded.lexicon["water"]["ru"]).search("воды")
    assert "water " in format_summary(embedded)


def test_every_positive_of_the_embedded_sample_brings_its_negatives(embedded: Labelling) -> None:
    for cell in embedded.cells:
        assert 4.9 * cell.positives <= cell.negatives <= 5 * cell.positives


def test_a_field_gives_way_to_its_words_where_concepts_must_be_independent(planted: Path, tmp_path: Path) -> None:
    liquids = "liquid\tfield\twater waters window\t\tany\n"
    (tmp_path / "list.tsv").write_text(
        liquids + CONCEPTS.replace("story", "any").replace("docs", "any"), encoding="utf-8"
    )

    def names(**options: Any) -> list[str]:
        settings = LabellingSettings(min_positives=10, negatives=1, min_support=0.0, **options)
        return list(label_concepts(planted / "long.parquet", tmp_path / "list.tsv", settings).lexicon)

    assert names() == ["liquid", "water", "window"]
    assert names(independent=True) == ["water", "window"]
    assert names(independent=True, kinds=("field",)) == ["liquid"]
    assert names(independent=True, max_concepts=1) in (["water"], ["window"])


def test_text_without_keys_is_labelled_in_its_own_language(planted: Path, tmp_path: Path) -> None:
    rows = [{"lang": row["lang"], "text": row["text"]} for row in planted_rows()]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = LabellingSettings(languages=("en",), min_positives=10, concepts=("water",))
    table = label_concepts(tmp_path / "plain.jsonl", planted / "list.tsv", settings).table
    assert set(table["language"].to_pylist()) == {"en"}
    assert all("water" in row["text"] for row in table.to_pylist() if row["label"] == 1)
    with pytest.raises(ValueError, match="no text in 'de' is a translation of one in 'en'"):
        label_concepts(tmp_path / "plain.jsonl", planted / "list.tsv", replace(settings, languages=("en", "de")))
