"""A word is a word in every script: marks belong to it."""

from __future__ import annotations

import re

import pytest

from analysis.concepts.lexicon import entries_of, lexicon_pattern
from analysis.concepts.rules import ConceptRule
from analysis.concepts.words import WORD, clusters


@pytest.mark.parametrize(
    ("language", "sentence", "words"),
    [
        ("hi", "नदी में पानी बहता है", ["नदी", "में", "पानी", "बहता", "है"]),
        ("ta", "ஆற்றில் தண்ணீர் ஓடுகிறது", ["ஆற்றில்", "தண்ணீர்", "ஓடுகிறது"]),
        ("bn", "নদীতে পানি বইছে", ["নদীতে", "পানি", "বইছে"]),
        ("te", "నదిలో నీరు ఉంది", ["నదిలో", "నీరు", "ఉంది"]),
        ("ar", "شَرِبَ الْوَلَدُ مَاءً", ["شَرِبَ", "الْوَلَدُ", "مَاءً"]),
        ("vi", "nu\u031bo\u031b\u0301c so\u0302ng", ["nu\u031bo\u031b\u0301c", "so\u0302ng"]),
        ("fa", "می\u200cخورم", ["می\u200cخورم"]),
        ("en", "don't stop_here 42", ["don", "t", "stop", "here"]),
    ],
)
def test_marks_belong_to_words(language: str, sentence: str, words: list[str]) -> None:
    assert WORD.findall(sentence) == words
    entries = entries_of(sentence, language)
    assert [entry for entry in entries if "*" not in entry and " " not in entry] == words
    for word in words:
        assert lexicon_pattern([word]).findall(sentence) == [word]


def test_a_beginning_never_parts_a_letter_from_its_marks() -> None:
    assert clusters("पानी") == ["पा", "नी"]
    beginnings = [entry[:-1] for entry in entries_of("किताबों", "hi") if entry.endswith("*")]
    assert beginnings == ["किताबों"]
    assert not lexicon_pattern(["पान"]).search("पानी")


def test_thai_is_searched_without_spaces() -> None:
    sentence = "เด็กดื่มน้ำในแม่น้ำ"
    assert "*น้ำ*" in entries_of(sentence, "th")
    assert entries_of(sentence, "tha_Thai") == entries_of(sentence, "th")
    assert len(lexicon_pattern(["*น้ำ*"]).findall(sentence)) == 2


@pytest.mark.parametrize(
    ("form", "inside", "alone"),
    [("पान", "पानी पीओ", "पान खाओ"), ("ماء", "مَاءً", "في ماء البحر"), ("நீர", "நீர் ஓடும்", "நீர ஓடும்")],
)
def test_a_form_counts_as_a_whole_word_only(form: str, inside: str, alone: str) -> None:
    rule = ConceptRule("water", "word", (form,), None, "any")
    assert rule.judge(inside) is False
    assert rule.judge(alone) is True
    assert re.search(form, alone)
