"""What `scale` measures: sweeps over one size each, what was found at a size, and growth exponents fitted to it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .memory import MEBI, Peak
from .networks import FAMILIES, find, member
from .timing import Measured

BATCH, WIDTH, DEPTH = "batch", "width", "depth"
AXES = (BATCH, WIDTH, DEPTH)
QUANTITIES = ("diag_h", "diag_ggn")
SMALLEST = MEBI
"""Smaller peaks are left out of fits: a process grows by pages, and not at all while its heap has room."""


@dataclass(frozen=True)
class Point:
    """A network and a batch size; `size` is what its sweep is over."""

    network: str
    batch: int
    size: int

    @property
    def title(self) -> str:
        return f"{find(self.network).title}:{self.batch}"


@dataclass(frozen=True)
class Sweep:
    """Points that differ in one size. A sweep without axis is single rows."""

    title: str
    axis: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Base:
    """Where a family's sweeps meet, and the sizes that each takes."""

    start: Mapping[str, int]
    sizes: Mapping[str, Sequence[int]]


BASES: dict[str, Base] = {
    "sigmoid-mlp": Base({BATCH: 64, WIDTH: 64, DEPTH: 2},
                        {BATCH: (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
                         WIDTH: (16, 32, 64, 128, 256, 512, 1024), DEPTH: (1, 2, 4, 8, 16)}),
    "sigmoid-cnn": Base({BATCH: 8, WIDTH: 8, DEPTH: 2},
                        {BATCH: (1, 2, 4, 8, 16, 32, 64), WIDTH: (2, 4, 8, 16, 32, 64), DEPTH: (1, 2, 4, 8)}),
    "vit": Base({BATCH: 4, WIDTH: 16, DEPTH: 2},
                {BATCH: (1, 2, 4, 8, 16), WIDTH: (4, 8, 16, 32), DEPTH: (1, 2, 3, 4)}),
}  # fmt: skip


def sweeps(families: Sequence[str], axes: Sequence[str], most: int) -> list[Sweep]:
    """Each family over each axis, the first `most` sizes."""
    found = []
    for family in families:
        base = BASES[family]
        for axis in axes:
            places = [{**base.start, axis: size} for size in base.sizes[axis][:most]]
            points = tuple(Point(member(family, place[WIDTH], place[DEPTH]), place[BATCH], place[axis])
                           for place in places)
            fixed = ", ".join(f"{other} {size}" for other, size in base.start.items() if other != axis)
            found.append(Sweep(f"{FAMILIES[family].title} over {axis} ({fixed})", axis, points))
    return found


def single_rows(smooth: str, batch: int) -> Sweep:
    """All-CNN-C with one smooth activation (sigmoid or gelu) and with all; 3C3D with all."""
    return Sweep("Single rows", "", (Point("3c3d-all-sigmoid", 4, 4), Point(f"allcnnc-one-{smooth}", batch, batch),
                                     Point(f"allcnnc-all-{smooth}", batch, batch)))  # fmt: skip


@dataclass
class Row:
    """What was measured at a point, and predicted: of "gradient" and of each quantity."""

    point: Point
    measured: dict[str, Measured]
    predicted: dict[str, float]
    """seconds."""
    predicted_bytes: dict[str, int]
    peaks: dict[str, Peak] = field(default_factory=dict)

    def seconds(self, name: str) -> float | None:
        found = self.measured.get(name)
        return found.median if found is not None and found.seconds else None

    def multiple(self, name: str) -> float | None:
        """Of the gradient's time in the same rounds."""
        own, whole = self.seconds(name), self.seconds("gradient")
        return None if own is None or whole is None else own / whole

    def predicted_multiple(self, name: str) -> float:
        return self.predicted[name] / self.predicted["gradient"]

    def peak(self, name: str) -> float | None:
        """Bytes."""
        found = self.peaks.get(name)
        return None if found is None else found.bytes

    @property
    def complete(self) -> bool:
        return all(found.seconds for found in self.measured.values())

    def record(self) -> dict[str, Any]:
        return {"network": self.point.network, "batch": self.point.batch, "size": self.point.size,
                "seconds": {name: found.seconds for name, found in self.measured.items()},
                "failures": {name: found.failure for name, found in self.measured.items() if found.failure},
                "disturbed": {name: found.disturbed for name, found in self.measured.items()},
                "multiples": {name: self.multiple(name) for name in self.predicted_bytes},
                "predicted_seconds": self.predicted,
                "predicted_multiples": {name: self.predicted_multiple(name) for name in self.predicted_bytes},
                "peak_bytes": {name: found.bytes for name, found in self.peaks.items()},
                "predicted_bytes": self.predicted_bytes}  # fmt: skip


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of the power law a * size^b through the points, by least squares on logarithms; nan where there is no line."""
    if len(set(sizes)) < 2:
        return math.nan
    logs = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(*logs).slope


@dataclass(frozen=True)
class Growth:
    """Exponents of one quantity over a sweep, measured and predicted over the same points."""

    what: str
    measured: float
    predicted: float
    last_measured: float
    """Over the last two points: where constant costs weigh less."""
    last_predicted: float
    points: int


def growth(what: str, rows: Sequence[Row], measured: Callable[[Row], float | None],
           predicted: Callable[[Row], float], least: float = 0.0) -> Growth:
    """Fitted to the rows that have a measurement above `least`."""
    found = [(row.point.size, value, predicted(row)) for row in rows if (value := measured(row)) and value > least]
    sizes, actual, expected = zip(*found, strict=True) if found else ((), (), ())
    return Growth(what, exponent(sizes, actual), exponent(sizes, expected), exponent(sizes[-2:], actual[-2:]),
                  exponent(sizes[-2:], expected[-2:]), len(found))


def growths(rows: Sequence[Row], name: str) -> list[Growth]:
    """Of a quantity's time, its multiple of the gradient's, and its peak memory."""
    return [growth("time", rows, lambda row: row.seconds(name), lambda row: row.predicted[name]),
            growth("multiple of the gradient's time", rows, lambda row: row.multiple(name),
                   lambda row: row.predicted_multiple(name)),
            growth("peak memory", rows, lambda row: row.peak(name), lambda row: float(row.predicted_bytes[name]),
                   SMALLEST)]  # fmt: skip
