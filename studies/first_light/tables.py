"""Every table and figure of docs/first_light.md from the committed `results/*.parquet`, without training.

    python -m studies.first_light.tables            what studies/first_light/run.sh --tables does
    python -m studies.first_light.tables --results DIR --out DIR --partial       a trial on unfinished runs

Writes the results part of the page, between two marks, and the figures as SVG. The same tables give the same bytes. As
long as not all five seeds are finished the page says so and shows nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.first_light.contents import ANSWERS, DETAILS, is_measured
from studies.first_light.panels import draw_figures
from studies.first_light.study import LAST, SEEDS, Study

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: made by studies/first_light/tables.py -->", "<!-- end of results -->"


def results_part(study: Study, figures: Sequence[tuple[str, str]]) -> str:
    """The page's part on results: what is decided, figures (file, caption), then all other tables."""
    before, after = (
        [table.markdown() for make in part if is_measured(study, make) and (table := make(study)).rows]
        for part in (ANSWERS, DETAILS)
    )
    return "\n".join([*before, *(f"![{caption}]({name})\n\n{caption}\n" for name, caption in figures), *after])


def status(study: Study) -> str:
    """What there is, in a sentence."""
    if len(study.finished) == SEEDS:
        return f"All {SEEDS} seeds are trained, and R is measured from step 0 to step {LAST:,} in all of them."
    there = "; ".join(f"seed {seed} up to step {steps[-1]:,}" for seed, steps in study.steps_of.items())
    return (
        f"The seeds are not finished: {len(study.finished)} of {SEEDS} are trained and measured to step {LAST:,}"
        f"{f' ({there})' if there else ''}. No result is shown before, since the plan decides by all of them."
    )


def make_page(page: str, study: Study, figures: Sequence[tuple[str, str]], *, partial: bool = False) -> str:
    """`page` with its results part made anew.

    Raises:
        ValueError: the page lacks the marks between which results stand.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no part between {BEGIN!r} and {END!r}")
    shown = len(study.finished) == SEEDS or partial
    body = results_part(study, figures) if shown else ""
    return f"{before}{BEGIN}\n\n{status(study)}\n\n{body}{chr(10) if body else ''}{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="tables and figures of the first study from its committed results")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of *.parquet")
    parser.add_argument("--page", type=Path, default=HERE.parents[1] / "docs" / "first_light.md")
    parser.add_argument("--out", type=Path, default=None, help="write page and figures here instead")
    parser.add_argument("--partial", action="store_true", help="also of unfinished seeds; needs --out")
    options = parser.parse_args(arguments)
    if options.partial and options.out is None:
        parser.error("--partial is for trials: name a folder with --out")
    study = Study.read(options.results)
    shown = len(study.finished) == SEEDS or (options.partial and len(study.steps_of) > 1)
    figures = options.out or HERE / "figures"
    names = []
    if shown:
        figures.mkdir(parents=True, exist_ok=True)
        for name, caption, svg in draw_figures(study):
            (figures / f"{name}.svg").write_text(svg, encoding="utf-8")
            where = f"{name}.svg" if options.out else f"../studies/first_light/figures/{name}.svg"
            names.append((where, caption))
        if not options.out:
            for old in set(figures.glob("*.svg")) - {figures / Path(where).name for where, _ in names}:
                old.unlink()
    page = options.out / options.page.name if options.out else options.page
    page.parent.mkdir(parents=True, exist_ok=True)
    made = make_page(options.page.read_text(encoding="utf-8"), study, names, partial=shown)
    page.write_text(made, encoding="utf-8")
    sys.stdout.write(f"{status(study)}\n{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
