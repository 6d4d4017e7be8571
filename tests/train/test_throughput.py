"""The meter, driven by a clock that only moves when the test says so."""

from __future__ import annotations

import pytest

from train.throughput import ThroughputMeter


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_tokens_by_seconds_and_not_by_the_clock_reading() -> None:
    clock = FakeClock()
    meter = ThroughputMeter(clock=clock)
    assert meter.tokens_per_second is None
    for _ in range(3):
        meter.resume()
        clock.now += 2.0
        meter.step_done(1000)
    assert meter.tokens_per_second == pytest.approx(500.0)


def test_time_while_paused_does_not_count() -> None:
    clock = FakeClock()
    meter = ThroughputMeter(clock=clock)
    meter.resume()
    clock.now += 1.0
    meter.step_done(100)
    clock.now += 60.0  # an analysis
    meter.resume()
    clock.now += 0.5
    meter.pause()
    clock.now += 60.0  # a validation
    meter.resume()
    clock.now += 0.5
    meter.step_done(100)
    assert meter.tokens_per_second == pytest.approx(100.0)
    clock.now += 60.0  # the meter is paused after a step
    meter.resume()
    clock.now += 1.0
    meter.step_done(100)
    assert meter.tokens_per_second == pytest.approx(100.0)


def test_window_forgets_old_steps() -> None:
    clock = FakeClock()
    meter = ThroughputMeter(window=2, clock=clock)
    for seconds in (100.0, 1.0, 3.0):
        meter.resume()
        clock.now += seconds
        meter.step_done(10)
    assert meter.tokens_per_second == pytest.approx(5.0)


def test_resuming_twice_keeps_the_first_start() -> None:
    clock = FakeClock()
    meter = ThroughputMeter(clock=clock)
    meter.resume()
    clock.now += 1.0
    meter.resume()
    clock.now += 1.0
    meter.step_done(10)
    assert meter.tokens_per_second == pytest.approx(5.0)


def test_micro_batches_before_the_step_count() -> None:
    clock = FakeClock()
    meter = ThroughputMeter(clock=clock)
    for _ in range(4):  # three micro-batches without and one with an optimizer step
        meter.resume()
        clock.now += 1.0
    meter.step_done(400)
    assert meter.tokens_per_second == pytest.approx(100.0)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        ThroughputMeter(window=0)
