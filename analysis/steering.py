"""Do neurons found in one language carry their concept into another? Hold them and read what the model writes.

The third experiment of Riemenschneider & Frank (ACL 2025, section 6), after Suau et al. (ICML 2022) and Kojima et al.
(NAACL 2024): the top K units of a concept in a source language are held at their median response to its positives, the
model writes from its start token alone, many seeds each; then the language of the output and the presence of the
concept are judged. Every figure stands beside its controls (`analysis.conditions`). Used in a list of analyses, or by
`python -m analysis steer`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from analysis.base import Analysis, Attachment, Row
from analysis.concepts import ConceptSet, load_concepts
from analysis.conditions import CONTROLS, VALUES, Conditions
from analysis.experts import find_experts, resolve_k
from analysis.fluency import bits_per_text, bits_under
from analysis.generation import Decoding, Job, generate
from analysis.judging import ConceptLexicon, LanguageDetector, ScriptAndLangid
from analysis.lexicon import read_lexicon
from analysis.sites import UnitSpace, find_sites
from analysis.snapshots import Snapshot
from analysis.steering_rows import Written, rows_of

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Steering(Analysis):
    """Hold concept neurons of one language and judge the language and the concept of what the model writes.

    Rows (`kind` is the condition and K, e.g. `experts@500`, `random@500`, `none`; `language` the source language whose
    experts are held; for `none` there is no source):
        output_language   share of texts judged to be in `other_language` (`undetermined` is one); chance: without
                          intervention
        concept_hit       share of texts with a word of the concept in any study language; chance: without intervention
        concept_hit_source, concept_hit_other   the same with words of the source language only, of the others only
        language_entropy  entropy of the output languages, bits
        bits_per_byte     of the texts under the unforced model, and under `fluency_model` as bits_per_byte_judge
        distinct_2, self_bleu, repetition   variety of the texts, and 4-gram repetition within a text
    with 95 % bootstrap intervals over concepts (over seeds where there is one concept). Attachment `texts`: every text
    with its settings and judgements.
    """

    default_name: ClassVar[str] = "steering"

    concepts: str
    """Concept file."""
    lexicon: str | None = None
    """Words of the concepts by language; None means the file that the labelling command wrote beside `concepts`."""
    only_concepts: list[str] = field(default_factory=list)
    """Concepts to hold; none means all of the file."""
    languages: list[str] = field(default_factory=list)
    """Source languages; none means all of the file."""
    k: list[int] = field(default_factory=lambda: [500])
    """Numbers of units held."""
    share: list[float] = field(default_factory=list)
    """Instead of `k`: shares of all units."""
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    """Conditions beside the experts."""
    value: str = "on_p50"
    """What a unit is held at: on_p50, on_mean or on_p90 of its pooled responses to the positives, or token_median."""
    positions: str = "all"
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
    pool: str = "max"
    min_positives: int = 10
    fluency_model: str | None = None
    """A local model folder or hub name under which the texts are scored besides the model itself."""
    batch_size: int = 64
    """Texts generated at once."""
    batch_tokens: int = 2048
    max_bytes: int = 2**30
    seed: int = 0
    """Of random units and bootstrap."""

    not_settings: ClassVar[tuple[str, ...]] = (*Analysis.not_settings, "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        for condition in self.controls:
            if condition not in CONTROLS:
                raise ValueError(f"{self.name}: no control {condition!r}; there are {', '.join(CONTROLS)}")
        if self.value not in VALUES:
            raise ValueError(f"{self.name}: no value {self.value!r}; there are {', '.join(VALUES)}")
        if self.positions not in ("all", "new"):
            raise ValueError(f"{self.name}: positions={self.positions!r}; choose all or new")
        if self.seeds < 1:
            raise ValueError(f"{self.name}: seeds is {self.seeds}; at least one text is needed")
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
        chosen["detector"] = type(self.detector).__qualname__ if self.detector is not None else None
        return chosen

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        concept_set = load_concepts(self.concepts, concepts=self.only_concepts, min_positives=self.min_positives)
        outputs = self.output_languages or list(concept_set.languages)
        detector = self.detector or ScriptAndLangid()
        detector.detect(["check"], outputs)  # an unknown language is told before anything is generated
        lexicon = ConceptLexicon(read_lexicon(self.lexicon or f"{self.concepts}.lexicon.json"))
        prompts = [encode_prompt(snapshot.tokenizer, prompt, self.start_token) for prompt in self.prompts]
        sources = self.languages or list(concept_set.languages)
        written = list(self._write(snapshot, concept_set, sources, prompts))
        self._judge(snapshot, written, detector, outputs, lexicon, concept_set)
        yield from rows_of(written, sources, [*outputs], seed=self.seed)
        yield Attachment("texts", texts_table(written, self.prompts))

    def _write(
        self, snapshot: Snapshot, concept_set: ConceptSet, sources: Sequence[str], prompts: Sequence[tuple[int, ...]]
    ) -> list[Written]:
        """Find the experts, hold them, and let every seed write."""
        unknown = [language for language in sources if language not in concept_set.languages]
        if unknown:
            raise ValueError(
                f"{self.name}: {self.concepts} has no language {unknown[0]!r}; "
                f"it has {', '.join(concept_set.languages)}"
            )
        num_units = UnitSpace(find_sites(snapshot.model, self.site_set)).num_units
        counts = [resolve_k(0, share, num_units) for share in self.share] or list(self.k)
        deepest = max(counts) * (2 if "next" in self.controls else 1)
        if deepest > num_units:
            raise ValueError(
                f"{self.name}: k={max(counts)}"
                + (" (and as many next ones)" if "next" in self.controls else "")
                + f" exceeds the model's {num_units} units in site set {self.site_set!r}; lower k"
            )
        restricted = ConceptSet(
            tuple(sources), concept_set.concepts, {name: concept_set.pools[name] for name in sources}
        )
        table = find_experts(
            snapshot,
            restricted,
            site_set=self.site_set,
            k=deepest,
            pool=self.pool,
            batch_tokens=self.batch_tokens,
            max_bytes=self.max_bytes,
        )
        band = None if self.first_layer is None or self.last_layer is None else (self.first_layer, self.last_layer)
        conditions = Conditions(
            snapshot,
            table,
            restricted.pools,
            value=self.value,
            pool=self.pool,
            band=band,
            seed=self.seed,
            batch_tokens=self.batch_tokens,
        )
        written: list[Written] = []
        jobs: list[Job] = []

        def add(condition: str, concept: str | None, language: str | None, k: int, forcing: dict | None) -> None:
            for number, prompt in enumerate(prompts):
                for seed in range(self.first_seed, self.first_seed + self.seeds):
                    written.append(
                        Written(condition=condition, concept=concept, source=language, k=k, prompt=number, seed=seed)
                    )
                    jobs.append(Job(prompt, seed, forcing))

        if "none" in self.controls:
            add("none", None, None, 0, None)
        forced = ["experts", *(name for name in self.controls if name != "none")]
        if "mismatched" in forced and len(restricted.concepts) < 2:
            log.warning("%s: one concept only, so the mismatched control is left out", self.name)
            forced.remove("mismatched")
        for k in counts:
            for concept in restricted.concepts:
                for language in sources:
                    for condition in forced:
                        add(condition, concept, language, k, conditions.forcing(condition, concept, language, k))
        tokens = generate(
            snapshot.model,
            jobs,
            self._decoding,
            end_id=snapshot.tokenizer.eos_token_id,
            batch_size=self.batch_size,
            positions=self.positions,  # type: ignore[arg-type]
        )
        for entry, ids in zip(written, tokens, strict=True):
            entry.tokens = ids
            entry.text = str(snapshot.tokenizer.decode(ids, skip_special_tokens=True))
        return written

    def _judge(
        self,
        snapshot: Snapshot,
        written: Sequence[Written],
        detector: LanguageDetector,
        outputs: Sequence[str],
        lexicon: ConceptLexicon,
        concept_set: ConceptSet,
    ) -> None:
        for entry, language in zip(written, detector.detect([w.text for w in written], outputs), strict=True):
            entry.language = language
        everywhere = concept_set.languages
        for entry in written:
            # without intervention a text is judged for every concept: that is the level to compare with
            concepts = concept_set.concepts if entry.concept is None else (entry.concept,)
            for concept in concepts:
                found = {code for code in everywhere if lexicon.hits(entry.text, concept, [code])}
                entry.hit_languages[concept] = found
            if entry.concept is not None:
                entry.spans = lexicon.spans(entry.text, entry.concept, everywhere)
        bits = bits_per_text(snapshot.model, snapshot.tokenizer, [w.text for w in written], self.batch_tokens)
        for entry, value in zip(written, bits, strict=True):
            entry.bits_per_byte = value
        if self.fluency_model is not None:
            others = bits_under(self.fluency_model, [w.text for w in written], self.batch_tokens)
            for entry, value in zip(written, others, strict=True):
                entry.bits_per_byte_judge = value


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, start_token: str | None) -> tuple[int, ...]:
    """Token ids of a prompt, start token included exactly once.

    The start token is `start_token`, else `</s>` (XGLM's own prefix, and the document separator of BLOOM, whose
    tokenizer adds none: METHOD, after Kojima et al.), else the tokenizer's start token.

    Raises:
        ValueError: the tokenizer has no such token, or no start token at all.
    """
    vocabulary = tokenizer.get_vocab()
    if start_token is not None and start_token not in vocabulary:
        raise ValueError(f"the tokenizer has no token {start_token!r}; choose another start_token")
    name = start_token or ("</s>" if "</s>" in vocabulary else tokenizer.bos_token)
    if name is None:
        raise ValueError("the tokenizer has no start token; name one with start_token")
    start = int(tokenizer.convert_tokens_to_ids(name))  # type: ignore[arg-type]
    content = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return (start, *content)


def texts_table(written: Sequence[Written], prompts: Sequence[str]) -> pa.Table:
    """All texts with settings and judgements, one row each."""
    return pa.table(
        {
            "condition": [w.condition for w in written],
            "k": pa.array([w.k for w in written], pa.int32()),
            "concept": [w.concept for w in written],
            "source": pa.array([w.source for w in written], pa.string()),
            "prompt": [prompts[w.prompt] for w in written],
            "seed": pa.array([w.seed for w in written], pa.int32()),
            "text": [w.text for w in written],
            "num_tokens": pa.array([len(w.tokens) for w in written], pa.int32()),
            "language": [w.language for w in written],
            "hit": [bool(w.concept and w.hit_languages[w.concept]) for w in written],
            "hit_languages": pa.array(
                [sorted(w.hit_languages[w.concept]) if w.concept else [] for w in written], pa.list_(pa.string())
            ),
            "hit_spans": pa.array([[x for span in w.spans for x in span] for w in written], pa.list_(pa.int32())),
            "bits_per_byte": [w.bits_per_byte for w in written],
            "bits_per_byte_judge": pa.array([w.bits_per_byte_judge for w in written], pa.float64()),
            "repetition": [w.repetition for w in written],
        }
    )
