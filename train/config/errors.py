"""Errors as one line that a person can act upon."""

from __future__ import annotations

import re

BRANCHES = ("Expected a", "Not a valid", "Not of type", "Unable to", "Problem with given class_path")
"""How jsonargparse begins to say that one branch of a union does not fit; what else it says was meant."""


def one_line(error: BaseException, width: int = 600) -> str:
    """The message of an error without line breaks; of jsonargparse's page about a union, the branch that was meant."""
    text = str(error)
    if "Union subtypes" in text:
        text = _of_union(text)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= width else text[:width] + " ..."


def _of_union(text: str) -> str:
    found = re.search(r'Parser key "([^"]+)"', text)
    key = f"{found[1]}: " if found else ""
    errors = [line.strip(" -") for line in text.splitlines() if re.match(r"\s*- ", line)]
    meant = [line for line in errors if not line.startswith(BRANCHES)]
    if meant:
        return key + meant[0]
    given = re.findall(r"Given value: (.*)", text)
    kinds = re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", text)
    # Sorted: `int | float` and `float | int` are one object to `typing`, in the order that came first in the process.
    allowed = " or ".join(sorted({"null" if kind == "NoneType" else kind for kind in kinds}))
    return f"{key}expected {allowed or 'another type'}, got {given[-1] if given else 'something else'}"
