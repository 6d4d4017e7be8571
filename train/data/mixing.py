"""How often each language is seen (temperature, explicit weights or a budget of tokens), and in what order its text.

A mixture turns tokens per language into probabilities, a sample order turns probabilities into the samples of a run.
Temperature sampling p_l ~ n_l^alpha is that of XLM (Conneau and Lample 2019) and XLM-R (alpha = 0.3, which is the
default here because the paper that this repository follows does not state its own).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Shapes: N samples of a run   E epochs   B blocks of one language


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
    """Tokens of every language in the whole run; only their ratio enters the order."""

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


ORDER_VERSION = 2
"""Raised when the same seed gives another order; compared with that of a checkpoint."""
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / phi, odd."""


class SampleOrder:
    """Which block of which language is the i-th sample of a run: two arrays, made once, 5 bytes a sample.

    A pure function of the seed and i, whatever the run's length: a resumed or lengthened run needs to know its step
    alone, and the global batch of a step does not depend on how many devices, workers or micro-batches share it.

    *Language.* Sample i takes the language into whose interval of [0, 1) the point frac(i phi + u) falls, phi being the
    golden ratio, an interval as long as the language's probability, and u a hash of the seed. Every stretch of such a
    Kronecker sequence holds each language in its share almost exactly (independent draws scatter by sqrt(N)).

    *Block.* The samples of a language go through its blocks epoch after epoch, each epoch in a random order of its own:
    the ranks of random numbers, drawn as raw bits because NumPy keeps only those the same over its versions.

    Args:
        probabilities: share of each language; they sum to 1.
        num_blocks: blocks of each language, at least 1.
        seed: another seed shifts the languages and reorders every epoch.
        num_samples: of the whole run (N).

    Raises:
        ValueError: a language without a block.
    """

    def __init__(
        self, probabilities: Mapping[str, float], num_blocks: Mapping[str, int], seed: int, num_samples: int
    ) -> None:
        assert probabilities.keys() == num_blocks.keys()
        assert abs(sum(probabilities.values()) - 1) < 1e-9
        if empty := [language for language in sorted(num_blocks) if num_blocks[language] < 1]:
            raise ValueError(f"no block of text for {', '.join(empty)}")
        self._arguments = (dict(probabilities), dict(num_blocks), seed, num_samples)
        self.languages = tuple(sorted(probabilities))
        bounds = np.cumsum([probabilities[language] for language in self.languages])[:-1]
        bounds = np.array([min(2**64 - 1, round(float(bound) * 2**64)) for bound in bounds], dtype=np.uint64)
        points = np.arange(num_samples, dtype=np.uint64) * np.uint64(GOLDEN)  # modulo 2^64 by overflow
        points += np.uint64(_key("language", seed) % 2**64)
        self._language = np.searchsorted(bounds, points, side="right").astype(np.min_scalar_type(len(bounds)))
        del points
        self._block = np.empty(num_samples, dtype=np.uint32)
        for position, language in enumerate(self.languages):
            chosen = self._language == position
            key = _key("block", seed, language)
            self._block[chosen] = _shuffled_epochs(num_blocks[language], int(chosen.sum()), key)

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Languages (count,) as indices into `languages`, and blocks (count,), of the samples from `start` on."""
        assert 0 <= start <= start + count <= len(self._block)
        return self._language[start : start + count], self._block[start : start + count]

    def __reduce__(self) -> tuple:
        return SampleOrder, self._arguments  # a worker that is not forked makes the arrays again


def _shuffled_epochs(size: int, count: int, key: int) -> np.ndarray:
    """The first `count` of an endless row of permutations of `size` numbers, uint32 (count,)."""
    stream = np.random.Philox(key=key)
    result = np.empty(count, dtype=np.uint32)
    at_once = max(1, (1 << 20) // size)  # epochs: bounds the memory, and the raw bits go on where they stopped
    for start in range(0, count, at_once * size):
        epochs = min(at_once, -(-(count - start) // size))
        orders = np.argsort(stream.random_raw(epochs * size).reshape(epochs, size), axis=1, kind="stable")
        result[start : start + epochs * size] = orders.ravel()[: count - start]
    return result


def _key(*parts: int | str) -> int:
    """128 bits from a hash of the parts."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest(), "little")
