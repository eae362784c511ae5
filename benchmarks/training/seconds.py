"""What an epoch of each optimizer costs: its steps alone, in turns with the others' and apart from the runs.

A grid may train beside other jobs, for hours, in several processes; its own times are no record. So the steps of the
chosen settings are timed by themselves, interleaved, in processor seconds of one thread, and curves over time are
epochs times these.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from benchmarks.peers import Run as Timed
from benchmarks.timing import interleaved
from benchmarks.training.methods import Point
from benchmarks.training.runs import Contestant, contestant, write

FILE = "seconds.json"
STEPS = 10
"""Of a measurement: twice the intervals at which inverses are found here, so that they are in it."""


@dataclass(frozen=True)
class Cost:
    """Processor seconds of an epoch's steps, without evaluation and without compiling: median and quartiles."""

    median: float
    low: float
    high: float
    rounds: int = 0
    """Measurements; 0: it was not written down how many."""


def steps(one: Contestant, point: Point) -> Timed:
    """`STEPS` steps from where the last ones have led."""
    one.begin(point, seed=0)
    batches = _endless(one)

    def call() -> None:
        for _ in range(STEPS):
            one.step(*next(batches))

    return Timed(call, lambda value: {})


def _endless(one: Contestant) -> Iterator[tuple[Tensor, Tensor]]:
    return itertools.chain.from_iterable(one.batches(0, epoch) for epoch in itertools.count())


def measure(task: str, points: Mapping[str, Point], rounds: int) -> dict[str, Cost]:
    """By optimizer. One whose steps failed is left out."""
    contestants = {method: contestant(task, method) for method in points}
    runs = {method: steps(one, points[method]) for method, one in contestants.items()}
    measured = interleaved(runs, rounds, limit=60.0, patience=0.0, clock=time.process_time, alternating=True)
    found = {}
    for method, each in measured.items():
        if each.seconds:
            one = contestants[method]
            turns = len(one.data.train) // one.task.batch / STEPS
            low, high = (quartile * turns for quartile in each.quartiles)
            found[method] = Cost(each.median * turns, low, high, len(each.seconds))
    return found


def update(folder: Path, best: Mapping[str, Mapping[str, Point]], rounds: int) -> None:
    """Measure all of these tasks' optimizers, and keep the figures beside those of other tasks."""
    known = read(folder)
    with tqdm(best.items(), desc="seconds", unit="task") as bar:
        for task, points in bar:
            bar.set_postfix_str(task)
            known[task] = {**known.get(task, {}), **measure(task, points, rounds)}
            content = {name: {method: [cost.median, cost.low, cost.high, cost.rounds] for method, cost in costs.items()}
                       for name, costs in known.items()}
            write(folder / FILE, json.dumps(content, allow_nan=False).encode())


def read(folder: Path) -> dict[str, dict[str, Cost]]:
    """By task and optimizer; empty before the first measurement."""
    path = folder / FILE
    if not path.exists():
        return {}
    content: dict[str, dict[str, Sequence[Any]]] = json.loads(path.read_text(encoding="utf-8"))
    return {task: {method: Cost(*numbers) for method, numbers in costs.items()} for task, costs in content.items()}
