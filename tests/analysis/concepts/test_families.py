"""Scripts are read from texts, families from the table; both decide the stratum of a pair."""

from __future__ import annotations

import pytest

from analysis.concepts.families import FAMILIES, STRATA, main_scripts, stratum_of

LATIN, CYRILLIC, HAN = frozenset({"LATIN"}), frozenset({"CYRILLIC"}), frozenset({"CJK"})


def test_scripts_of_languages() -> None:
    assert main_scripts(["Übung macht den Meister 12!"]) == {"LATIN"}
    assert main_scripts(["Быстрая лиса iPhone"] * 3) == {"CYRILLIC", "LATIN"}
    assert main_scripts(["Быстрая коричневая лиса прыгает через ленивую собаку OK"]) == {"CYRILLIC"}
    assert main_scripts(["水は冷たいです"]) == {"CJK", "HIRAGANA"}
    assert main_scripts(["喔，上有烈日下有水流"]) == {"CJK"}
    assert main_scripts(["12 + 3"]) == frozenset()


@pytest.mark.parametrize(
    ("languages", "scripts", "stratum"),
    [
        (("de", "pt"), (LATIN, LATIN), "same_family"),
        (("de", "hu"), (LATIN, LATIN), "same_script"),
        (("deu_Latn", "por_Latn"), (LATIN, LATIN), "same_family"),
        (("ja", "zh"), (HAN | {"HIRAGANA"}, HAN), "same_script"),
        (("pl", "ru"), (LATIN, CYRILLIC), "disjoint_scripts"),
        (("qq", "rr"), (LATIN, LATIN), "same_script"),
    ],
)
def test_stratum_of_a_pair(languages: tuple[str, str], scripts: tuple[frozenset[str], ...], stratum: str) -> None:
    assert stratum in STRATA
    assert stratum_of(languages, (scripts[0], scripts[1])) == stratum


def test_clones_are_kinds_of_pairs_of_their_own() -> None:
    clones = {"en2": "en", "ru2": "ru"}
    for languages, stratum in (
        (("en", "en2"), "clone"),
        (("en2", "ru2"), "with_clone"),
        (("de", "en2"), "with_clone"),
        (("de", "en"), "same_family"),
    ):
        assert stratum_of(languages, (LATIN, LATIN), clones) == stratum


def test_the_languages_of_the_suites_have_a_family() -> None:
    study = "en zh es fr pt id ar vi ca hi bn ta ur sw te eu de ru it ja ko pl hu nl el tr th et fi bg ht qu my cs"
    assert set(study.split()) <= set(FAMILIES)
    assert all(len(code) == 2 for code in FAMILIES)
    assert FAMILIES["eu"] == ("Basque", "Basque")
