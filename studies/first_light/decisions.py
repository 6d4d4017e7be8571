"""What supports, refutes or leaves open each hypothesis of the plan, as functions of the measured numbers alone.

README.md beside this file fixes the rules; tests/studies/first_light/test_decisions.py plants the truth of each.

Shapes:  R training runs (seeds)   C concepts   G groups of sentence keys   T snapshots   N capacity runs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.report.capacity.trend import trend_test
from analysis.report.tables import p_value
from analysis.statistics import Contrast, holm, student_contrast, two_way_interval

Outcome = Literal["supported", "refuted", "undecided"]
ALPHA = 0.05
AGREE = 0.8
"""Share of the seeds that must show a sign: 4 of 5."""
NO_RISE = 0.01
"""H1, H1b: a rise whose upper bound is below this is no rise."""
FALL = 0.02
"""H2: how far D must fall."""
OWN_SHARE = 0.1
"""H4: less than this share of the own-language effect is no transfer."""


@dataclass(frozen=True)
class Decision:
    """One hypothesis, decided."""

    name: str
    outcome: Outcome
    contrast: Contrast
    """The statistic with its 95 % interval and its two-sided p (of H2 against a fall by `FALL`, 1 if it falls less)."""
    by_seed: tuple[float, ...]
    visible: float
    """The smallest effect that would have been seen with a power of 80 %; of H2 the smallest fall."""
    why: str
    p_holm: float | None = None
    """Adjusted over H1 to H4; None for H1b, which is read only with H1."""
    caveat: str = ""
    """What belongs to "supported" wherever it is said."""


def decide_rise(name: str, rises: np.ndarray, clusters: np.ndarray) -> Decision:
    """H1, H1b: from rises (R, C) over the untrained network of the same seed."""
    contrast, by_seed = two_way_interval(rises, clusters), rises.mean(1)
    agree = int((by_seed > 0).sum())
    enough = name != "H1" or agree >= AGREE * len(by_seed)
    outcome: Outcome
    caveat = ""
    if contrast.low > 0 and enough:
        outcome, why = "supported", f"above 0, in {agree} of {len(by_seed)} seeds"
        caveat = f"there and small: below {NO_RISE}" if contrast.high < NO_RISE else ""
    elif contrast.high < NO_RISE:
        outcome, why = "refuted", f"below {NO_RISE}"
    else:
        outcome, why = "undecided", f"in {agree} of {len(by_seed)} seeds above 0"
    return Decision(name, outcome, contrast, _floats(by_seed), contrast.visible, why, caveat=caveat)


def dip_values(embedding: np.ndarray, middle: np.ndarray, last: np.ndarray, total: np.ndarray) -> np.ndarray:
    """What each group of keys (..., G) of right answers adds to D, with D as the mean: its linearisation.

    D is the middle's accuracy minus the larger one of both ends.
    """
    ends = np.where((embedding.sum(-1) > last.sum(-1))[..., None], embedding, last)
    number = total.sum(-1, keepdims=True)
    dip = (middle - ends).sum(-1, keepdims=True) / number
    return dip + (middle - ends - dip * total) * total.shape[-1] / number


def widest_place(dips: np.ndarray) -> int:
    """Which of the snapshots the first seed of D (R, T, G) chooses: where its D is largest."""
    return int(dips[0].mean(-1).argmax())


def decide_dip(steps: Sequence[int], dips: np.ndarray, middle: np.ndarray) -> Decision:
    """H2: from D by seed, snapshot and group of keys (R, T, G), and the middle's accuracy (R, T).

    The first seed chooses the step at which D is largest; the others test. A refutation goes before a support. D may
    fall because the ends rise, or be largest before anything is learned, so the levels at both steps are told too.
    """
    chosen = widest_place(dips)
    falls = dips[:, -1] - dips[:, chosen]  # (R, G)
    contrast = two_way_interval(falls[1:])
    by_seed = falls.mean(-1)
    kept = int((by_seed >= 0).sum())
    rising = int((middle.argmax(1) == middle.shape[1] - 1).sum())
    needed = AGREE * len(dips)
    outcome: Outcome
    if kept >= needed or rising >= needed:
        outcome = "refuted"
        why = f"D does not fall in {kept} of {len(dips)} seeds; the middle is best at the last step in {rising}"
    elif contrast.high < -FALL:
        outcome, why = "supported", f"D falls by more than {FALL}"
    else:
        outcome, why = "undecided", f"the interval does not lie below -{FALL}"
    (level, known), (end, end_known) = ((dips[:, at].mean(), middle[:, at].mean()) for at in (chosen, -1))
    why += (
        f"; from step {steps[chosen]:,}, which seed 1 chose, to the last: D {level:+.3f} to {end:+.3f}, "
        f"the middle's accuracy {known:.3f} to {end_known:.3f}"
    )
    caveat = "beside the ends alone: the middle knows the language better at the end" if end_known > known else ""
    against = two_way_interval(falls[1:] + FALL)
    found = replace(contrast, p=against.p if against.difference < 0 else 1.0)
    visible = FALL + contrast.visible  # the interval must lie below the fall that counts
    return Decision("H2", outcome, found, _floats(by_seed), visible, why, caveat=caveat)


def width_slope(widths: Sequence[int], seeds: Sequence[int], values: Sequence[float]) -> Contrast:
    """How a value (N,) changes from one width to the next (one octave), over runs that differ in width and seed.

    Least squares on log2 of the width with a level for each seed; p is exact, by exchanges of widths within seeds.
    """
    x, y = np.log2(np.asarray(widths, dtype=np.float64)), np.asarray(values, dtype=np.float64)
    levels = np.array([np.asarray(seeds) == seed for seed in dict.fromkeys(seeds)], dtype=np.float64)
    x, y = (one - levels.T @ (levels @ one / levels.sum(1)) for one in (x, y))
    freedom = len(x) - len(levels) - 1
    slope = float(x @ y / (x @ x))
    contrast = student_contrast(slope, [(float(((y - slope * x) ** 2).sum() / freedom / (x @ x)), freedom)])
    return replace(contrast, p=trend_test(widths, values, seeds).p)


def decide_capacity(
    widths: Sequence[int], seeds: Sequence[int], at_tokens: Sequence[float], at_loss: Sequence[float]
) -> Decision:
    """H3: from the rise of R over its ceiling of every run (N,), at equal tokens and at equal held-out loss.

    With few runs no outcome has a p below `ALPHA`: then that is said, and no effect would have been seen.
    """
    slopes = [width_slope(widths, seeds, values) for values in (at_tokens, at_loss)]
    seen = all(slope.p < ALPHA for slope in slopes)
    signs = {float(np.sign(slope.difference)) for slope in slopes}
    outcome: Outcome = "undecided"
    if seen and signs in ({-1.0}, {1.0}):
        outcome = "supported" if signs == {-1.0} else "refuted"
    why = "per doubling of the width: " + ", ".join(
        f"{slope.difference:+.4f} at equal {what} (p {p_value(slope.p)})"
        for slope, what in zip(slopes, ("tokens", "loss"), strict=True)
    )
    own = []
    for seed in sorted(set(seeds)):
        rows = [place for place, other in enumerate(seeds) if other == seed]
        if len({widths[place] for place in rows}) > 1:
            own.append(float(np.polyfit(np.log2([widths[i] for i in rows]), [at_tokens[i] for i in rows], 1)[0]))
    contrast = replace(slopes[0], p=max(slope.p for slope in slopes))
    visible = max(slope.visible for slope in slopes)
    smallest = max(trend_test(widths, values, seeds).smallest_p for values in (at_tokens, at_loss))
    if smallest >= ALPHA:
        visible = float("nan")
        why = f"{len(widths)} runs cannot decide it, their smallest p is {p_value(smallest)}; {why}"
    return Decision("H3", outcome, contrast, tuple(own), visible, why)


def decide_transfer(gains: np.ndarray, own: float, clusters: np.ndarray) -> Decision:
    """H4: from causal transfer (R, C) over pairs without a common script, and the own-language effect."""
    contrast, by_seed = two_way_interval(gains, clusters), gains.mean(1)
    share = f"{contrast.difference / own:.0%} of the own-language effect ({own:.4f})" if own > 0 else "no own effect"
    outcome: Outcome = "undecided"
    caveat, small = "", contrast.high < OWN_SHARE * own
    if contrast.low > 0:
        outcome, caveat = "supported", f"there and small: {share}" if small else ""
    elif small:
        outcome = "refuted"
    return Decision("H4", outcome, contrast, _floats(by_seed), contrast.visible, share, caveat=caveat)


def correct(decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """The decisions with p adjusted over H1 to H4, one that was not measured counting as p = 1.

    What its own interval supports but the family of tests does not is undecided.
    """
    family = ("H1", "H2", "H3", "H4")
    adjusted = dict(
        zip(family, holm([decisions[n].contrast.p if n in decisions else 1.0 for n in family]), strict=True)
    )
    found = {}
    for name, decision in decisions.items():
        p = adjusted.get(name)
        if p is not None and p >= ALPHA and decision.outcome == "supported":
            why = f"{decision.why}; not after Holm's correction"
            decision = replace(decision, outcome="undecided", why=why)
        found[name] = replace(decision, p_holm=p)
    return found


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, values))
