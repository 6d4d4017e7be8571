"""The arrows of the architecture: callbacks -> analysis; train and analysis import neither of the others."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("train", "analysis", "callbacks")
FORBIDDEN = {
    "train": {"analysis", "callbacks", "wandb"},
    "analysis": {"train", "callbacks", "pytorch_lightning", "lightning", "wandb"},
    "callbacks": {"train"},
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


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): crossing
        for path in sources(package)
        if (crossing := imported(path) & FORBIDDEN[package])
    }
    assert not wrong


def test_modules_inside_analysis_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources("analysis"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        edges = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # module level: what really happens at import
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("analysis"):
                edges.add(node.module or "")
        graph[name] = edges
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for target in graph.get(name, ()):
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_hooks_are_registered_in_one_file_only() -> None:
    users = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in HOOK_METHODS
    }
    assert users == {"analysis/hooks.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports(package: str) -> None:
    for module in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}."):
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
