"""The documents tell the truth: commands parse, files exist, every metric is explained, the tree names every folder.

python tests/test_docs.py        prints the tree of README.md from the modules' docstrings
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from analysis.base import Row
from analysis.measures import load_analyses
from analysis.snapshots import Snapshot

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("babelscope", "train", "analysis", "callbacks", "data/corpus")
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGE = ROOT / "docs" / "measures.md"
WALKED = {"own_data.md"}
"""Pages whose commands are run in order, in tests/docs."""
OWN = "configs/mine.yaml"
"""Written by a reader's `train init`: commands with it are run in tests/docs, too."""
MAKERS = {"per_pair", "per_language", "over_all", "score_rows", "_row"}
"""Functions that make rows of the metric named by their first argument."""
TREE_WIDTH = 120


# files ---------------------------------------------------------------------------------------------------------------


def blocks(text: str) -> Iterator[str]:
    """Contents of fenced blocks."""
    for match in re.finditer(r"^ *```[a-z]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield match[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (path.parent / link).exists()]
    assert not missing, f"{path.name} links to {missing}"
    configs = set() if path.name in WALKED else set(re.findall(r"\bconfigs/[\w/]+\.yaml", text))
    gone = sorted(config for config in configs - {OWN} if not (ROOT / config).is_file())
    assert not gone, f"{path.name} names {gone}"


# measures ------------------------------------------------------------------------------------------------------------


def analyses() -> list[type]:
    """All analyses that a list can name."""
    from analysis.base import Analysis

    for module in pkgutil.walk_packages([str(ROOT / "analysis")], "analysis."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type] = []
    waiting = list(Analysis.__subclasses__())
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        if one.__module__.startswith("analysis.") and one.default_name:
            found.append(one)
    return sorted(set(found), key=lambda one: one.__module__)


def metrics_in_code() -> dict[str, set[str]]:
    """Names of metrics that stand in the code as strings, by file."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            given = [keyword.value for keyword in node.keywords if keyword.arg == "metric"]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in MAKERS and node.args:
                given.append(node.args[0])
            names |= {
                value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)
            }
        if names:
            found[path.name] = names
    return found


def metrics_in_docstring(analysis: type) -> set[str]:
    """Names in backticks, or at the left of a list, in what the class says of its rows."""
    from analysis.base import Row

    rows = (analysis.__doc__ or "").partition("Rows")[2].partition("Raises")[0].partition("Attachment")[0]
    names = set(re.findall(r"`([a-z][a-z0-9_]*(?:<m>)?)`", rows))
    for left in re.findall(r"^ {8}([a-z][\w, ]*?)(?: {2,}|$)", rows, re.MULTILINE):
        names |= {name.strip() for name in left.split(",") if re.fullmatch(r"[a-z][a-z0-9_]*", name.strip())}
    fields = {*Row.__dataclass_fields__, *getattr(analysis, "__dataclass_fields__", {})}
    return names - (fields - _explained()) - {"experts", "none", "undetermined", "m", "m_calibrated"}


def _explained() -> set[str]:
    return set(re.findall(r"`([a-z][a-z0-9_]*(?:<m>)?)`", PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("analysis", analyses(), ids=lambda one: one.__name__)
def test_every_analysis_and_its_metrics_are_explained(analysis: type) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"`{analysis.__module__}.{analysis.__qualname__}`" in text, (
        f"docs/measures.md: {analysis.__qualname__} is missing"
    )
    missing = sorted(metrics_in_docstring(analysis) - _explained())
    assert not missing, f"docs/measures.md does not explain {missing} of {analysis.__qualname__}"


def test_every_metric_in_the_code_is_explained() -> None:
    in_code = metrics_in_code()
    assert "shared_mismatched" in set().union(*in_code.values())
    missing = {name: sorted(metrics - _explained()) for name, metrics in in_code.items() if metrics - _explained()}
    assert not missing, f"docs/measures.md does not explain {missing}"


def test_similarities_are_explained_with_their_calibrated_form() -> None:
    from analysis.geometry.similarity import SYMMETRIC

    assert {name for measure in SYMMETRIC for name in (measure, f"{measure}_calibrated")} <= _explained()


# worked example -------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_a_measure_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_snapshot: Callable[..., Snapshot],
    tiny_xglm: PreTrainedModel,
) -> None:
    """The class in docs/extending.md is found by the name that the page gives, measures, and sees a planted scale."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code, listed = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None
    assert listed is not None
    assert len(code[1].splitlines()) <= 45
    (tmp_path / "state_norm.py").write_text(code[1], encoding="utf-8")
    (tmp_path / "list.yaml").write_text(listed[1].replace("data/", f"{ROOT}/data/"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (analysis,) = load_analyses(tmp_path / "list.yaml")
    rows = [row for row in analysis.measure(tiny_snapshot(tiny_xglm)) if isinstance(row, Row)]
    languages = {row.language for row in rows}
    assert len(languages) == 10
    assert len(rows) == 10 * len({row.layer for row in rows})
    for row in rows:
        assert row.chance is not None
        assert 0.5 < row.value / row.chance < 2


# tree ----------------------------------------------------------------------------------------------------------------


def modules(package: str) -> list[Path]:
    """Files of a package that have something in them, `__init__.py` aside."""
    found = sorted((ROOT / package).rglob("*.py"), key=lambda path: (len(path.parts), path))
    return [path for path in found if path.name != "__init__.py"]


def first_sentence(path: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?!])(?<!al\.)\s", text)[0].rstrip(".")  # not after "et al."


def folders() -> dict[str, str]:
    """Every folder of source with what its `__init__.py` says it is."""
    there = sorted({path.parent for package in PACKAGES for path in modules(package)})
    return {f"{path.relative_to(ROOT).as_posix()}/": first_sentence(path / "__init__.py") for path in there}


def tree() -> str:
    """One line a folder."""
    lines = [f"{name:<30}{about}" for name, about in folders().items()]
    assert all(len(line) <= TREE_WIDTH for line in lines), [line for line in lines if len(line) > TREE_WIDTH]
    return "\n".join(lines)


def test_the_tree_of_the_readme_is_that_of_the_code() -> None:
    advice = "`python tests/test_docs.py` prints the tree to paste into README.md"
    assert tree() in (ROOT / "README.md").read_text(encoding="utf-8"), advice


def test_every_module_says_what_it_is() -> None:
    silent = [path.name for package in PACKAGES for path in modules(package) if len(first_sentence(path)) < 20]
    assert not silent


if __name__ == "__main__":
    sys.stdout.write(tree() + "\n")
