"""Judging text: languages of real sentences, undetermined ones, concept words, variety."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.steering.judging import (
    UNDETERMINED,
    ConceptLexicon,
    ScriptAndLangid,
    distinct_n,
    entropy_bits,
    repetition,
    script_counts,
)

DATA = Path(__file__).resolve().parents[3] / "data" / "embedded_cdda10.parquet"
LANGUAGES = ("de", "en", "es", "hu", "ja", "ko", "pl", "pt", "ru", "zh")


def test_real_sentences_are_recognised() -> None:
    table = pq.read_table(DATA, columns=["lang", "text", "split"]).to_pandas()
    texts = table[table["split"] == "test"].groupby("lang").head(40)
    found = ScriptAndLangid().detect(texts["text"].tolist(), LANGUAGES)
    right = [a == b for a, b in zip(found, texts["lang"], strict=True)]
    wrong = [a for a, b in zip(found, texts["lang"], strict=True) if a not in (b, UNDETERMINED)]
    assert sum(right) / len(right) > 0.95
    assert len(wrong) / len(right) < 0.02


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("水は生命の源です", "ja"),
        ("水是生命之源头啊", "zh"),
        ("вода — источник жизни", "ru"),
        ("물은 생명의 근원이다", "ko"),
        ("Das Wasser ist die Quelle des Lebens und aller Dinge", "de"),
        ("", UNDETERMINED),
        ("12 34 -- !!", UNDETERMINED),
        ("ab", UNDETERMINED),
        ("αβγδεζηθικλ", UNDETERMINED),  # Greek is not among the languages of the study
        ("вода water вода water oк ok вод wat", UNDETERMINED),  # no script leads
    ],
)
def test_script_settles_what_it_can(text: str, language: str) -> None:
    assert ScriptAndLangid().detect([text], LANGUAGES) == [language]


def test_below_the_threshold_is_undetermined() -> None:
    noise = "trs kfl mnp vrt ghj klm"
    assert ScriptAndLangid(threshold=0.9999).detect([noise], LANGUAGES) == [UNDETERMINED]
    assert ScriptAndLangid(threshold=0.0).detect([noise], LANGUAGES) != [UNDETERMINED]


def test_a_language_that_the_detector_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="does not know 'tlh'"):
        ScriptAndLangid().detect(["qapla"], ["en", "tlh"])


def test_scripts_are_counted_by_letters_only() -> None:
    assert script_counts("ab 12 яю カな漢 한") == {"LATIN": 2, "CYRILLIC": 2, "KANA": 2, "CJK": 1, "HANGUL": 1}


def test_concept_words_are_found_in_their_language() -> None:
    lexicon = ConceptLexicon({"water": {"en": ["water", "waters"], "de": ["wass*"], "zh": ["*水*"]}})
    assert lexicon.spans("The Water is deep, waterfall", "water", ["en"]) == [(4, 9)]
    assert lexicon.hits("Wasserfall", "water", ["de"])
    assert not lexicon.hits("Wasserfall", "water", ["en"])
    assert lexicon.hits("河水很深", "water", ["zh", "en"])
    assert lexicon.knows("water", "de")
    assert not lexicon.knows("water", "fr")
    by_hand = ConceptLexicon({"water": {"de": ["Wasser*"]}})
    assert by_hand.spans("Der Wasserfall", "water", ["de"]) == [(4, 14)], "a word list written by hand has capitals"


def test_variety_measures_by_hand() -> None:
    assert distinct_n([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_n([[1]], 2) == 0.0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4], n=4) == pytest.approx(1 - 4 / 5)
    assert repetition([1, 2], n=4) == 0.0
    assert entropy_bits(["de", "en", "de", "en"]) == pytest.approx(1.0)
    assert entropy_bits(["de"] * 5) == 0.0
    assert entropy_bits([]) == 0.0
