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
from analysis.measures.trajectories import Trajectories

GOLDEN: list[tuple[Analysis, str]] = [
    (HeldOutLoss(texts="none.parquet"), "bd8740583086b539"),
    (LanguageProbe(texts="none.parquet"), "f25c1046b5d04e0b"),
    (ProbeSuite(texts="none.parquet"), "2d1dc9a8e6ab99ce"),
    (ConceptOverlap(concepts="none.parquet"), "f678e99515e6957f"),
    (Trajectories(concepts="none.parquet", results="none", frozen_step=8), "f2df8aff72711f2f"),
    (Alignment(texts="none.parquet"), "b17b1af60332fb30"),
    (Compression(texts="none.parquet"), "c942368a79aa5206"),
    (Lape(texts="none.parquet"), "bfba58845089a222"),
    (Steering(concepts="none.parquet"), "a5ce7342ff73022d"),
]


@pytest.mark.parametrize(("analysis", "expected"), GOLDEN, ids=lambda one: getattr(one, "name", ""))
def test_fingerprints_of_the_defaults_stay(analysis: Analysis, expected: str) -> None:
    assert analysis.fingerprint() == expected
