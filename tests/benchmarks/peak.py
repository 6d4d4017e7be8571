"""Peak memory of a piece of work, for the benchmarks beside it."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import psutil

INTERVAL = 0.002


def peak_here(work: Callable[[], Any]) -> float:
    """GB of resident memory that `work` needs above what this process has when it starts, sampled every 2 ms.

    Not the peak of the process, which what was prepared before may have set.
    """
    gc.collect()
    process = psutil.Process()
    loaded = process.memory_info().rss
    peak, done = [loaded], threading.Event()

    def sample() -> None:
        while not done.wait(INTERVAL):
            peak[0] = max(peak[0], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        work()
    finally:
        done.set()
        sampler.join()
    return max(peak[0] - loaded, 1) / 1e9


def peak_above(work: Callable[[], Any]) -> float:
    """The same in a forked child, so that no memory that an earlier measurement freed is used again unseen."""
    return in_child(lambda: peak_here(work))


def in_child(measure: Callable[[], float]) -> float:
    """What `measure` finds in a forked child, which leaves nothing behind."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure()))
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    finally:
        process.join()
