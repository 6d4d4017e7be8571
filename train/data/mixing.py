"""How often each language is seen: temperature, explicit weights or a budget of tokens.

A mixture turns tokens per language into probabilities; `train.data.sampling` turns probabilities into a schedule.
Temperature sampling p_l ~ n_l^alpha is that of XLM (Conneau and Lample 2019) and XLM-R (alpha = 0.3, which is the
default here because the paper that this repository follows does not state its own).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def temperature_shares(sizes: Mapping[str, int], alpha: float) -> dict[str, float]:
    """n_l^alpha / sum of n^alpha for every language, in the order of `sizes`. All sizes must be positive."""
    logs = {language: alpha * math.log(size) for language, size in sizes.items()}
    largest = max(logs.values())
    powers = {language: math.exp(value - largest) for language, value in logs.items()}
    total = sum(powers.values())
    return {language: power / total for language, power in powers.items()}


@dataclass(frozen=True)
class Mixture:
    """Shares of the languages in every stretch of training. At most one of `weights` and `token_budget` is given."""

    alpha: float = 0.3
    """Exponent of p_l ~ n_l^alpha over training tokens: 1 = by size, 0 = all equal. Unused with the two below."""
    weights: dict[str, float] | None = None
    """Relative weight of every language, any scale."""
    token_budget: dict[str, int] | None = None
    """Tokens of every language in the whole run; only their ratio enters the schedule."""

    def __post_init__(self) -> None:
        if self.weights is not None and self.token_budget is not None:
            raise ValueError("mixing: give weights or token_budget, not both")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"mixing: alpha must lie in [0, 1], got {self.alpha}")
        for name, values in (("weights", self.weights), ("token_budget", self.token_budget)):
            for language, value in (values or {}).items():
                if not (value > 0 and math.isfinite(value)):
                    raise ValueError(
                        f"mixing: {name} of {language!r} must be positive, got {value}; leave it out of "
                        "data.languages to train without it"
                    )

    def probabilities(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Probability of every language, sorted by language.

        Args:
            tokens: tokens of the training split per language.

        Raises:
            ValueError: weights for a language that is not there, or a language without a weight.
        """
        tokens = dict(sorted(tokens.items()))
        explicit = self.weights if self.weights is not None else self.token_budget
        if explicit is None:
            return temperature_shares(tokens, self.alpha)
        name = "weights" if self.weights is not None else "token_budget"
        if unknown := sorted(set(explicit) - set(tokens)):
            raise ValueError(f"mixing: {name} for {', '.join(unknown)}, but the data has {', '.join(tokens)}")
        if missing := sorted(set(tokens) - set(explicit)):
            raise ValueError(f"mixing: no {name} for {', '.join(missing)}; give one or take it from data.languages")
        total = sum(explicit.values())
        return {language: explicit[language] / total for language in tokens}

    def as_dict(self) -> dict:
        """What identifies the mixture (for checkpoints and logs): only the setting that is in force."""
        if self.weights is not None:
            return {"weights": dict(sorted(self.weights.items()))}
        if self.token_budget is not None:
            return {"token_budget": dict(sorted(self.token_budget.items()))}
        return {"alpha": self.alpha}


def expected_epochs(
    probabilities: Mapping[str, float], tokens: Mapping[str, int], total_tokens: int
) -> dict[str, float]:
    """How often each language's text is read in a run of `total_tokens` tokens."""
    return {language: share * total_tokens / tokens[language] for language, share in probabilities.items()}


def format_mixture(probabilities: Mapping[str, float], tokens: Mapping[str, int], total_tokens: int) -> Sequence[str]:
    """One line a language: share, tokens at hand, tokens in the run, epochs."""
    epochs = expected_epochs(probabilities, tokens, total_tokens)
    header = f"{'language':<10}{'share':>8}{'tokens':>16}{'in the run':>16}{'epochs':>9}"
    return [header] + [
        f"{language:<10}{share:>8.4f}{tokens[language]:>16,}{round(share * total_tokens):>16,}{epochs[language]:>9.2f}"
        for language, share in probabilities.items()
    ]
