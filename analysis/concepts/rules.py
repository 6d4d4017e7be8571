"""The concept list: which word forms make a sentence a positive of a concept, and where they mean something else.

A concept is a set of surface forms of the pivot language (English in the list that ships), matched as whole tokens
outside excluded phrases, after the sentence sets of Suau et al. 2022 (Self-conditioning pre-trained language models),
which take OneSec senses of one language; word forms plus translation keep the labels identical across languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from analysis.concepts.words import WORD_CHARACTERS

KINDS = ("word", "field")
"""`word`: one concept; `field`: many words of one semantic field."""

DOMAINS: Mapping[str, frozenset[str]] = {
    "story": frozenset({"wesnoth", "cdda", "freeciv"}),
    "docs": frozenset({"lohelp", "gnome", "handbook", "guide"}),
}
"""Domain -> text sources in which a word has the meaning that the list intends; `any` is every source."""


@dataclass(frozen=True)
class ConceptRule:
    """One line of the concept list."""

    name: str
    kind: str
    forms: tuple[str, ...]
    excluded: re.Pattern[str] | None
    """Phrases in which a form does not count ("rate of fire")."""
    domain: str

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        # "fire-proof", "fire.txt" and "+fire" are other words or file names
        return re.compile(
            rf"(?<![{WORD_CHARACTERS}.+-])(?:{self._alternatives})(?![{WORD_CHARACTERS}-]|\.\w)", re.IGNORECASE
        )

    @cached_property
    def _anywhere(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![{WORD_CHARACTERS}])(?:{self._alternatives})(?![{WORD_CHARACTERS}])", re.IGNORECASE)

    @property
    def _alternatives(self) -> str:
        return "|".join(re.escape(form) for form in sorted(self.forms, key=len, reverse=True))

    def judge(self, text: str) -> bool | None:
        """True: has a form that counts. False: has no form at all. None: neither (a form only inside an excluded
        phrase or a compound).
        """
        if not self._anywhere.search(text):
            return False
        if self.excluded is not None:
            text = self.excluded.sub(" ", text)
        return True if self._whole.search(text) else None

    def applies_to(self, source: str) -> bool:
        """Whether the word means the concept in this source; text of no named source is taken as it is."""
        return self.domain == "any" or not source or source in DOMAINS[self.domain]


def read_concept_rules(path: str | Path) -> dict[str, ConceptRule]:
    """Reads a concept list: tab-separated name, kind, forms (blank-separated), excluded phrases (a regular expression,
    optional), domain (optional, `any`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a malformed line, named as file:line, or a list without concepts.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such concept list")
    rules: dict[str, ConceptRule] = {}
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text in UTF-8; a concept list is a file of tab-separated lines") from None
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            rule = _parse(line)
            if rule.name in rules:
                raise ValueError(f"concept {rule.name!r} is listed twice")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        rules[rule.name] = rule
    if not rules:
        raise ValueError(
            f"{path}: no concepts; a line is: name, kind, forms, excluded phrases, domain, separated by tabs"
        )
    return rules


def choose_rules(rules: Mapping[str, ConceptRule], names: Iterable[str], kinds: Iterable[str]) -> list[ConceptRule]:
    """The named rules in the order of the list (no names: all), of the given kinds. Raises `ValueError` for names
    and kinds that do not exist.
    """
    names, kinds = list(names), tuple(kinds) or KINDS
    if unknown := sorted(set(names) - set(rules)):
        raise ValueError(f"unknown concept {unknown[0]!r}; the list has: {', '.join(sorted(rules))}")
    if wrong := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kind of concept {wrong[0]!r}; choose from {', '.join(KINDS)}")
    return [rule for rule in rules.values() if rule.kind in kinds and (not names or rule.name in names)]


def _parse(line: str) -> ConceptRule:
    fields = [field.strip() for field in line.split("\t")]
    if not 3 <= len(fields) <= 5:
        raise ValueError(
            f"{len(fields)} tab-separated fields; expected 3 to 5: name, kind, forms, excluded phrases, domain"
        )
    name, kind, forms, excluded, domain = [*fields, "", ""][:5]
    domain = domain or "any"
    if not name or not forms:
        raise ValueError(f"{'name' if not name else 'forms'} must not be empty")
    if no_word := next((form for form in forms.split() if not re.search(f"[{WORD_CHARACTERS}]", form)), None):
        raise ValueError(f"form {no_word!r} has no letter or digit")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose from {', '.join(KINDS)}")
    if domain != "any" and domain not in DOMAINS:
        raise ValueError(f"domain {domain!r} is unknown; choose from {', '.join((*DOMAINS, 'any'))}")
    try:
        # a phrase with a capital is a product name, matched as it is written
        flags = re.NOFLAG if any(c.isupper() for c in re.sub(r"\\.", "", excluded)) else re.IGNORECASE
        pattern = re.compile(excluded, flags) if excluded else None
    except re.error as error:
        raise ValueError(f"excluded phrases {excluded!r} are no regular expression: {error}") from None
    return ConceptRule(name, kind, tuple(dict.fromkeys(forms.split())), pattern, domain)


def group_concepts(ties: Iterable[tuple[int, int]], num_concepts: int) -> tuple[int, ...]:
    """Numbers of groups: concepts that are tied, directly or through others, have the same one."""
    group = list(range(num_concepts))
    for one, other in ties:
        group = [min(group[one], group[other]) if g in (group[one], group[other]) else g for g in group]
    return tuple(group)
