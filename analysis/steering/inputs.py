"""What a steering experiment reads from its files, checked before anything is generated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.dataset import load_concepts
from analysis.concepts.lexicon import read_lexicon
from analysis.steering.concept_check import labelled_only
from analysis.steering.judging import ConceptLexicon, LanguageDetector
from babelscope.records import refuse_unknown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Sentences, judges and languages of a steering experiment."""

    held: ConceptSet
    """Sentences of the source languages, whose experts are held."""
    halves: tuple[ConceptSet, ConceptSet] | None
    """For the check by units: sentences held out from them, and those by which they are found."""
    languages: tuple[str, ...]
    """All of the concept file: concept words are looked for in each."""
    outputs: tuple[str, ...]
    """What the detector may answer."""
    detector: LanguageDetector
    lexicon: ConceptLexicon


def read_inputs(
    concept_file: str,
    lexicon_file: str,
    detector: LanguageDetector,
    *,
    concepts: Sequence[str],
    sources: Sequence[str],
    outputs: Sequence[str],
    min_positives: int,
    halves: bool,
) -> Inputs:
    """Read and check; empty `concepts`, `sources` and `outputs` mean all of the file.

    Raises:
        FileNotFoundError: no concept file or lexicon.
        ValueError: a language or concept that a file or the detector does not know, too few sentences of a concept in a
            language, or no word of it in any language.
    """
    concept_set = load_concepts(concept_file, concepts=concepts, min_positives=min_positives)
    known = concept_set.languages
    refuse_unknown(concept_file, "language", sources, known)
    sources, outputs = tuple(sources or known), tuple(outputs or known)
    detector.detect(["check"], outputs)
    lexicon = ConceptLexicon(read_lexicon(lexicon_file))
    for concept in concept_set.concepts:
        without = [language for language in known if not lexicon.knows(concept, language)]
        if len(without) == len(known):
            raise ValueError(f"{lexicon_file} has no words of {concept!r}; leave the concept out or add them")
        if without:
            log.warning("%s: no words of %r in %s: hits there are missed", lexicon_file, concept, ", ".join(without))
    if not halves:
        return Inputs(_of(concept_set, sources), None, known, outputs, detector, lexicon)
    parts = concept_set.half(0), concept_set.half(1)
    read = [language for language in known if language in {*sources, *outputs}]
    return Inputs(_of(parts[0], sources), (_of(parts[0], read), _of(parts[1], read)), known, outputs, detector, lexicon)


def _of(concept_set: ConceptSet, languages: Sequence[str]) -> ConceptSet:
    """The concept set in some of its languages, with labelled texts only."""
    pools = {language: concept_set.pools[language] for language in languages}
    return labelled_only(ConceptSet(tuple(languages), concept_set.concepts, pools))
