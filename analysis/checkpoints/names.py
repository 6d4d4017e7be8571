"""Checkpoint names to training steps and tokens, and selections of steps.

Suites name their checkpoints differently: `global_step1000` (BLOOM), `stage1-step-40000` (SmolLM3),
`step50000-tokens210B` (Apertus, OLMo), `checkpoint_0047000` (HPLT), `step143000` (Pythia), bare numbers (B-GPT),
`step-001000-2BT` (FineWeb ablations), `step_00000016` (our own run folders); some name nothing but a count of tokens
(`100B`, Poro) or words (`chck_10M`, BabyLM).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

STEP_PATTERNS = (
    re.compile(r"(?:^|[^a-z])(?:global[-_]?)?steps?[-_=]?(\d+)", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt|iter(?:ation)?)[-_=]?(\d+)", re.IGNORECASE),
    re.compile(r"^(\d+)$"),
)
"""Tried in this order; group 1 is the optimizer step."""

TOKEN_PATTERNS = (
    re.compile(r"tokens[-_]?(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE),
    re.compile(r"(?:^|[^\d.A-Za-z])(\d+(?:\.\d+)?)([MBT])T?$", re.IGNORECASE),
)
"""Group 1 a number, group 2 its unit: M, B or T (10^6, 10^9, 10^12 tokens)."""


@dataclass(frozen=True, kw_only=True)
class BatchRamp:
    """A global batch that grows while training begins, as Megatron's `--rampup-batch-size` lets it.

    From `start` sequences it grows by `increment`, in equal shares of the first `samples` sequences, up to `batch`.
    """

    start: int
    """Sequences in the first batch."""
    increment: int
    """Sequences by which the batch grows at a time."""
    samples: int
    """Sequences over which it grows."""
    batch: int
    """Sequences in a batch from then on."""
    sequence_length: int
    """Tokens in a sequence."""

    def __post_init__(self) -> None:
        for name in ("start", "increment", "samples", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"naming.ramp: {name} is {getattr(self, name)}; at least 1 is needed")
        if self.batch <= self.start or (self.batch - self.start) % self.increment:
            raise ValueError(
                f"naming.ramp: {self.start} grows by {self.increment} and so never is {self.batch}; "
                "batch - start must be a multiple of increment"
            )

    def tokens(self, step: int) -> int:
        """Tokens seen after `step` optimizer steps."""
        return self._samples(step) * self.sequence_length

    def step(self, tokens: int) -> int:
        """The step at which the tokens seen come closest to `tokens`."""
        low, high = 0, tokens // (self.start * self.sequence_length) + 1
        while low < high:  # the first step with at least as many
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.tokens(middle) < tokens else (low, middle)
        return min((max(low - 1, 0), low), key=lambda step: abs(self.tokens(step) - tokens))

    def _samples(self, step: int) -> int:
        seen, stages = 0, (self.batch - self.start) // self.increment
        for stage in range(stages):
            size = self.start + stage * self.increment
            # A batch has this size until (stage + 1) of the equal shares have been seen before it.
            missing = (stage + 1) * self.samples - seen * stages
            taken = min(step, max(0, -(-missing // (stages * size))))
            seen, step = seen + taken * size, step - taken
        return seen + step * self.batch


UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How the names of one suite are read.

    Raises:
        ValueError: a pattern is not a regular expression or lacks its group.
    """

    step_pattern: str | None = None
    """Regular expression whose group 1 is the step; None tries `STEP_PATTERNS`."""
    tokens_pattern: str | None = None
    """Regular expression whose group 1 is a number and group 2, if any, its unit (K, M, B, T)."""
    tokens_per_step: int | None = None
    """Global batch size in tokens. It wins over a count in the name, which is rounded."""
    ramp: BatchRamp | None = None
    """In place of `tokens_per_step` where the batch grew at first (BLOOM, Lucie)."""
    counts: Literal["tokens", "words"] | None = None
    """What names count that tell no step at all (`100B`, `chck_10M`). Where neither `tokens_per_step` nor `ramp` gives
    the step, it is the count in millions, which keeps the order."""
    tokens_per_word: float | None = None
    """With `counts: words`: tokens of the suite's tokenizer in a word; without it tokens are unknown."""

    def __post_init__(self) -> None:
        for option in ("step_pattern", "tokens_pattern"):
            pattern = getattr(self, option)
            if pattern is None:
                continue
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{option} {pattern!r} is not a regular expression: {error}") from None
            if groups < 1:
                raise ValueError(f"{option} {pattern!r} needs a group, as in 'step(\\d+)'")
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise ValueError(
                f"tokens_per_step is {self.tokens_per_step}; it is the global batch size in tokens, above 0"
            )
        if self.tokens_per_step is not None and self.ramp is not None:
            raise ValueError("naming: tokens_per_step and ramp both say how large a batch is; give one of them")
        if self.tokens_per_word is not None and (self.counts != "words" or not 0 < self.tokens_per_word < 1000):
            raise ValueError(f"tokens_per_word is {self.tokens_per_word}; it belongs to counts: words and is above 0")

    def step(self, name: str) -> int | None:
        """The optimizer step that `name` tells, or None. Only the last part of a path is read."""
        last = name.rstrip("/").rsplit("/", 1)[-1]
        if self.step_pattern is not None:
            match = re.search(self.step_pattern, name)
            return int(match[1]) if match else None
        for pattern in STEP_PATTERNS:
            match = pattern.search(last)
            if match:
                return int(match[1])
        count, tokens = self._count_in(name), self._tokens_in(name)
        if tokens is not None and self.ramp is not None:
            return self.ramp.step(tokens)
        if tokens is not None and self.tokens_per_step is not None:
            return round(tokens / self.tokens_per_step)
        if count is None or self.counts is None or count % 10**6:
            return None
        return count // 10**6

    def tokens(self, name: str, step: int) -> int | None:
        """Tokens seen at `step`: exact from the batch size, else as the name tells, else None (0 at step 0)."""
        if self.ramp is not None:
            return self.ramp.tokens(step)
        if self.tokens_per_step is not None:
            return step * self.tokens_per_step
        told = self._tokens_in(name)
        return 0 if told is None and step == 0 else told

    def _tokens_in(self, name: str) -> int | None:
        count = self._count_in(name)
        if count is None or self.counts != "words":
            return count
        return None if self.tokens_per_word is None else round(count * self.tokens_per_word)

    def _count_in(self, name: str) -> int | None:
        last = name.rstrip("/").rsplit("/", 1)[-1]
        patterns = TOKEN_PATTERNS if self.tokens_pattern is None else (re.compile(self.tokens_pattern),)
        for pattern in patterns:
            match = pattern.search(last)
            if match:
                unit = match[2] if pattern.groups > 1 else ""
                return round(float(match[1]) * UNITS[(unit or "").upper()])
        return None


def select_steps(steps: Sequence[int], selection: int | Sequence[int] | str) -> list[int]:
    """The members of `steps` that `selection` names, ascending.

    `selection` is "all", "first", "last", a number, a list, an inclusive range "1000:200000" (either end may be left
    out), or several of these joined by commas.

    Raises:
        ValueError: a named step is not there, or a range holds none.
    """
    available = sorted(set(steps))
    if isinstance(selection, int):
        selection = [selection]
    parts = selection.split(",") if isinstance(selection, str) else [str(step) for step in selection]
    chosen: set[int] = set()
    for part in (part.strip() for part in parts):
        if part == "all":
            found = available
        elif part == "first":
            found = available[:1]
        elif part == "last":
            found = available[-1:]
        elif part.isdecimal():
            found = [step for step in available if step == int(part)]
        elif match := re.fullmatch(r"(\d*):(\d*)", part):
            low, high = int(match[1] or 0), int(match[2]) if match[2] else None
            found = [step for step in available if step >= low and (high is None or step <= high)]
        else:
            raise ValueError(f"steps {part!r}: expected a number, a range like 1000:200000, 'first', 'last' or 'all'")
        if not found:
            raise ValueError(f"steps {part!r}: no such checkpoint; there are {summarize_steps(available)}")
        chosen.update(found)
    return sorted(chosen)


def summarize_steps(steps: Sequence[int], most: int = 12) -> str:
    """A short list for messages: all steps, or the first and last few."""
    if not steps:
        return "none"
    if len(steps) <= most:
        return ", ".join(map(str, steps))
    half = most // 2
    return f"{', '.join(map(str, steps[:half]))} ... {', '.join(map(str, steps[-half:]))} ({len(steps)} in all)"
