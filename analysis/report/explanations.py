"""The sentence under a figure: what it is, its chance, how it can mislead; read from docs/measures.md.

The page of the docs is the one place that explains metrics, so page and report cannot disagree. An installation without
the docs beside it draws figures without these sentences.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

MEASURES = Path(__file__).resolve().parents[2] / "docs" / "measures.md"


def explain(class_of: str, metric: str) -> str:
    """One or two sentences on a metric of an analysis class, or "" where the page does not know it."""
    section = _sections().get(class_of, "")
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if line.startswith("|") and len(cells) > 1 and any(_matches(name, metric) for name in names):
            head = _columns(section)
            what = dict(zip(head, cells, strict=False))
            said = _plain(what.get("what", cells[-1]))
            said = f"{said[:1].upper()}{said[1:]}."
            chance = _plain(what.get("chance", ""))
            return " ".join(part for part in (said, f"Chance: {chance}." if chance else "") if part)
    return ""


def trap(class_of: str) -> str:
    """How the numbers of an analysis class can mislead: the first sentences after *Traps.* in its section."""
    found = re.search(r"\*Traps\.\*(.*?)(?:\*Cost\.\*|\Z)", _sections().get(class_of, ""), re.DOTALL)
    sentences = re.split(r"(?<=[.])\s+(?=[A-Z])", _plain(" ".join(found[1].split()))) if found else []
    return sentences[0] if sentences else ""


@cache
def _sections() -> dict[str, str]:
    """Class name to its section of the page."""
    if not MEASURES.is_file():
        return {}
    parts = re.split(r"^## ", MEASURES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = ((re.search(r"`analysis\.[\w.]*?(\w+)`", part.partition("\n")[0]), part) for part in parts)
    return {match[1]: part for match, part in named if match}


def _columns(section: str) -> list[str]:
    head = re.search(r"^\| metric .*$", section, re.MULTILINE)
    return [cell.strip() for cell in head[0].strip("|").split("|")] if head else []


def _matches(name: str, metric: str) -> bool:
    return re.fullmatch(re.escape(name).replace("<m>", r"\d+"), metric) is not None


def _plain(text: str) -> str:
    """Without markup of links, code and emphasis."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[`*\\]", "", text).strip().rstrip(".")
