"""Refusals of the parser, cut to the line that helps: the key, the value, and what would do."""

from __future__ import annotations

import re

UNION = (
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: (.*) "
    r"Given value type: .*? Given value: "
)


def reword(message: str) -> str:
    """What jsonargparse says of one wrong word, in one short line.

    Keys are joined (`source.loading.dtype`), a union is cut to the types that it takes, and a class that does not exist
    is answered with those that do.
    """
    text = " ".join(message.split())
    where = re.match(r"(\S+\.ya?ml: |analyses: )?(?=Parser key)", text)
    text = text[where.end() :] if where else text
    keys = []
    while match := re.match(r'Parser key "([^"]+)": (?:Problem with given class_path \S+: (?=Parser key))?', text):
        keys.append(match[1])
        text = text[match.end() :]
    key = ".".join(keys)
    text = re.sub(UNION, lambda match: f"{_union(match[1])}, got ", text)
    text = re.sub(r"Expected an? typing\.Literal\[([^]]*)\]\. Got value: ", r"expected one of \1, got ", text)
    if match := re.fullmatch(
        r"Expected a dot import path string: (.*)|Problem with given class_path '?([\w.]+).*", text
    ):
        names = _classes(keys[0] if keys else "")
        if names and (match[1] or match[2].rpartition(".")[2] not in names):
            text = f"there is no class {match[1] or match[2]!r}; choose {', '.join(names)}"
    text = re.sub(r"Problem with given class_path '?(?:\w+\.)*(\w+)'?: ", r"\1: ", text)
    file = where[1] if where and where[1] and where[1] != "analyses: " else ""
    return f"{file}{key}: {text}" if key else text


def _union(errors: str) -> str:
    """The types that a union takes, from the errors of its branches; a branch with more to say is kept whole."""
    branches = [branch.strip() for branch in re.split(r"(?:^|\s)- ", errors) if branch.strip()]
    types = [match[1] for branch in branches if (match := re.fullmatch(r"Expected an? <class '(\w+)'>.*", branch))]
    longer = [branch for branch in branches if not branch.startswith("Expected a")]
    if longer:
        return longer[0]
    return "expected " + (
        " or ".join(sorted({"null" if name == "NoneType" else name for name in types})) or branches[0]
    )


def _classes(key: str) -> list[str]:
    """Names of the classes that an option takes."""
    if key == "source":
        from analysis.checkpoints import CheckpointSource as Base
    elif key == "executor":
        from analysis.checkpoints.executors import Executor as Base  # type: ignore[assignment]
    elif key == "analyses":
        from analysis.base import Analysis as Base  # type: ignore[assignment]
    else:
        return []
    waiting, found = [Base], []
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found += [cls.__name__ for cls in subclasses if not getattr(cls, "__abstractmethods__", None)]
    return sorted(found)
