"""Errors as one line that a person can act upon; of refusals of the parser the key, the value, and what would do."""

from __future__ import annotations

import re
from collections.abc import Callable

BRANCHES = ("Expected a", "Not a valid", "Not of type", "Unable to", "Problem with given class_path")
"""How jsonargparse begins to say that one branch of a union does not fit; what else it says was meant."""
LONGEST = 600
"""Characters of a line on the terminal: some libraries answer with a page."""
UNION = (
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: (.*) "
    r"Given value type: .*? Given value: "
)


def one_line(error: BaseException, width: int = 200) -> str:
    """The message of an error in one line of at most `width` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."


def reword(error: BaseException, classes_of: Callable[[str], list[str]] = lambda key: []) -> str:
    """What jsonargparse says of one wrong word, in one short line; of other errors the whole message in one line.

    Keys are joined (`source.loading.dtype`), a union is cut to the types that it takes, and a class that does not exist
    is answered with those that do.

    Args:
        classes_of: names of the classes that an option takes.
    """
    text = " ".join(str(error).split()) or type(error).__name__
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
        names = classes_of(keys[0] if keys else "")
        if names and (match[1] or match[2].rpartition(".")[2] not in names):
            text = f"there is no class {match[1] or match[2]!r}; choose {', '.join(names)}"
    text = re.sub(r"Problem with given class_path '?(?:\w+\.)*(\w+)'?: ", r"\1: ", text)
    file = where[1] if where and where[1] and where[1] != "analyses: " else ""
    return one_line(ValueError(f"{file}{key}: {text}" if key else text), LONGEST)


def _union(errors: str) -> str:
    """The types that a union takes, from the errors of its branches; a branch with more to say is kept whole."""
    branches = [branch.strip() for branch in re.split(r"(?:^|\s)- ", errors) if branch.strip()]
    if meant := [branch for branch in branches if not branch.startswith(BRANCHES)]:
        return meant[0]
    kinds = re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", errors)
    # Sorted: `int | float` and `float | int` are one object to `typing`, in the order that came first in the process.
    return "expected " + (
        " or ".join(sorted({"null" if kind == "NoneType" else kind for kind in kinds})) or branches[0]
    )
