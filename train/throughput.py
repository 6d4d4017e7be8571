"""Tokens per second and model FLOP utilisation of training steps alone.

A meter is fed by the training module: it runs while a step is prepared and computed, and is paused while callbacks
work and while the model is validated, so that measuring never looks like slow training. Peers have printed tokens
divided by a clock reading (litgpt PR 1805) or MFU against a wrong peak (OLMo-core changelog); hence the clock is an
argument, tests drive it by hand, and MFU is left out where the device's peak is unknown.

MFU = tokens per second x FLOPs per token / peak FLOPs (Chowdhery et al. 2022, "PaLM", appendix B).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since some fixed moment."""


class ThroughputMeter:
    """Training speed over the last `window` optimizer steps.

    On a GPU kernels run behind the host. The module reads the gradient norm once per step, which waits for the
    backward pass, so the host is never more than one weight update ahead.
    """

    def __init__(self, window: int = 50, clock: Clock = time.perf_counter) -> None:
        if window < 1:
            raise ValueError(f"throughput window is {window}; it must be at least 1 optimizer step")
        self._clock = clock
        self._steps: deque[tuple[int, float]] = deque(maxlen=window)
        self._running_since: float | None = None
        self._seconds = 0.0

    def resume(self) -> None:
        """Start or go on counting; does nothing if the meter is running."""
        if self._running_since is None:
            self._running_since = self._clock()

    def pause(self) -> None:
        """Stop counting until `resume`; does nothing if the meter is paused."""
        if self._running_since is not None:
            self._seconds += self._clock() - self._running_since
            self._running_since = None

    def step_done(self, tokens: int) -> None:
        """Book the time counted since the last step on one optimizer step of `tokens` tokens, then pause."""
        self.pause()
        self._steps.append((tokens, self._seconds))
        self._seconds = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of training over the window; None before the first step."""
        seconds = sum(seconds for _, seconds in self._steps)
        if seconds <= 0:
            return None
        return sum(tokens for tokens, _ in self._steps) / seconds
