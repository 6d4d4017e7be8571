"""The sentence under a figure: what it is, its chance, how it can mislead; read from docs/measures.md.

The page of the docs is the one place that explains metrics, so page and report cannot disagree. An installation without
the docs beside it draws figures without these sentences.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

MEASURES = Path(__file__).resolve().parents[2] / "docs" / "measures.md"

CALIBRATED = "_calibrated"
"""End of the name of a score whose chance is 0 (`Alignment`)."""
ACRONYMS = {name.lower(): name for name in ("ABX", "AP", "CKA", "LAPE", "MDL", "MEXA", "MLP")} | {"knn": "kNN"}


def explain(class_of: str, metric: str) -> str:
    """What a metric of an analysis class is, in short sentences, or "" where the page does not know it."""
    cells = _cells(class_of, metric)
    if not cells:
        return ""
    said = _plain(cells["what"])
    chance = _plain(cells.get("chance", ""))
    if metric.endswith(CALIBRATED):
        said, chance = f"{said}; calibrated: 0 is what few permutations exceed, 1 the largest possible value", "0"
    name = cells["what"].startswith("`")
    parts = {
        "": said if name else f"{said[:1].upper()}{said[1:]}",
        "Unit: ": unit_of(class_of, metric),
        "Chance: ": chance,
    }
    parts["How it can mislead: "] = trap(class_of, metric)
    return " ".join(f"{name}{part}." for name, part in parts.items() if part)


def unit_of(class_of: str, metric: str) -> str:
    """What the axis of a metric counts, or "" where the page does not know it."""
    unit = _cells(class_of, metric).get("unit", "")
    return f"{unit}, calibrated" if unit and metric.endswith(CALIBRATED) else unit


def heading_of(class_of: str) -> str:
    """What the page calls an analysis class, or ""."""
    return _sections().get(class_of, "").partition(":")[0].strip()


def in_words(name: str) -> str:
    """A metric's or an analysis's name for a reader: `ap_best` is "AP best"."""
    words = " ".join(ACRONYMS.get(word, word) for word in name.split("_"))
    return f"{words[:1].upper()}{words[1:]}"


def trap(class_of: str, metric: str = "") -> str:
    """How the numbers of an analysis class can mislead: after *Traps.* the first sentence, or those on a metric."""
    found = re.search(r"\*Traps\.\*(.*?)(?:\*Cost\.\*|\n\n|\Z)", _sections().get(class_of, ""), re.DOTALL)
    sentences = re.split(r"(?<=[.])\s+(?=[A-Z`])", " ".join(found[1].split())) if found else []
    chosen = [sentence for sentence in sentences if f"`{metric}`" in sentence] if metric else sentences[:1]
    return _plain(" ".join(chosen))


@cache
def _sections() -> dict[str, str]:
    """Class name to its section of the page."""
    if not MEASURES.is_file():
        return {}
    parts = re.split(r"^## ", MEASURES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = ((re.search(r"`analysis\.[\w.]*?(\w+)`", part.partition("\n")[0]), part) for part in parts)
    return {match[1]: part for match, part in named if match}


def _cells(class_of: str, metric: str) -> dict[str, str]:
    """Column to what the row of a metric says there, "as above" resolved; {} without one."""
    columns: list[str] = []
    above: list[str] = []
    for line in _sections().get(class_of, "").splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<= )\|(?= )", line.strip()[1:-1])]
        if cells[0] == "metric":
            columns = cells
        cells = [above[place] if cell == "as above" else cell for place, cell in enumerate(cells)]
        if columns and any(_matches(name, metric) for name in re.findall(r"`([^`]+)`", cells[0])):
            return dict(zip(columns, cells, strict=False))
        above = cells
    return {}


def _matches(name: str, metric: str) -> bool:
    return re.fullmatch(re.escape(name).replace("<m>", r"\d+"), metric) is not None


def _plain(text: str) -> str:
    """Without markup of links, code and emphasis."""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[`*\\]", "", text).strip().rstrip(".")
