"""The arrows of the architecture: callbacks -> analysis; train and analysis import neither of the others; all import
babelscope, which imports none; inside `analysis` folders import downwards only; no module is in a circle."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("babelscope", "train", "analysis", "callbacks", "data/corpus")
FORBIDDEN = {
    "babelscope": {"train", "analysis", "callbacks", "torch", "transformers"},
    "train": {"analysis", "callbacks", "wandb"},
    "analysis": {"train", "callbacks", "pytorch_lightning", "lightning", "wandb"},
    "callbacks": {"train", "wandb"},
    "data/corpus": {"train", "analysis", "callbacks", "torch"},
}
HOOK_METHODS = {"register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def imported(path: Path) -> set[str]:
    """Top-level names of all imports of a file, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


WITH_WANDB = "analysis/tracking"
"""The one folder that makes W&B pages; it imports W&B inside functions only, so that a measurement needs none of it."""


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): crossing
        for path in sources(package)
        if (crossing := imported(path) & FORBIDDEN[package] - ({"wandb"} if in_page_folder(path) else set()))
    }
    assert not wrong


def in_page_folder(path: Path) -> bool:
    return path.parent == ROOT / WITH_WANDB


def test_wandb_is_imported_only_when_a_page_is_made() -> None:
    at_import = {
        path.name
        for path in sources(WITH_WANDB)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "wandb" in ast.unparse(node).split()[1].split(".")[0]
    }
    assert not at_import


RANKS = (
    {
        "analysis.cost",
        "analysis.geometry",
        "analysis.onsets",
        "analysis.permutation",
        "analysis.snapshots",
        "analysis.statistics",
        "analysis.texts",
    },
    {"analysis.base", "analysis.concepts", "analysis.extraction", "analysis.preflight"},
    {"analysis.experts", "analysis.probes", "analysis.results"},
    {"analysis.checkpoints"},
    {"analysis.steering"},
    {"analysis.measures", "analysis.preregistration", "analysis.report", "analysis.tracking"},
    {"analysis.commands"},
    {"analysis.__main__"},
)
"""Folders and files of `analysis`, lowest first: one may import what stands above it here, and its equals."""


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules of this project that a file imports, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in below if is_module(name)}
            names |= modules
            if modules != below:
                names.add(node.module)
    return {name for name in names if is_module(name)}


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def rank_of(module: str) -> int:
    part = ".".join(module.split(".")[:2])
    return next(rank for rank, parts in enumerate(RANKS) if part in parts)


def test_folders_of_analysis_import_downwards_only() -> None:
    upwards = {
        f"{module_name(path)} -> {target}"
        for path in sources("analysis")
        for target in imported_modules(path)
        if target.startswith("analysis.") and rank_of(target) > rank_of(module_name(path))
        if module_name(path) != "analysis"
    }
    assert not upwards


def test_modules_form_no_cycle() -> None:
    graph = {module_name(path): imported_modules(path) for package in PACKAGES for path in sources(package)}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for target in sorted(graph.get(name, ())):
            visit(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


FULL_FOLDER = 13
"""Files of source in one folder, `__init__.py` aside."""


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_is_a_hall(package: str) -> None:
    full = {
        str(folder.relative_to(ROOT)): len(files)
        for folder in {path.parent for path in sources(package)}
        if len(files := [path for path in folder.glob("*.py") if path.name != "__init__.py"]) > FULL_FOLDER
    }
    assert not full


def test_hooks_are_registered_in_one_file_only() -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in HOOK_METHODS
    }
    assert users == {"analysis/extraction/hooks.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    for module in pkgutil.walk_packages([str(ROOT / package)], prefix=package.replace("/", ".") + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_no_test_folder_shadows_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_models_are_loaded_without_pickle_or_remote_code(package: str) -> None:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            options = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            called = ast.unparse(node.func)
            unsafe_options = [("trust_remote_code", True), ("shell", True)]
            if not called.endswith("save_checkpoint"):  # there `weights_only` says what is written
                unsafe_options.append(("weights_only", False))
            for option, unsafe in unsafe_options:
                value = options.get(option)
                assert not (isinstance(value, ast.Constant) and value.value is unsafe), f"{path}:{node.lineno}"
            assert called not in {"pickle.load", "pickle.loads", "joblib.load"}, f"{path}:{node.lineno}"
            if called == "torch.load":
                assert "weights_only" in options, f"{path}:{node.lineno}"


@pytest.mark.parametrize("package", ["train", "analysis"])
@pytest.mark.parametrize("given", [None, "active"])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(package: str, given: str | None) -> None:
    """The OpenMP runtime reads the variable when torch is loaded, so it must be set by then."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    program = (
        f"import os, sys; from {package}.__main__ import main; main([]); "
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == f"{given or 'passive'} False"
