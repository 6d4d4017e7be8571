"""What is measured: one `Analysis` a file.

A list of analyses is a YAML file that names these classes (`class_path: ConceptOverlap`); classes of your own are named
with their module (`class_path: mymodule.MyMeasure`).
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from analysis.base import Analysis
from analysis.measures.alignment import Alignment
from analysis.measures.causal_transfer import CausalTransfer
from analysis.measures.compression import Compression
from analysis.measures.concept_directions import ConceptDirections
from analysis.measures.extras.harness import EvalHarness
from analysis.measures.heldout import HeldOutLoss
from analysis.measures.language_probe import LanguageProbe
from analysis.measures.lape import Lape
from analysis.measures.minimal_pairs import MinimalPairs
from analysis.measures.overlap import ConceptOverlap
from analysis.measures.probe_suite import ProbeSuite
from analysis.measures.steering import Steering
from analysis.measures.trajectories import Trajectories
from babelscope.yaml_text import read_yaml

__all__ = [
    "Alignment",
    "CausalTransfer",
    "Compression",
    "ConceptDirections",
    "ConceptOverlap",
    "EvalHarness",
    "HeldOutLoss",
    "LanguageProbe",
    "Lape",
    "MinimalPairs",
    "ProbeSuite",
    "Steering",
    "Trajectories",
    "build_analyses",
    "load_analyses",
]


def load_analyses(path: str | Path) -> list[Analysis]:
    """Instantiate the list under `analyses:` of a YAML file (entries with `class_path` and `init_args`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: malformed YAML, an unknown class or option, or a name used twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an analysis list is a YAML file with a key 'analyses'")
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("analyses"), list):
        raise ValueError(f"{path}: expected a key 'analyses' with a list of entries (class_path, init_args)")
    return build_analyses(document["analyses"], where=str(path))


def build_analyses(entries: list[dict], where: str = "analyses") -> list[Analysis]:
    """Instantiate analyses from `class_path`/`init_args` entries, checked and typed by jsonargparse."""
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: expected a list of analyses (class_path, init_args), got {entries!r}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--analyses", type=list[Analysis])
    try:
        parsed = parser.parse_object({"analyses": entries})
        analyses: list[Analysis] = parser.instantiate(parsed).analyses
    except ArgumentError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None
    names = [analysis.name for analysis in analyses]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: two analyses are called {name!r}; give one of them another 'name'")
    return analyses
