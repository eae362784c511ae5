"""What records say: which setting is best, medians and quartiles over seeds, who is ahead of whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.training.methods import Point
from benchmarks.training.runs import Record

CRITERIA = ("accuracy", "valid_loss", "train_loss")
"""The setting is chosen by the final accuracy on validation data, as in the paper, or by the final loss there, or in
training."""

Numbers = NDArray[np.float64]
HUGE = 1e300


def worth(record: Record, epochs: int, criterion: str) -> tuple[float, float]:
    """The larger the better. Among equal accuracies the loss on the same data decides; a run that diverged is last."""
    if record.diverged or record.epochs < epochs:
        return -math.inf, -math.inf
    if criterion == "accuracy":
        return record.accuracy["valid"][-1], -record.loss["valid"][-1]
    return -record.loss["valid" if criterion == "valid_loss" else "train"][-1], 0.0


@dataclass(frozen=True)
class Curve:
    """Median and quartiles over seeds, before the first epoch and after each."""

    low: Numbers
    median: Numbers
    high: Numbers


def padded(values: Sequence[float], epochs: int, rest: float) -> list[float]:
    """A run that diverged is at `rest` from there on."""
    return [*values, *[rest] * (epochs + 1 - len(values))]


def losses(records: Sequence[Record], part: str, epochs: int) -> Numbers:
    """[seeds, 1 + epochs]; infinite where a run has diverged."""
    return np.array([padded(record.loss[part], epochs, math.inf) for record in records])


def accuracies(records: Sequence[Record], part: str, epochs: int) -> Numbers:
    """[seeds, 1 + epochs]; zero where a run has diverged."""
    return np.array([padded(record.accuracy[part], epochs, 0.0) for record in records])


def curve(values: Numbers) -> Curve:
    """Interpolated linearly; between a number and infinity lies infinity."""
    numbers = np.where(np.isfinite(values), values, HUGE)
    found = np.quantile(numbers, (0.25, 0.5, 0.75), axis=0)
    return Curve(*np.where(found >= HUGE / 1e6, math.inf, found))


def epochs_to(level: float, values: Sequence[float]) -> float:
    """The first epoch after which the loss is at the level or below it; infinite where it is above it at the end."""
    if values[-1] > level:
        return math.inf
    return next(float(epoch) for epoch, value in enumerate(values) if value <= level)


@dataclass(frozen=True)
class Outcome:
    """An optimizer with its chosen setting on a task."""

    point: Point
    interior: bool
    tried: int
    """Points of its grid."""
    grid: int
    """Points that the whole grid has."""
    records: list[Record]
    """By seed, from the first on."""
    epochs: int

    @property
    def astray(self) -> int:
        """Seeds whose training loss at the end is not below the one before training, or not finite."""
        return sum(record.diverged or not record.loss["train"][-1] < record.loss["train"][0]
                   for record in self.records)

    def final(self, values: Callable[[Sequence[Record], str, int], Numbers], part: str) -> Curve:
        """At the end of training."""
        return curve(values(self.records, part, self.epochs)[:, -1:])


@dataclass(frozen=True)
class Race:
    """An optimizer beside another over seeds that have the same initial weights and batches."""

    epochs: list[float]
    """By seed: epochs until the training loss is where the other's is at its end."""
    whole: int
    """The epochs of a whole run, that the other took."""

    @property
    def median(self) -> float:
        return float(np.median(self.epochs))

    @property
    def wins(self) -> int:
        """Seeds in which it was there in fewer epochs than the other took."""
        return sum(epochs < self.whole for epochs in self.epochs)

    def ahead(self, cost: float = 1.0) -> bool:
        """In three quarters of the seeds at least; `cost`: of its epoch, in epochs of the other."""
        return bool(self.epochs) and sum(each * cost < self.whole for each in self.epochs) >= 0.75 * len(self.epochs)


def race(own: Sequence[Record], other: Sequence[Record], epochs: int) -> Race:
    """The seeds that both have."""
    found = []
    for mine, theirs in zip(own, other, strict=False):
        level = padded(theirs.loss["train"], epochs, math.inf)[-1]
        found.append(epochs_to(level, padded(mine.loss["train"], epochs, math.inf)))
    return Race(found, epochs)
