"""The settings of every analysis at its defaults, as one hash each: a moved file or a renamed helper changes none of
them, so no stored result is measured again for it. A line changes only together with the class's `version` or default.
"""

from __future__ import annotations

import pytest

from analysis.base import Analysis
from analysis.measures.alignment import Alignment
from analysis.measures.compression import Compression
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.lape import Lape
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.probe_suite import ProbeSuite
from analysis.measures.steering import Steering

GOLDEN: list[tuple[Analysis, str]] = [
    (HeldOutLoss(texts="none.parquet"), "7cb4f389b1ada7c3"),
    (LanguageProbe(texts="none.parquet"), "2c8d1c7f2de95361"),
    (ProbeSuite(texts="none.parquet"), "c84f12c823e416e1"),
    (ConceptOverlap(concepts="none.parquet"), "f678e99515e6957f"),
    (Alignment(texts="none.parquet"), "7ffbd973956fabaf"),
    (Compression(texts="none.parquet"), "fa0adaebb33dae8a"),
    (Lape(texts="none.parquet"), "79ae3534a9f63c18"),
    (Steering(concepts="none.parquet"), "a5ce7342ff73022d"),
]


@pytest.mark.parametrize(("analysis", "expected"), GOLDEN, ids=lambda one: getattr(one, "name", ""))
def test_fingerprints_of_the_defaults_stay(analysis: Analysis, expected: str) -> None:
    assert analysis.fingerprint() == expected
