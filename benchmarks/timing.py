"""Interleaved timing: every contestant once per round, gradient first, so that a busy machine is busy for all."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import devices
from .peers import Run

SHORTEST = 0.05
"""A measurement lasts at least this many seconds: quick calls are repeated."""
TOLERATED = 0.12
"""A measurement is repeated if other processes took more than this share of the machine meanwhile."""
BUDGET = 30.0
"""Seconds that one contestant may spend in a cell's rounds, if not told otherwise; the slow ones get fewer rounds."""


SETTLING = 31 * 2**20
"""Bytes: glibc learns from blocks of less than 32 MiB."""


def prepare(threads: int, device: str = "cpu") -> None:
    """The device, threads of torch, and the allocator as a process that has been running for a while has it.

    glibc gives freed memory back to the system, and pays for new pages at the next call, until it has seen a large
    block freed: a few milliseconds a call, or none, depending on what ran before in the same process.
    """
    torch.set_num_threads(threads)
    torch.empty(SETTLING, dtype=torch.uint8)
    devices.choose(device)


@dataclass
class Measured:
    """Seconds per call of one contestant, a number for each round; or why there are none."""

    seconds: list[float] = field(default_factory=list)
    failure: str = ""
    disturbed: int = 0
    """Measurements that other processes disturbed, in every attempt."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


class TooSlowError(Exception):
    """A contestant ran into the time limit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlowError in the block after so many seconds (once Python gets its turn again)."""

    def ring(*_: Any) -> None:
        raise TooSlowError

    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


class Neighbours:
    """What other processes take of the machine, from Linux's counters; nothing, where there are none."""

    def __init__(self, patience: float = 60.0) -> None:
        self.patience = patience
        self.stat = Path("/proc/stat")
        self.known = self.stat.exists()
        self.cores = os.cpu_count() or 1
        self.reset()

    def _foreign(self) -> float:
        if not self.known:
            return 0.0
        user, nice, system, _, _, irq, softirq, steal = map(int, self.stat.read_text().split(maxsplit=9)[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return busy - own.user - own.system

    def reset(self) -> None:
        self.start, self.before = time.perf_counter(), self._foreign()

    def share(self) -> float:
        """Of all cores, since the last reset."""
        return (self._foreign() - self.before) / (time.perf_counter() - self.start) / self.cores

    def wait(self) -> None:
        """Until the others have been quiet for a moment; `patience` seconds of waiting at most, over all calls."""
        while self.known and self.patience > 0:
            self.reset()
            time.sleep(0.1)
            if self.share() < TOLERATED:
                return
            self.patience -= 0.1


Clock = Callable[[], float]
"""time.perf_counter, or time.process_time: seconds of all threads, which a busy machine disturbs less."""


def once(run: Run, repeats: int = 1, clock: Clock = time.perf_counter) -> float:
    devices.wait()
    start = clock()
    for _ in range(repeats):
        run.call()
    devices.wait()
    return (clock() - start) / repeats


def undisturbed(run: Run, repeats: int, neighbours: Neighbours, attempts: int = 4,
                clock: Clock = time.perf_counter) -> tuple[float, bool]:
    """Seconds per call while other processes leave the machine alone, if they do in so many attempts."""
    for _ in range(attempts):
        neighbours.wait()
        if repeats > 1:
            run.call()  # caches and threads went cold while we waited
        neighbours.reset()
        seconds = once(run, repeats, clock)
        if neighbours.share() < TOLERATED:
            return seconds, True
        neighbours.patience -= time.perf_counter() - neighbours.start
        if neighbours.patience <= 0:
            break
    return seconds, False


def interleaved(runs: Mapping[str, Run], rounds: int, limit: float, patience: float,
                lone: float = math.inf, budget: float = BUDGET,
                clock: Clock = time.perf_counter, alternating: bool = False,
                shortest: float = SHORTEST) -> dict[str, Measured]:
    """Warm everyone up, then measure in rounds. A warm-up beyond `limit` seconds ends a contestant's part.

    Alternating: every other round goes backwards, so that coming first or last is no advantage.
    A warm-up of more than `lone` seconds is the contestant's only measurement: beside it, being cold costs nothing.
    What takes less than `shortest` seconds is repeated within a measurement.
    """
    measured: dict[str, Measured] = {name: Measured() for name in runs}
    neighbours = Neighbours(patience)
    plan: dict[str, tuple[int, int]] = {}  # rounds, repeats
    for name, run in runs.items():
        try:
            neighbours.reset()
            with time_limit(limit):
                warm = once(run)
            if warm > lone:
                measured[name] = Measured([warm], disturbed=int(neighbours.share() >= TOLERATED))
                continue
            if warm < limit / 4:
                neighbours.wait()
                warm = min(warm, once(run), once(run))
        except TooSlowError:
            measured[name].failure = f">{limit:g} s"
            continue
        except Exception as error:
            measured[name].failure = f"{type(error).__name__}: {str(error)[:80]}"
            continue
        plan[name] = max(1, min(rounds, int(budget / warm))), max(1, int(shortest / warm))
    gc.collect()
    for number in range(rounds):
        order = reversed(plan.items()) if alternating and number % 2 else plan.items()
        for name, (own_rounds, repeats) in order:
            if number < own_rounds:
                seconds, calm = undisturbed(runs[name], repeats, neighbours, clock=clock)
                measured[name].seconds.append(seconds)
                measured[name].disturbed += not calm
    return measured
