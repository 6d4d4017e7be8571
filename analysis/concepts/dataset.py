"""Reading labelled sentences of concepts from files.

    concept file (parquet or JSONL, long)   concept, language, uid, text, label (1 or 0); optional split, weak, match,
                                            half, group
    ml-selfcond folder or file              see analysis/concepts/selfcond.py

`uid` is the same for translations of each other; `match` names the positive that a negative was chosen for; `weak`
marks a positive whose translation may have lost the concept; `half` (0 or 1) parts the sentences for measures that
choose units on one part and look at them on the other; concepts of one `group`, and those that share many positives,
depend on each other and count as one. Such files are written by `python -m analysis label`, which puts the word forms
of every concept beside them (`<file>.lexicon.json`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import torch

from analysis.concepts.concept_set import ConceptPool, ConceptSet
from analysis.concepts.file import lexicon_path
from analysis.concepts.halves import hash_order
from analysis.concepts.lexicon import read_lexicon
from analysis.concepts.rules import group_concepts
from analysis.concepts.selfcond import LabelledText, read_selfcond
from analysis.texts import ClonedText, cloned, read_records, split_of
from babelscope.records import LANGUAGE_COLUMNS, Clone, refuse_repeated, refuse_unknown, segment_key

log = logging.getLogger(__name__)

NEGATIVES = ("matched", "all")
FEW_POSITIVES = 50
"""Below this many positives an AP is mostly noise: loading warns."""
MANY_COPIES = 0.01
"""Share of the sentences of a language that are copies of others above which loading warns."""
SAME_SENTENCES = 1 / 3
"""Share of the positives from which two concepts count as dependent."""


def load_concepts(
    path: str | Path,
    *,
    languages: Sequence[str] = (),
    concepts: Sequence[str] = (),
    splits: Sequence[str] = (),
    negatives: str = "matched",
    min_positives: int = 10,
    max_positives: int | None = None,
    max_negatives: int | None = None,
    strict: bool = False,
    drop_scarce: bool = False,
    clones: Mapping[str, Clone] = MappingProxyType({}),
) -> ConceptSet:
    """Read a concept file, or a folder or file of ml-selfcond.

    Args:
        languages, concepts, splits: what to keep; none means all that the file has.
        negatives: `matched`, the sentences that the file labels 0; or `all` other sentences of the pool (sentences that
            the file does not label for a concept then count as negatives).
        min_positives: least number of positives of a concept in a language.
        max_positives: keep this many positives per concept and language, the same sentences in every language.
        max_negatives: keep this many negatives per positive, of those chosen for it where the file says so.
        strict: leave out positives marked `weak`.
        drop_scarce: leave out concepts that are short of positives in some language instead of raising.
        clones: of the model that will read the texts (`Snapshot.clones`): their sentences are those of the originals.

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed content (naming file and line), an unknown language, concept, split or option, a
            concept that is asked for twice, or one with fewer than `min_positives` positives or without negatives in
            a language.
    """
    path = Path(path)
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives={negatives!r}: choose one of {', '.join(NEGATIVES)}")
    refuse_repeated(path, "concepts", concepts)
    if min_positives < 1:
        raise ValueError(f"min_positives={min_positives}: must be at least 1")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such concept file; `python -m analysis label` makes one")
    records = read_selfcond(path) if path.is_dir() or path.suffix == ".json" else _read_long(path)
    cells = _collect(path, _with_clones(records, cloned(languages, clones)), splits)
    found_languages = sorted({language for language, _ in cells})
    found_concepts = list(dict.fromkeys(concept for _, concept in cells))
    refuse_unknown(path, "language", languages, found_languages)
    refuse_unknown(path, "concept", concepts, found_concepts)
    chosen_languages = tuple(languages or found_languages)
    chosen = tuple(concepts or found_concepts)
    for cell in cells.values():
        cell.limit(max_positives, max_negatives, strict)
    chosen = _enough(path, cells, chosen_languages, chosen, min_positives, negatives == "matched", drop_scarce)
    pools = {language: _pool(cells, language, chosen, negatives) for language in chosen_languages}
    copies = {language: len(pool.texts) - len(set(pool.texts)) for language, pool in pools.items()}
    worst = max(copies, key=lambda language: copies[language] / len(pools[language].texts))
    if copies[worst] > MANY_COPIES * len(pools[worst].texts):
        log.warning(
            "%s: %d of %d sentences in %s are copies of others under another key: halves of the sentences are then not "
            "disjoint, and what they share is too high; keep each text once, as `python -m analysis label` does",
            path,
            copies[worst],
            len(pools[worst].texts),
            worst,
        )
    named = {concept: record.group for (_, concept), cell in cells.items() for record in cell.positives.values()}
    return ConceptSet(chosen_languages, chosen, pools, _groups(path, pools, chosen, named))


def concept_files(path: str | Path) -> list[Path]:
    """The files that `load_concepts` reads: the sentences, and the word forms beside them."""
    path = Path(path)
    sentences = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return [file for file in (*sentences, lexicon_path(path)) if file.is_file()]


def _groups(
    path: Path, pools: Mapping[str, ConceptPool], concepts: Sequence[str], named: Mapping[str, str | None]
) -> tuple[int, ...]:
    """Groups of concepts that share a third of the positives of the rarer one, or that the file puts together.

    A file without groups (of before there were any) ties those that share an entry of the lexicon in some language:
    more than depend on each other, since entries are found by search and may be parts of words.
    """
    forms: dict[str, set[tuple[str, str]]] = {}
    if any(named.values()):
        forms = {concept: {("", group or concept)} for concept, group in named.items()}
    elif lexicon_path(path).is_file():
        forms = {
            concept: {(language, form.rstrip("*")) for language, entries in by_language.items() for form in entries}
            for concept, by_language in read_lexicon(lexicon_path(path)).items()
        }
    ties = []
    for (one, first), (other, second) in combinations(enumerate(concepts), 2):
        common = any(
            SAME_SENTENCES * min(len(yes), len(no)) <= len(set(yes.tolist()) & set(no.tolist()))
            for yes, no in ((pool.positives[first], pool.positives[second]) for pool in pools.values())
        )
        if common or forms.get(first, set()) & forms.get(second, set()):
            ties.append((one, other))
    return group_concepts(ties, len(concepts))


@dataclass
class _Cell:
    """The sentences of one concept in one language, by key."""

    positives: dict[str, LabelledText]
    negatives: dict[str, LabelledText]
    excluded: set[str]
    """Positives that a limit left out: never negatives of their own concept."""

    def limit(self, max_positives: int | None, max_negatives: int | None, strict: bool) -> None:
        order = sorted((key for key, entry in self.positives.items() if not (strict and entry.weak)), key=hash_order)
        counts: Counter[int | None] = Counter()
        turn = {}
        for key in order:  # halves by turns, so that none is short of what is left
            counts[self.positives[key].half] += 1
            turn[key] = counts[self.positives[key].half]
        kept = set(sorted(order, key=turn.__getitem__)[:max_positives])
        self.excluded = self.positives.keys() - kept
        self.positives = {key: entry for key, entry in self.positives.items() if key in kept}
        candidates = [key for key, entry in self.negatives.items() if entry.match is None or entry.match in kept]
        if max_negatives is not None:
            per_match: dict[str | None, int] = {}
            chosen = set()
            for key in sorted(candidates, key=hash_order):
                match = self.negatives[key].match
                room = max_negatives * (len(kept) if match is None else 1)
                if per_match.get(match, 0) < room:
                    per_match[match] = per_match.get(match, 0) + 1
                    chosen.add(key)
            candidates = [key for key in candidates if key in chosen]
        self.negatives = {key: self.negatives[key] for key in candidates}


def _read_long(path: Path) -> Iterator[LabelledText]:
    for line, record in read_records(path):
        language = next((record[column] for column in LANGUAGE_COLUMNS if column in record), None)
        fields = {"concept": record.get("concept"), "language": language, "text": record.get("text")}
        for name, value in fields.items():
            if not isinstance(value, str) or not value.strip():
                raise ValueError(
                    f"{path}, {line}: {name} is {value!r}; a concept file has the columns concept, language, uid, "
                    "text, label"
                )
        label = record.get("label")
        if label not in (0, 1):
            raise ValueError(f"{path}, {line}: label is {label!r}, expected 1 (positive) or 0 (negative)")
        text = str(fields["text"])
        key = segment_key(record) or hashlib.sha256(text.encode()).hexdigest()[:16]
        match, half, group = record.get("match"), record.get("half"), record.get("group")
        if half not in (0, 1, None):
            raise ValueError(f"{path}, {line}: half is {half!r}, expected 0 or 1")
        yield LabelledText(
            concept=str(fields["concept"]),
            language=str(language),
            key=key,
            text=text,
            positive=bool(label),
            split=split_of(record) or None,
            match=None if match is None else str(match),
            weak=bool(record.get("weak")),
            half=None if half is None else int(half),
            group=None if group is None else str(group),
            where=line,
        )


def _with_clones(records: Iterable[LabelledText], clones: Mapping[str, Clone]) -> Iterator[LabelledText]:
    for record in records:
        yield record
        for name, clone in clones.items():
            if clone.of == record.language:
                yield replace(record, language=name, text=ClonedText(record.text, clone.shift))


def _collect(path: Path, records: Iterable[LabelledText], splits: Sequence[str]) -> dict[tuple[str, str], _Cell]:
    """(language, concept) to its sentences, refusing contradictions."""
    cells: dict[tuple[str, str], _Cell] = {}
    seen_splits: set[str] = set()
    texts: dict[tuple[str, str], str] = {}
    halves: dict[str, int | None] = {}
    groups: dict[str, str | None] = {}
    for record in records:
        if record.split is not None:
            seen_splits.add(record.split)
        if splits and record.split not in splits:
            continue
        cell = cells.setdefault((record.language, record.concept), _Cell({}, {}, set()))
        one, other = (cell.positives, cell.negatives) if record.positive else (cell.negatives, cell.positives)
        if record.key in other:
            raise ValueError(
                f"{path}, {record.where}: {record.key!r} is labelled both 1 and 0 for concept {record.concept!r} "
                f"in {record.language!r}"
            )
        if texts.setdefault((record.language, record.key), record.text) != record.text:
            raise ValueError(
                f"{path}, {record.where}: {record.key!r} stands for two different texts in {record.language!r}"
            )
        if halves.setdefault(record.key, record.half) != record.half:
            raise ValueError(
                f"{path}, {record.where}: {record.key!r} is in two halves of the sentences; give all its rows the same"
            )
        if groups.setdefault(record.concept, record.group) != record.group:
            raise ValueError(f"{path}, {record.where}: concept {record.concept!r} is in two groups; one was expected")
        one.setdefault(record.key, record)
    if len({half is None for half in halves.values()}) > 1:
        raise ValueError(f"{path}: some sentences have a half and others none; fill the column or leave it out")
    refuse_unknown(path, "split", splits, seen_splits)
    if not cells:
        raise ValueError(f"{path}: no labelled sentences")
    return cells


def _enough(
    path: Path,
    cells: Mapping[tuple[str, str], _Cell],
    languages: Sequence[str],
    concepts: Sequence[str],
    min_positives: int,
    need_negatives: bool,
    drop_scarce: bool,
) -> tuple[str, ...]:
    """The concepts that have enough sentences in every language."""
    kept, few = [], []
    for concept in concepts:
        short = None
        for language in languages:
            cell = cells.get((language, concept))
            positives, negatives = (len(cell.positives), len(cell.negatives)) if cell else (0, 0)
            if positives < min_positives or (need_negatives and not negatives):
                short = (
                    f"concept {concept!r} has {positives} positives and {negatives} negatives in {language!r}, "
                    f"min_positives is {min_positives}"
                )
                break
            if positives < FEW_POSITIVES:
                few.append((positives, concept, language))
        if short is None:
            kept.append(concept)
        elif drop_scarce:
            log.warning("%s: left out: %s", path, short)
        else:
            raise ValueError(f"{path}: {short}; leave out the concept or the language, or lower min_positives")
    if not kept:
        raise ValueError(f"{path}: no concept has {min_positives} positives in all of {', '.join(languages)}")
    if few:
        log.warning(
            "%s: %d of %d (concept, language) have fewer than %d positives, so their AP is noisy; least: %d (%s in %s)",
            path,
            len(few),
            len(kept) * len(languages),
            FEW_POSITIVES,
            *min(few),
        )
    return tuple(kept)


def _pool(
    cells: Mapping[tuple[str, str], _Cell], language: str, concepts: Sequence[str], negatives: str
) -> ConceptPool:
    entries: dict[str, str] = {}
    for concept in concepts:
        cell = cells[language, concept]
        for record in (*cell.positives.values(), *cell.negatives.values()):
            entries.setdefault(record.key, record.text)
    keys = tuple(sorted(entries))
    place = {key: index for index, key in enumerate(keys)}
    yes, no = {}, {}
    for concept in concepts:
        cell = cells[language, concept]
        yes[concept] = torch.tensor(sorted(place[key] for key in cell.positives))
        listed = set(cell.negatives)
        if negatives == "all":
            listed = place.keys() - cell.positives.keys() - cell.excluded
        if not listed:
            raise ValueError(f"concept {concept!r} has no negatives in {language!r}: the pool holds its positives only")
        no[concept] = torch.tensor(sorted(place[key] for key in listed))
    matches = {
        concept: {key: entry.match for key, entry in cells[language, concept].negatives.items() if entry.match}
        for concept in concepts
    }
    halves = {
        record.key: record.half
        for concept in concepts
        for side in (cells[language, concept].positives, cells[language, concept].negatives)
        for record in side.values()
        if record.half is not None
    }
    return ConceptPool(language, tuple(entries[key] for key in keys), keys, yes, no, matches, halves)
