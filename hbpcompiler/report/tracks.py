"""A run as the instruments want it: numbers against steps, layers against steps, the first and the last histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.runs import Run
from hbpcompiler.runs.columns import ByName

RECENT = 0.1
"""Share of a run, at its end, that verdicts speak of."""
AT_LEAST = 5
"""Values that this share holds at least, where there are as many."""
BY_GROUP = "lr"
"""The quantity that is one number for each group of the optimizer where they differ."""
SUMMED = frozenset({"hess_trace"})
"""Quantities by parameter whose whole is the sum; that of norms is the root of the sum of squares."""


@dataclass(frozen=True)
class Series:
    """Numbers of a run, by step."""

    steps: Tensor
    """[S] int64, increasing."""
    values: Tensor
    """[S] float64; what is not finite is kept."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        """The part that is finite."""
        kept = torch.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])

    @property
    def recent(self) -> Tensor:
        """The finite values of the last tenth of the run, and at least five where there are as many."""
        values = self.finite.values
        return values[len(values) - min(len(values), max(AT_LEAST, math.ceil(RECENT * len(values)))):]

    def at(self, steps: Tensor) -> Tensor:
        """The values at these steps: each the last one that is known by then, the first where none is. [S'] float64."""
        if not len(self):
            return torch.full((len(steps),), math.nan, dtype=torch.float64, device="cpu")
        return self.values[(torch.searchsorted(self.steps, steps, right=True) - 1).clamp(min=0)]


NOTHING = Series(torch.zeros(0, dtype=torch.int64, device="cpu"), torch.zeros(0, dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class Layers:
    """Numbers of a run by parameter and step."""

    names: tuple[str, ...]
    steps: Tensor
    """[S] int64."""
    values: Tensor
    """[S, L] float64; nan also where a parameter has no value at a step."""


@dataclass(frozen=True)
class Histogram:
    """Counts of one step: [B] with edges [B + 1], or [A, B] with edges of both axes."""

    step: int
    counts: Tensor
    edges: tuple[Tensor, ...]


class Track:
    """One run of a report."""

    def __init__(self, run: Run, name: str = "") -> None:
        self.run = run
        self.name = name or run.name or Path(run.path).stem or "run"
        self.header = run.header
        self._layers: dict[str, Layers | None] = {}

    @cached_property
    def names(self) -> list[str]:
        """Of all that was tracked or added, each once, in order of appearance."""
        seen: dict[str, None] = {}
        values = [step.values for step in self.run.by_step.values()] + [added.values for added in self.run.scalars]
        for names in values:
            seen |= dict.fromkeys(names)
        return list(seen)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers in each parameter, in the model's order."""
        shapes = self.header.get("parameters")
        if not isinstance(shapes, dict):
            return {}
        return {name: math.prod(shape) for name, shape in shapes.items() if isinstance(shape, list)}

    @cached_property
    def optimizer(self) -> dict[str, Any]:
        found = self.header.get("optimizer")
        return dict(found) if isinstance(found, dict) else {}

    def _values(self, name: str) -> Iterator[tuple[int, Any]]:
        steps, values = self.run.known(name)
        return zip(steps, values, strict=True)

    def series(self, name: str) -> Series:
        """A number by step; of a quantity by parameter, that of the whole network."""
        found = [(step, _total(name, value)) for step, value in self._values(name)]
        return _series([(step, value) for step, value in found if value is not None])

    def rates(self) -> tuple[Series, Series]:
        """The largest and the smallest step size of the optimizer's groups, by step."""
        found = [(step, list(value.values()) if _by_parameter(value) else [value])
                 for step, value in self._values(BY_GROUP)]
        numbers = [(step, parts) for step, parts in found if all(map(_is_number, parts))]
        return (_series([(step, max(parts)) for step, parts in numbers]),
                _series([(step, min(parts)) for step, parts in numbers]))

    @cached_property
    def rows(self) -> Series:
        """Samples of the batch, by step."""
        return _series([(step.step, _number(step.rows)) for step in self.run.steps if _is_number(step.rows)])

    def layers(self, name: str) -> Layers | None:
        """A quantity by parameter, in the model's order; None where there is none."""
        if name not in self._layers:
            self._layers[name] = self._read_layers(name)
        return self._layers[name]

    def _read_layers(self, name: str) -> Layers | None:
        found = [(step, value) for step, value in self._values(name) if _by_parameter(value)]
        if not found:
            return None
        names = dict.fromkeys(self.sizes)
        for _, value in found:
            names |= dict.fromkeys(value)
        tracked = {key for _, value in found for key in value}
        kept = tuple(key for key in names if key in tracked)
        rows = torch.stack([_numbers(value, kept) for _, value in found])
        return Layers(kept, torch.tensor([step for step, _ in found], device="cpu"), rows)

    @cached_property
    def layered(self) -> list[str]:
        """Names of the quantities by parameter."""
        return [name for name in self.names if name != BY_GROUP
                and any(_by_parameter(value) for _, value in self._values(name))]

    def histograms(self, name: str) -> tuple[Histogram, Histogram] | None:
        """The first and the last of one axis."""
        found = [(step, value) for step, value in self._values(name) if _is_histogram(value)]
        return (_histogram(*found[0]), _histogram(*found[-1])) if found else None

    def fields(self, name: str) -> dict[str, Histogram]:
        """The last ones of two axes, by parameter; "" is the whole network."""
        for step, value in reversed(list(self._values(name))):
            if isinstance(value, dict):
                made = {str(key): _histogram(step, part) for key, part in value.items() if _is_histogram(part)}
                if made:
                    return made
        return {}


def tracks_of(runs: Sequence[Run]) -> list[Track]:
    """The runs under names that differ."""
    tracks: list[Track] = []
    taken: set[str] = set()
    for run in runs:
        track = Track(run)
        plain, number = track.name, 2
        while track.name in taken:
            track.name, number = f"{plain} ({number})", number + 1
        taken.add(track.name)
        tracks.append(track)
    return tracks


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_parameter(value: Any) -> bool:
    """Seen from its first value: those of one quantity are alike."""
    return isinstance(value, Mapping) and bool(value) and _is_number(next(iter(value.values())))


def _number(value: Any) -> float:
    """nan for what is none."""
    return float(value) if _is_number(value) else math.nan


def _is_histogram(value: Any) -> bool:
    """Whether it has counts and, on each axis, one edge more."""
    if not (isinstance(value, dict) and isinstance(value.get("counts"), list) and isinstance(value.get("edges"), list)):
        return False
    counts, edges = value["counts"], value["edges"]
    if counts and isinstance(counts[0], list):
        return (len(edges) == 2 and len(edges[0]) == len(counts) + 1
                and all(len(row) == len(edges[1]) - 1 for row in counts))
    return len(counts) > 0 and len(edges) == len(counts) + 1


def _total(name: str, value: Any) -> float | None:
    """Of the whole network; None for what is no number."""
    if _is_number(value):
        return float(value)
    if not _by_parameter(value):
        return None
    parts = _numbers(value, tuple(value))
    return float(parts.sum() if name in SUMMED else parts.square().sum().sqrt())


def _numbers(value: Mapping[str, Any], names: tuple[str, ...]) -> Tensor:
    """[L] float64, nan for a name that has no number."""
    if isinstance(value, ByName) and value.names == names:
        return torch.frombuffer(value.numbers, dtype=torch.float64)
    return torch.tensor([_number(value.get(name)) for name in names], dtype=torch.float64, device="cpu")


def _series(found: Sequence[tuple[int, float]]) -> Series:
    return Series(torch.tensor([step for step, _ in found], dtype=torch.int64, device="cpu"),
                  torch.tensor([value for _, value in found], dtype=torch.float64, device="cpu"))


def _histogram(step: int, value: Any) -> Histogram:
    counts = torch.tensor(value["counts"], dtype=torch.float64, device="cpu")
    edges = [value["edges"]] if counts.dim() == 1 else value["edges"]
    return Histogram(step, counts, tuple(torch.tensor(axis, dtype=torch.float64, device="cpu") for axis in edges))
