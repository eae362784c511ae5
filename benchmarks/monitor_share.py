"""`python -m benchmarks.monitor_share`: whether a monitor with `every="5%"` keeps to that share of the time.

Training steps with it and without it are timed in turns, some tenths of a second each; the turns without it do not
count for the monitor's own clock. Beside what the steps tell stands what that clock says.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import click
import torch

import hbpcompiler as hbp

from .clipping import CELLS, CLOCKS, given
from .monitor import BATCH, RATE, SIZES
from .networks import Problem
from .timing import prepare

WARM_UP = 50
"""Training steps before anything is timed."""
PROGRAMS = 12
"""Steps with the monitor beside, in which it makes its programs."""


def kept(problem: Problem, every: str, track: str, turns: int, span: float, clock: Callable[[], float]) -> str:
    """What the steps tell, and the monitor's clock, in words."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    monitor = hbp.Monitor(model, problem.loss, optimizer, track, every)
    share = monitor._schedule.share
    assert share is not None

    def step() -> None:
        optimizer.zero_grad()
        problem.loss(model(problem.inputs), problem.target).backward()
        optimizer.step()

    def without(count: int) -> None:
        for _ in range(count):
            step()

    def beside(count: int) -> None:
        for _ in range(count):
            monitor.observe(problem.inputs, problem.target)
            step()

    without(WARM_UP)
    began = clock()
    without(WARM_UP)
    count = max(3, round(span * WARM_UP / (clock() - began)))
    beside(PROGRAMS)
    seconds = {without: 0.0, beside: 0.0}
    seen = len(monitor.run.steps)
    for turn in range(2 * turns):
        run = (without, beside, beside, without)[turn % 4]
        wall, began = monitor._record.elapsed(), clock()
        run(count)
        seconds[run] += clock() - began
        if run is without:
            share.pause(wall, monitor._record.elapsed())
    lost = 1 - seconds[without] / seconds[beside]
    own = share.spent / share.elapsed(monitor._record.elapsed())
    return (f"{100 * lost:.1f} % by {turns * count} steps with and without it, {100 * own:.1f} % by its own clock; "
            f"looked at {len(monitor.run.steps) - seen} of them")


@click.command()
@click.option("--networks", default="logreg,mlp,3c3d", show_default=True, help=f"With commas, of {', '.join(CELLS)}.")
@click.option("--every", default="5%", show_default=True)
@click.option("--track", default="economy", show_default=True)
@click.option("--turns", default=40, show_default=True, help="Of each, with and without the monitor.")
@click.option("--span", default=0.4, show_default=True, help="Seconds of a turn.")
@click.option("--threads", default=2, show_default=True)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
def main(networks: str, every: str, track: str, turns: int, span: float, threads: int, clock: str) -> None:
    """The share of the time that a monitor takes, by the steps that are lost."""
    prepare(threads)
    warnings.simplefilter("ignore", hbp.MonitorWarning)
    for name in networks.split(","):
        size = SIZES.get(name, BATCH)
        began = time.perf_counter()
        found = kept(given(name, size), every, track, turns, span, CLOCKS[clock])
        print(f"{name}:{size}, every {every}: {found} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
