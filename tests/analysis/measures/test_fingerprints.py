"""The settings of every analysis at its defaults, as one hash each: a moved file or a renamed helper changes none of
them, so no stored result is measured again for it. A line changes only together with the class's `version` or default.
And what is measured is what the fingerprint says, also after a file has been written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from analysis.base import Analysis, Row
from analysis.measures.alignment import Alignment
from analysis.measures.compression import Compression
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.lape import Lape
from analysis.measures.minimal_pairs import MinimalPairs
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.probe_suite import ProbeSuite
from analysis.measures.steering import Steering
from analysis.measures.trajectories import Trajectories
from analysis.snapshots import Snapshot

GOLDEN: list[tuple[Analysis, str]] = [
    (HeldOutLoss(texts="none.parquet"), "f06dbfbcafb3e5c6"),
    (LanguageProbe(texts="none.parquet"), "f25c1046b5d04e0b"),
    (ProbeSuite(texts="none.parquet"), "2d1dc9a8e6ab99ce"),
    (ConceptOverlap(concepts="none.parquet"), "f678e99515e6957f"),
    (Trajectories(concepts="none.parquet", results="none", frozen_step=8), "f2df8aff72711f2f"),
    (Alignment(texts="none.parquet"), "b17b1af60332fb30"),
    (Compression(texts="none.parquet"), "56ae02d1ca53a52c"),
    (Lape(texts="none.parquet"), "bfba58845089a222"),
    (Steering(concepts="none.parquet"), "b6b4dd97ce601a36"),
]


@pytest.mark.parametrize(("analysis", "expected"), GOLDEN, ids=lambda one: getattr(one, "name", ""))
def test_fingerprints_of_the_defaults_stay(analysis: Analysis, expected: str) -> None:
    assert analysis.fingerprint() == expected


def write_texts(path: Path, seed: int) -> str:
    """Parallel texts of two languages, in letters of their own."""
    generator = np.random.default_rng(seed)
    lines = [
        {"lang": language, "uid": str(key), "split": split, "text": "".join(generator.choice(list(letters), 30))}
        for key, split in enumerate(["train", "valid", "test"] * 8)
        for language, letters in (("aa", "abcdexyz"), ("bb", "fghijxyz"))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def write_pairs(path: Path, seed: int) -> str:
    generator = np.random.default_rng(seed)
    lines = ["\t".join(("en", *("".join(generator.choice(list("abcd"), 6)) for _ in "xy"), "order")) for _ in range(9)]
    path.write_text("language\tgood\tbad\tphenomenon\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("write", "make"),
    [
        (write_texts, lambda path: HeldOutLoss(texts=path, samples=0, num_bootstrap=10)),
        (write_texts, lambda path: Alignment(texts=path, neighbours=2, measures=["abx_meaning"], permutations=5)),
        (write_texts, lambda path: Lape(texts=path, tokens_per_language=100, shuffles=2)),
        (
            write_texts,
            lambda path: LanguageProbe(
                texts=path, tokens_per_language=40, test_tokens_per_language=40, seeds=[0], controls=False
            ),
        ),
        (write_pairs, lambda path: MinimalPairs(pairs=path)),
    ],
    ids=["held_out", "alignment", "lape", "language_probe", "minimal_pairs"],
)
def test_a_file_that_is_written_anew_between_two_snapshots_is_read_anew(
    write: Callable[[Path, int], str],
    make: Callable[[str], Analysis],
    tmp_path: Path,
    tiny_xglm: PreTrainedModel,
    tiny_snapshot: Callable[..., Snapshot],
) -> None:
    def measure(analysis: Analysis) -> list[Row]:
        return [row for row in analysis.measure(tiny_snapshot(tiny_xglm)) if isinstance(row, Row)]

    kept = make(write(tmp_path / "file.jsonl", 0))
    before = measure(kept)
    write(tmp_path / "file.jsonl", 1)
    after = measure(kept)
    assert after == measure(make(str(tmp_path / "file.jsonl")))
    assert after != before


def test_a_folder_of_concepts_counts_by_the_content_of_its_files(tmp_path: Path) -> None:
    for language in ("de", "en"):
        (tmp_path / language).mkdir()
        sentences = {side: [f"{side} {number} {language}" for number in range(12)] for side in ("positive", "negative")}
        content = json.dumps({"concept": "fire", "sentences": sentences})
        (tmp_path / language / "fire.json").write_text(content, encoding="utf-8")
    analysis = ConceptOverlap(concepts=str(tmp_path))
    before = analysis.fingerprint()
    assert "positive 3 de" in analysis.concept_set().pools["de"].texts
    path = tmp_path / "de" / "fire.json"
    path.write_text(path.read_text(encoding="utf-8").replace("positive 3", "positive three"), encoding="utf-8")
    assert "positive three de" in analysis.concept_set().pools["de"].texts
    assert analysis.fingerprint() != before
