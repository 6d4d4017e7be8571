"""Do languages use the same units for the same concept? Overlap of expert sets beside everything else that explains it.

The measure of the study that this toolkit follows (Riemenschneider and Frank, ACL 2025): the share of the top K units
by AP (Suau et al., ICML 2022) that two languages have in common for a concept. On parallel sentences it is high
wherever translations look alike, without any unit of the concept, and an untrained network is far above chance. What
decides is therefore `rank_transfer`, between disjoint halves of the sentences and against random networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import ClassVar, Literal

from analysis.base import Analysis, Attachment, Kept, Row
from analysis.concepts.concept_set import ConceptSet
from analysis.concepts.families import main_scripts, stratum_of
from analysis.cost import RANKED, SORTED, Shape
from analysis.experts import heldout, sharing
from analysis.experts.nulls import intersections, matched
from analysis.experts.sentences import LargestResponses, moving_sentences
from analysis.experts.sharing import Sharing
from analysis.experts.surface import token_experts
from analysis.experts.table import find_experts, resolve_k
from analysis.extraction.sites import UnitSpace, find_sites
from analysis.measures.text_analysis import ConceptAnalysis
from analysis.snapshots import Snapshot
from babelscope.records import Clone


@dataclass(kw_only=True)
class ConceptOverlap(ConceptAnalysis):
    """Overlap of concept experts between languages.

    Rows are of a pair (`language` < `other_language`; `transfer` from one to the other), over all pairs, and over those
    of a stratum in `condition` (`same_family`, `same_script`, `disjoint_scripts`, `clone`, `with_clone`), most also per
    concept. docs/measures.md says of each what it is and what its chance is:

    - between disjoint halves of the sentences: `rank_transfer`, the statistic that decides, `rank_ceiling` and
      `normalized`; `heldout_shared` (by `k`) and `ceiling`
    - on the same sentences, the study's number: `shared`; `shared_shuffled`, `shared_mismatched`, `shared_surface`
    - where: `shared_units` (layer), `expert_units` (layer, or kind), `shared_by_<m>`
    - how good: `ap_best`, `ap_experts`, `ap_heldout` (language), `transfer`, `transfer_gain`

    Attachment `experts`: one row per concept, language and expert unit, see `ExpertTable.to_arrow`; after step 0 also
    `sentences`: those that move the units most which most languages have in common, see `moving_sentences`.
    """

    default_name: ClassVar[str] = "overlap"
    headlines: ClassVar[tuple[str, ...]] = ("rank_transfer", "heldout_shared", "shared", "normalized", "shared_units")
    version: ClassVar[int] = 2
    needs_null: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = (
        "k",
        "min_positives",
        "max_positives",
        "max_negatives",
        "shuffles",
        "bootstrap",
    )
    not_negative: ClassVar[tuple[str, ...]] = (*ConceptAnalysis.not_negative, "sentences")
    fractions: ClassVar[tuple[str, ...]] = ("share", "shares")
    not_settings: ClassVar[tuple[str, ...]] = (*Analysis.not_settings, "sentences")

    names: list[str] = field(default_factory=list)
    """Concepts to use; none means all of the file."""
    splits: list[str] = field(default_factory=list)
    """Splits of the sentences to use; none means all."""
    site_set: str | list[str] = "linear"
    """Set of sites or list of kinds, see `analysis.extraction.sites.SITE_SETS`."""
    pool: Literal["max", "mean", "last"] = "max"
    k: int = 500
    """Experts per concept and language."""
    share: float | None = None
    """Experts as a share of all units, in place of `k`: for comparing models of different sizes."""
    shares: list[float] = field(default_factory=lambda: [0.003, 0.01, 0.03, 0.1])
    """Shares of all units at which sets of disjoint halves are compared; memory grows with the largest."""
    negatives: Literal["matched", "all"] = "matched"
    """The sentences labelled 0 for the concept, or all sentences that are not its positives."""
    max_positives: int | None = None
    """Positives per concept and language that are used, the same sentences in every language."""
    max_negatives: int | None = None
    """Negatives per positive that are used."""
    strict: bool = False
    """Leave out positives whose translation may have lost the concept (marked `weak`)."""
    drop_scarce: bool = False
    """Leave out concepts with too few positives in some language, instead of an error."""
    halves: bool = True
    """Also by disjoint halves of the sentences: everything that is held out, `rank_transfer` among it."""
    shuffles: int = 1
    """Label shuffles of the shuffled null, at least 1."""
    surface: bool = True
    """Also the bag-of-tokens control."""
    bootstrap: int = 1000
    """Resamples of the concepts for intervals."""
    sentences: int = 2
    """Sentences kept of each language for the units on the page of a concept; 0: none."""
    storage: Literal["float32", "float16"] = "float32"
    """How responses are held; float16 takes half the memory and moves AP by 1e-4 in the mean."""
    max_bytes: int = 2**32
    """Bytes of responses held at once; fewer mean more forward passes (9,216 units and 87,000 sentences take 3.2e9)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._surface = Kept()

    def concept_set(self, clones: Mapping[str, Clone] = MappingProxyType({})) -> ConceptSet:
        """The labelled sentences, see `load`."""
        return self.load(
            clones,
            concepts=self.names,
            splits=self.splits,
            negatives=self.negatives,
            max_positives=self.max_positives,
            max_negatives=self.max_negatives,
            strict=self.strict,
            drop_scarce=self.drop_scarce,
        )

    def measure(self, snapshot: Snapshot) -> Iterable[Row | Attachment]:
        """See the class; draws from its own generators only."""
        concept_set = self.concept_set(snapshot.clones)
        num_units = UnitSpace(find_sites(snapshot.model, self.site_set)).num_units
        depths = [resolve_k(self.k, share, num_units) for share in self.shares]
        largest = None
        if self.sentences and snapshot.id.step:  # what moves an untrained unit is not worth a look
            largest = LargestResponses(concept_set, self.sentences)
        table = find_experts(
            snapshot,
            concept_set,
            site_set=self.site_set,
            k=self.k,
            share=self.share,
            halves=self.halves,
            deepest=max(depths, default=0),
            shuffles=self.shuffles,
            seed=self.seed,
            extraction=self.extraction,
            listener=None if largest is None else largest.add,
        )
        found = Sharing(table, strata_of(concept_set, snapshot.clones), self.bootstrap, self.seed)
        yield from heldout.rank_rows(found)
        yield from heldout.depth_rows(found, depths)
        yield from sharing.overlap_rows(found)
        yield from sharing.profile_rows(found)
        yield from sharing.curve_rows(found)
        yield from sharing.quality_rows(found)
        yield from heldout.transfer_rows(found)
        if self.surface:
            units, num_tokens = self._surface.get(  # no weight enters: found once for all checkpoints of a tokenizer
                (concept_set, snapshot.tokenizer_hash, found.chance),
                lambda: token_experts(snapshot.tokenizer, concept_set, found.chance, self.max_length),
            )
            shared = matched(intersections(units, units, num_tokens), found.pairs) / units.shape[-1]
            yield from found.per_pair("shared_surface", shared, units.shape[-1] / num_tokens)
        yield Attachment("experts", table.to_arrow())
        if largest is not None:
            yield Attachment("sentences", moving_sentences(concept_set, table, largest))

    def work(self, shape: Shape) -> float:
        """Units are taken to be those of all linear layers."""
        concept_set = self.concept_set()
        pools = list(concept_set.pools.values())
        tokens = sum(shape.tokens((len(text.encode()) for text in pool.texts), self.max_length) for pool in pools)
        texts = sum(len(pool.texts) for pool in pools)
        labelled = sum(len(side[name]) for pool in pools for side in (pool.positives, pool.negatives) for name in side)
        return tokens * shape.read + shape.linear_units * (SORTED * texts + RANKED * self._labellings() * labelled)

    def _labellings(self) -> int:
        """How often all labelled texts are ranked: two halves are as many as the whole."""
        return 1 + self.halves + self.shuffles


def strata_of(concept_set: ConceptSet, clones: Mapping[str, Clone]) -> dict[tuple[str, str], str]:
    """Every pair of languages, codes in alphabetical order, with its stratum (`analysis.concepts.families.STRATA`)."""
    scripts = {language: main_scripts(concept_set.pools[language].texts) for language in concept_set.languages}
    of = {name: clone.of for name, clone in clones.items()}
    return {
        (one, other): stratum_of((one, other), (scripts[one], scripts[other]), of)
        for one, other in combinations(sorted(concept_set.languages), 2)
    }
