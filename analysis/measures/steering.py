"""Do neurons found in one language carry their concept into another? Hold them and read what the model writes.

The third experiment of Riemenschneider & Frank (ACL 2025, section 6), after Suau et al. (ICML 2022) and Kojima et al.
(NAACL 2024): the top K units of a concept in a source language are held at their median response to its positives, the
model writes from its start token alone, many seeds each; then the language of the output and the presence of the
concept are judged. Every figure stands beside its controls (`analysis.steering.conditions`).
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from tqdm import tqdm

from analysis.base import Analysis, Attachment, Row
from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.dataset import load_concepts
from analysis.concepts.lexicon import read_lexicon
from analysis.experts.table import find_experts, resolve_k
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.measures.text_analysis import WordAnalysis
from analysis.snapshots import Snapshot
from analysis.steering.concept_check import judge_by_experts
from analysis.steering.conditions import Conditions, Control, Value
from analysis.steering.fluency import bits_per_text, bits_under, check_folder
from analysis.steering.generated import GeneratedText, Setting, find_words, texts_table
from analysis.steering.generation import Decoding, Job, encode_prompt, generate
from analysis.steering.judging import ConceptLexicon, LanguageDetector, ScriptAndLangid
from analysis.steering.rows import rows_of
from babelscope.records import refuse_unknown

log = logging.getLogger(__name__)

Held = tuple[str, str | None, str | None, int | None]
"""Condition, concept, source language and K of what is held; nothing but the condition without intervention."""


@dataclass(frozen=True)
class Inputs:
    """What a steering experiment reads from its files, checked before anything is generated."""

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


@dataclass(kw_only=True)
class Steering(WordAnalysis):
    """Hold concept neurons of one language and judge the language and the concept of what the model writes.

    Rows (`condition` is `experts`, `random`, ... or `none`, `k` the number of held units, `language` the source
    language whose experts are held, or None for all); docs/measures.md says of each what it is:

    - language of the texts: `output_language` (`other_language`), `output_in_source_language`, `language_entropy`
    - words of the concept: `concept_hit` (also per concept), `concept_hit_source`, `concept_hit_other`; with the
      language `concept_in_language`, its diagonal `concept_in_source_language`, the rest `concept_in_other_language`
    - units of the concept, without words: `concept_hit_experts`, and `check_accuracy` of these units
    - experts minus the control in `condition`, paired: `concept_hit_effect`, `concept_hit_other_effect`,
      `concept_in_other_language_effect`, `concept_hit_experts_effect`
    - the texts as such: `bits_per_byte`, `bits_per_byte_judge`, `distinct_2`, `repetition`

    Attachment `texts`: every text with its settings and judgements.
    """

    default_name: ClassVar[str] = "steering"
    positive: ClassVar[tuple[str, ...]] = ("seeds", "max_new_tokens", "batch_size", "min_positives")
    headlines: ClassVar[tuple[str, ...]] = ("concept_hit_effect", "concept_hit")
    version: ClassVar[int] = 3
    fractions: ClassVar[tuple[str, ...]] = ("share",)

    languages: list[str] = field(default_factory=list)
    """Source languages; none means all of the file."""
    k: list[int] = field(default_factory=lambda: [500])
    """Numbers of units held."""
    share: list[float] = field(default_factory=list)
    """Instead of `k`: shares of all units."""
    controls: list[Control] = field(default_factory=lambda: list(get_args(Control)))
    """Conditions beside the experts."""
    value: Value = "on_p50"
    """What a unit is held at: on_p50, on_mean or on_p90 of its pooled responses to the positives, or token_median."""
    positions: Literal["all", "new"] = "all"
    """Hold units at `all` positions or only at `new` ones, after the prompt."""
    first_layer: int | None = None
    """Hold only units of blocks from this one ..."""
    last_layer: int | None = None
    """... to this one (inclusive)."""
    seeds: int = 20
    """Texts per condition, concept, language and prompt."""
    first_seed: int = 1
    prompts: list[str] = field(default_factory=lambda: [""])
    """Texts to go on from; an empty one is the start token alone."""
    start_token: str | None = None
    """Start token; None means `</s>` if the tokenizer has it, else its start token."""
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    detector: LanguageDetector | None = None
    """Decides the language of a text; None means script and py3langid."""
    output_languages: list[str] = field(default_factory=list)
    """Languages that the detector may answer; none means all of the concept file."""
    site_set: str = "linear"
    check_experts: int = 50
    """Units per concept and language that look for the concept in what was written, found on one half of the sentences;
    the held units then come from the other half. 0: no such check, and the held units come from all sentences."""
    fluency_model: str | None = None
    """Folder of a model (Hugging Face layout, e.g. another snapshot) that scores the texts beside the model itself."""
    batch_size: int = 64
    """Texts generated at once."""
    batch_tokens: int = 2048
    """Tokens per forward pass of reading, padding included."""

    not_settings: ClassVar[tuple[str, ...]] = (*Analysis.not_settings, "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.check_experts < 0:
            raise ValueError(f"{self.name}: check_experts={self.check_experts} must be at least 0 (no check)")
        if not self.k and not self.share:
            raise ValueError(f"{self.name}: give k or share, the number of units to hold")
        if any(k < 1 for k in self.k):
            raise ValueError(f"{self.name}: k={self.k}: at least one unit must be held; `none` is a control")
        if not self.prompts:
            raise ValueError(f"{self.name}: no prompts; [''] starts from the start token")
        if (self.first_layer is None) != (self.last_layer is None):
            raise ValueError(f"{self.name}: first_layer and last_layer go together")
        self._decoding = Decoding(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
        )

    def settings(self) -> dict[str, object]:
        chosen = super().settings()
        if self.detector is not None:
            named = type(self.detector).__name__
            options = json.loads(json.dumps(vars(self.detector), default=str, sort_keys=True))
            chosen["detector"] = {"class": named, **options}
        return chosen

    def read_inputs(self) -> Inputs:
        """Everything that needs no model, so that a mistake in it costs nothing.

        Raises:
            FileNotFoundError: no concept file, lexicon or fluency model.
            ValueError: a language or concept that a file or the detector does not know, too few sentences of a concept
                in a language, or no word of it in any language.
        """
        if self.fluency_model is not None:
            check_folder(self.fluency_model)
        concept_set = load_concepts(self.concepts, concepts=self.only_concepts, min_positives=self.min_positives)
        known = concept_set.languages
        refuse_unknown(self.concepts, "language", self.languages, known)
        sources, outputs = tuple(self.languages or known), tuple(self.output_languages or known)
        detector = self.detector or ScriptAndLangid()
        detector.detect(["check"], outputs)
        lexicon = ConceptLexicon(read_lexicon(self.lexicon_file))
        for concept in concept_set.concepts:
            without = [language for language in known if not lexicon.knows(concept, language)]
            if len(without) == len(known):
                raise ValueError(f"{self.lexicon_file} has no words of {concept!r}; leave the concept out or add them")
            if without:
                log.warning(
                    "%s: no words of %r in %s: hits there are missed", self.lexicon_file, concept, ", ".join(without)
                )
        if not self.check_experts:
            return Inputs(concept_set.labelled_only(sources), None, known, outputs, detector, lexicon)
        read = [language for language in known if language in {*sources, *outputs}]
        one, other = concept_set.half(0), concept_set.half(1)
        halves = one.labelled_only(read), other.labelled_only(read)
        return Inputs(one.labelled_only(sources), halves, known, outputs, detector, lexicon)

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        inputs = self.read_inputs()
        prompts = [encode_prompt(snapshot.tokenizer, prompt, self.start_token) for prompt in self.prompts]
        concepts, sources = inputs.held.concepts, inputs.held.languages
        settings, tokens = self._write(snapshot, inputs.held, prompts)
        texts = [str(snapshot.tokenizer.decode(row, skip_special_tokens=True)) for row in tokens]
        languages = inputs.detector.detect(texts, inputs.outputs)
        words = [
            find_words(text, setting.concept, inputs.lexicon, concepts, inputs.languages)
            for text, setting in zip(texts, settings, strict=True)
        ]
        bits = bits_per_text(snapshot.model, snapshot.tokenizer, texts, self.batch_tokens)
        others: Sequence[float | None] = [None] * len(texts)
        if self.fluency_model is not None:
            others = bits_under(self.fluency_model, texts, self.batch_tokens)
        hits: Sequence[dict[str, float] | None] = [None] * len(texts)
        if inputs.halves is not None:
            held_out, chosen_on = inputs.halves
            hits, rows = judge_by_experts(
                snapshot,
                texts,
                settings,
                languages,
                chosen_on,
                held_out,
                sources,
                k=self.check_experts,
                site_set=self.site_set,
                extraction=self.extraction,
                seed=self.seed,
            )
            yield from rows
        clusters = dict(zip(concepts, inputs.held.clusters.tolist(), strict=True))
        columns = zip(settings, map(tuple, tokens), texts, languages, words, hits, bits, others, strict=True)
        generated = [GeneratedText(*judged) for judged in columns]
        yield from rows_of(generated, clusters, sources, inputs.outputs, seed=self.seed)
        yield Attachment("texts", texts_table(generated, self.prompts))

    def _write(
        self, snapshot: Snapshot, concept_set: ConceptSet, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[list[Setting], list[list[int]]]:
        """Find the experts, hold them, and let every seed write; the settings of every text and its tokens."""
        counts, deepest = self._counts(snapshot)
        extraction = self.extraction
        table = find_experts(snapshot, concept_set, site_set=self.site_set, k=deepest, extraction=extraction)
        band = None if self.first_layer is None or self.last_layer is None else (self.first_layer, self.last_layer)
        conditions = Conditions(
            snapshot, table, concept_set.pools, value=self.value, band=band, seed=self.seed, extraction=extraction
        )
        forced = ["experts", *(name for name in self.controls if name != "none")]
        if "mismatched" in forced and len(concept_set.concepts) < 2:
            log.warning("%s: one concept only, so the mismatched control is left out", self.name)
            forced.remove("mismatched")
        plan: list[Held] = [("none", None, None, None)] * ("none" in self.controls)
        plan += list(itertools.product(forced, concept_set.concepts, concept_set.languages, counts))
        settings: list[Setting] = []
        jobs: list[Job] = []
        job_of: list[int] = []
        first_job: dict[Held, int] = {}
        for condition, concept, source, k in plan:
            held: Held = condition, concept, source, k
            if condition == "mismatched" and concept is not None:  # the texts of another concept, judged for this one
                held = "experts", conditions.other_concept(concept), source, k
            if held not in first_job:
                first_job[held] = len(jobs)
                forcing = None if condition == "none" else conditions.forcing(*held)  # type: ignore[arg-type]
                jobs += [Job(prompt, seed, forcing) for prompt, seed in itertools.product(prompts, self._seeds)]
            for offset, (number, seed) in enumerate(itertools.product(range(len(prompts)), self._seeds)):
                settings.append(Setting(condition, concept, source, k, number, seed))
                job_of.append(first_job[held] + offset)
        with tqdm(total=len(jobs), desc=self.name, unit="text", leave=False, disable=None) as bar:
            tokens = generate(
                snapshot.model,
                jobs,
                self._decoding,
                end_id=snapshot.tokenizer.eos_token_id,
                batch_size=self.batch_size,
                positions=self.positions,
                on_batch=bar.update,
            )
        return settings, [tokens[job] for job in job_of]

    def _counts(self, snapshot: Snapshot) -> tuple[list[int], int]:
        """Numbers of held units, and how many experts are needed for them and their controls."""
        num_units = UnitSpace(find_sites(snapshot.model, self.site_set)).num_units
        counts = [resolve_k(0, share, num_units) for share in self.share] or list(self.k)
        counts = list(dict.fromkeys(counts))
        followed = "next" in self.controls
        deepest = max(counts) * (2 if followed else 1)
        if deepest > num_units:
            raise ValueError(
                f"{self.name}: k={max(counts)}{' (and as many next ones)' if followed else ''} exceeds the model's "
                f"{num_units} units in site set {self.site_set!r}; lower k"
            )
        return counts, deepest

    @property
    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)
