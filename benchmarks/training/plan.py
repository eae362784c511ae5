"""Which runs there are, and doing those that are missing: the grids, then the chosen settings with more seeds."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.training.methods import METHODS, Point
from benchmarks.training.results import CRITERIA, Outcome, worth
from benchmarks.training.runs import Record, Run, saved, train
from benchmarks.training.tasks import ALL

GRID_SEED = 0
"""Of the grid's runs; the chosen settings have the seeds after it, so that they are not judged by what chose them."""


@dataclass(frozen=True)
class Setting:
    """The best point of a grid, of whose points so many were tried, by a search whose runs are not kept."""

    point: Point
    tried: int


Settings = Mapping[tuple[str, str], Setting]
"""By task and optimizer."""


def settings_in(path: Path) -> Settings:
    """Of a file {task: {optimizer: {"point": {name: number}, "tried": number}}}."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {(task, method): Setting(tuple(one["point"].items()), one["tried"])
            for task, methods in content.items() for method, one in methods.items()}


@dataclass(frozen=True)
class Protocol:
    """What is run."""

    tasks: Mapping[str, Sequence[str]]
    """The optimizers of each."""
    seeds: int = 10
    coarse: bool = False
    """A part of each grid first, then whatever is beside its best point until that has no untried neighbours."""
    epochs: int | None = None
    """None: each task's own."""
    criterion: str = CRITERIA[0]
    settings: Settings = field(default_factory=dict)
    """Their grids are not tried again."""

    def run(self, task: str, method: str, point: Point, seed: int) -> Run:
        return Run(task, method, point, seed, self.epochs or ALL[task].epochs)

    def cells(self) -> list[tuple[str, str]]:
        return [(task, method) for task, methods in self.tasks.items() for method in methods]

    def searched(self) -> list[tuple[str, str]]:
        """Those whose settings are not known."""
        return [cell for cell in self.cells() if cell not in self.settings]

    def tried(self, folder: Path, task: str, method: str) -> dict[Point, Record]:
        """The points of a grid that have been run."""
        found = {}
        for point in METHODS[method].points(coarse=False):
            record = saved(self.run(task, method, point, GRID_SEED), folder)
            if record is not None:
                found[point] = record
        return found

    def best(self, folder: Path, task: str, method: str) -> Point | None:
        """None before the first run."""
        if (task, method) in self.settings:
            return self.settings[task, method].point
        tried = self.tried(folder, task, method)
        epochs = self.epochs or ALL[task].epochs
        return max(tried, key=lambda point: worth(tried[point], epochs, self.criterion)) if tried else None

    def timed_points(self, folder: Path, task: str) -> dict[str, Point]:
        """The task's optimizers with their best points, or the grid's first where nothing has been run."""
        return {method: self.best(folder, task, method) or METHODS[method].points(self.coarse)[0]
                for method in self.tasks[task]}

    def outcome(self, folder: Path, task: str, method: str) -> Outcome | None:
        """What came of an optimizer, or None before its chosen setting has been run with another seed."""
        point = self.best(folder, task, method)
        if point is None:
            return None
        records = []
        for seed in self.repeated():
            record = saved(self.run(task, method, point, seed), folder)
            if record is None:
                break
            records.append(record)
        if not records:
            return None
        kind, known = METHODS[method], self.settings.get((task, method))
        tried = known.tried if known else len(self.tried(folder, task, method))
        return Outcome(point, kind.interior(point), tried,
                       len(kind.points(coarse=False)), records, self.epochs or ALL[task].epochs)

    def repeated(self) -> range:
        """The seeds of the chosen settings."""
        return range(GRID_SEED + 1, GRID_SEED + 1 + self.seeds)

    # -- stages --------------------------------------------------------------------------------------------------------

    def grid(self) -> list[Run]:
        return [self.run(task, method, point, GRID_SEED) for task, method in self.searched()
                for point in METHODS[method].points(self.coarse)]

    def beside(self, folder: Path) -> list[Run]:
        """The neighbours of the best points."""
        found = []
        for task, method in self.searched():
            best = self.best(folder, task, method)
            if best is not None:
                found += [self.run(task, method, point, GRID_SEED) for point in METHODS[method].neighbours(best)]
        return found

    def repetitions(self, folder: Path) -> list[Run]:
        """The best points with other seeds, seed by seed, so that all have as many whenever it is stopped."""
        best = {cell: self.best(folder, *cell) for cell in self.cells()}
        return [self.run(task, method, point, seed) for seed in self.repeated()
                for (task, method), point in best.items() if point is not None]


def execute(protocol: Protocol, folder: Path, jobs: int, budget: float | None) -> bool:
    """All that is missing. False where the budget (seconds) ended first: the same call goes on."""
    end = None if budget is None else time.monotonic() + budget
    with executor(jobs) as submit:
        if not _stage("grid", protocol.grid(), folder, submit, jobs, end):
            return False
        while protocol.coarse:
            missing = _missing(protocol.beside(folder), folder)
            if not missing:
                break
            if not _stage("beside the best", missing, folder, submit, jobs, end):
                return False
        return _stage("seeds", protocol.repetitions(folder), folder, submit, jobs, end)


def _missing(runs: Iterable[Run], folder: Path) -> list[Run]:
    return [run for run in runs if saved(run, folder) is None]


Submit = Callable[[Run, Path], "concurrent.futures.Future[Record]"]


def _stage(title: str, runs: Sequence[Run], folder: Path, submit: Submit, jobs: int, end: float | None) -> bool:
    """Run what is missing; False where time ended first."""
    missing = _missing(runs, folder)
    waiting: set[concurrent.futures.Future[Record]] = set()
    with tqdm(total=len(runs), initial=len(runs) - len(missing), desc=title, unit="run") as bar:
        for run in missing:
            if end is not None and time.monotonic() > end:
                break
            bar.set_postfix_str(run.text, refresh=True)
            waiting.add(submit(run, folder))
            if len(waiting) >= jobs:
                waiting = _settled(waiting, concurrent.futures.FIRST_COMPLETED, bar)
        _settled(waiting, concurrent.futures.ALL_COMPLETED, bar)
        return bar.n == len(runs)


def _settled(waiting: set[concurrent.futures.Future[Record]], when: str,
             bar: tqdm) -> set[concurrent.futures.Future[Record]]:
    done, rest = concurrent.futures.wait(waiting, return_when=when)
    for each in done:
        each.result()  # raises what the run raised
        bar.update()
    return rest


class executor:
    """`submit` in this process, or in `jobs` others of one thread each."""

    def __init__(self, jobs: int) -> None:
        self._pool = None if jobs == 1 else concurrent.futures.ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))

    def __enter__(self) -> Submit:
        return self._here if self._pool is None else self._there

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _there(self, run: Run, folder: Path) -> concurrent.futures.Future[Record]:
        assert self._pool is not None
        return self._pool.submit(train, run, folder)

    @staticmethod
    def _here(run: Run, folder: Path) -> concurrent.futures.Future[Record]:
        done: concurrent.futures.Future[Record] = concurrent.futures.Future()
        done.set_result(train(run, folder))
        return done
