"""At which optimizer steps something happens: powers of two early on, every N steps later, and any others by name.

Training moves fastest at its start, so checkpoint suites made for the study of learning dynamics (Pythia, Biderman et
al. 2023; METHOD.md section 4) keep step 0, the powers of two and every N-th step. Snapshots, live analyses and sweeps
share this one schedule; it knows nothing of Lightning.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A set of optimizer steps: `{0, 1, base, base^2, ...}`, all multiples of `every`, and `steps`."""

    base: int | None = 2
    """Powers of this number, and step 0, are in the schedule. None or 0 leaves them out."""
    every: int | None = None
    """Number of optimizer steps between two regular ones (0 is one of them). None or 0 leaves them out."""
    first: int = 0
    """Steps before this one are left out, whatever rule they come from. 0 is the untrained network."""
    last: bool = True
    """Whether the last step of training is in the schedule, see `due`."""
    steps: tuple[int, ...] = ()
    """Further optimizer steps, in any order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        if self.base and (not _is_count(self.base) or self.base < 2):
            raise ValueError(
                f"schedule: base is {self.base!r}; use a whole number of at least 2, or None for no powers"
            )
        if self.every and (not _is_count(self.every) or self.every < 1):
            raise ValueError(f"schedule: every is {self.every!r}; use a number of steps of at least 1, or None")
        if not _is_count(self.first):
            raise ValueError(f"schedule: first is {self.first!r}; use a step of at least 0")
        wrong = [step for step in self.steps if not _is_count(step)]
        if wrong:
            raise ValueError(f"schedule: steps holds {wrong[0]!r}; use whole numbers of at least 0")
        if not self.base and not self.every and not self.steps and not self.last:
            raise ValueError("schedule: no step is in it; set base, every, steps or last")

    def __contains__(self, step: object) -> bool:
        """Whether `step` follows from base, every or steps; the last step of a training run is known only to `due`."""
        return isinstance(step, int) and step >= self.first and any(step in rule for rule in self._rules(step))

    def _rules(self, most: int) -> tuple[Collection[int], ...]:
        """The steps of each rule, up to `most` where a rule has no end."""
        powers = [0]
        while self.base and self.base ** (len(powers) - 1) <= most:
            powers.append(self.base ** (len(powers) - 1))
        return self.steps, range(0, most + 1, self.every) if self.every else (), powers if self.base else ()

    def due(self, step: int, max_steps: int | None = None) -> bool:
        """Whether `step` is in the schedule of a training run of `max_steps` (None: unknown, no last step)."""
        return step in self or (self.last and step == max_steps and step >= self.first)

    def up_to(self, max_steps: int) -> list[int]:
        """All steps from 0 to `max_steps` (inclusive) that are due, ascending, each once."""
        if not _is_count(max_steps):
            raise ValueError(f"schedule: max_steps is {max_steps!r}; use a whole number of at least 0")
        found = {step for rule in self._rules(max_steps) for step in rule if step <= max_steps}
        found |= {max_steps} if self.last else set()
        return sorted(step for step in found if step >= self.first)


def required(schedule: Schedule | None, callback: str) -> Schedule:
    """`schedule`, which is an option without default: the parser would fill in a whole `Schedule()` unasked.

    Raises:
        ValueError: there is none.
    """
    if schedule is None:
        raise ValueError(f"{callback} has no schedule; give one, such as schedule: {{base: 2, every: 1000}}")
    return schedule


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0
