"""Kinship of languages: family and branch of every language of the suites and corpora, by ISO 639-1 code.

Families and branches are those of Glottolog at the level at which typologists compare (Indo-European, Uralic ...;
Romance, Slavic ...). Scripts are read from the texts themselves, `main_scripts`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from babelscope.languages import two_letters

MAIN_SCRIPT = 0.1
"""Share of a language's letters from which a script counts as one of its own."""

_BRANCHES = {
    "Indo-European": {
        "Germanic": "af da de en fo fy is lb nb nl nn no sv yi",
        "Romance": "ca es fr gl it oc pt ro",
        "Slavic": "be bg bs cs hr mk pl ru sk sl sr uk",
        "Baltic": "lt lv",
        "Celtic": "br cy ga gd",
        "Indo-Aryan": "as bn gu hi mr ne or pa sd si ur",
        "Iranian": "fa ku ps tg",
        "Greek": "el",
        "Albanian": "sq",
        "Armenian": "hy",
        "Italic": "la",
    },
    "Uralic": {"Finnic": "et fi", "Hungarian": "hu", "Saami": "se"},
    "Turkic": {"Turkic": "az ba kk ky tk tr tt ug uz"},
    "Afro-Asiatic": {"Semitic": "am ar he mt ti", "Cushitic": "om so", "Chadic": "ha"},
    "Dravidian": {"Dravidian": "kn ml ta te"},
    "Sino-Tibetan": {"Sinitic": "zh", "Tibeto-Burman": "bo my"},
    "Japonic": {"Japonic": "ja"},
    "Koreanic": {"Koreanic": "ko"},
    "Austroasiatic": {"Vietic": "vi", "Khmer": "km"},
    "Austronesian": {"Malayo-Polynesian": "id jv mg mi ms su tl"},
    "Atlantic-Congo": {"Bantu": "ln lg ny rn rw sn st sw tn ts xh zu", "Volta-Niger": "ig yo ak", "Atlantic": "ff wo"},
    "Mande": {"Mande": "bm"},
    "Kartvelian": {"Kartvelian": "ka"},
    "Mongolic": {"Mongolic": "mn"},
    "Tai-Kadai": {"Tai": "lo th"},
    "Quechuan": {"Quechuan": "qu"},
    "Tupian": {"Tupi-Guarani": "gn"},
    "French Creole": {"French Creole": "ht"},
    "Basque": {"Basque": "eu"},
    "Constructed": {"Esperanto": "eo"},
}

FAMILIES: dict[str, tuple[str, str]] = {
    code: (family, branch)
    for family, branches in _BRANCHES.items()
    for branch, codes in branches.items()
    for code in codes.split()
}
"""ISO 639-1 code to family and branch."""

STRATA = ("same_family", "same_script", "disjoint_scripts", "clone", "with_clone")
"""Kinds of language pairs: common script and family, common script only, no common script; a language and its own clone
(the same text in other tokens), and a clone with any other language."""


def stratum_of(
    languages: tuple[str, str],
    scripts: tuple[frozenset[str], frozenset[str]],
    clones: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Stratum of a pair, see `STRATA`. A language that is not in the table is of no family but its own.

    Args:
        clones: cloned language to the one that it is a clone of.
    """
    one, other = languages
    if one in clones or other in clones:
        return "clone" if clones.get(one) == other or clones.get(other) == one else "with_clone"
    if not scripts[0] & scripts[1]:
        return "disjoint_scripts"
    families = [FAMILIES.get(two_letters(code), (code, code))[0] for code in languages]
    return "same_family" if families[0] == families[1] else "same_script"


def main_scripts(texts: Iterable[str]) -> frozenset[str]:
    """The scripts in which at least a tenth of the letters are written, by the first word of their Unicode names."""
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "UNKNOWN").split()[0]] += count
    total = sum(scripts.values())
    return frozenset(script for script, count in scripts.items() if count >= MAIN_SCRIPT * total)
