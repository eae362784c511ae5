"""Running averages of curvature, updated in place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Key = tuple[str, str]
"""A parameter's name, and a field of its value ("" where the value is one tensor)."""


TILE = 32
"""Rows at a time where a matrix is made symmetric in place."""


class Plain(NamedTuple):
    """What is averaged."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def whole(self) -> Tensor:
        """A tensor of its own."""
        return self.tensor.clone()

    def enter(self, mean: Tensor, share: float) -> None:
        """mean <- (1 - share) mean + share of this, in place."""
        mean.lerp_(self.tensor, share)


class Root(NamedTuple):
    """V [N, K, *theta], in the place of the matrix sum_nk V V^T, which is not made beside the mean of such."""

    columns: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.columns.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        size = math.prod(self.columns.shape[2:])
        return size, size

    def trace(self) -> Tensor:
        """Of the matrix: none of its entries is larger."""
        return torch.linalg.vector_norm(self.columns).square()

    def whole(self) -> Tensor:
        rows = self._rows()
        return _mirrored(rows.t() @ rows)

    def enter(self, mean: Tensor, share: float) -> None:
        rows = self._rows()
        _mirrored(mean.addmm_(rows.t(), rows, beta=1 - share, alpha=share))

    def _rows(self) -> Tensor:
        return self.columns.flatten(0, 1).flatten(1)


class Averages:
    """Exponentially weighted means of tensors: sum_s decay^(t - s) x_s / sum_s decay^(t - s) after t updates.

    With `squared` of their squares. The division makes them unbiased from the first update on: after one, the mean is
    what was seen. A tensor that appears later, or misses updates, counts its own.
    """

    def __init__(self, decay: float, squared: bool = False) -> None:
        self.decay, self.squared = decay, squared
        self.means: dict[Key, Tensor] = {}
        self.updates: dict[Key, int] = {}
        self.narrowest: dict[Key, torch.dtype] = {}
        """That of all the dtypes that a mean was in, whose rounding it has."""

    def update(self, seen: MutableMapping[Key, Tensor | Root]) -> None:
        """Takes the tensors out of `seen` one by one, so that they are not all kept to the end."""
        for key in list(seen):
            given = seen.pop(key)
            value = given if isinstance(given, Root) else Plain(given.square() if self.squared else given)
            del given
            count = self.updates.get(key, 0) + 1
            held, narrowest = self.means.get(key), self.narrowest.get(key, value.dtype)
            if held is not None and held.dtype != value.dtype:  # the model, or that of a loaded state, had another
                held = self.means[key] = held.to(value.dtype)
            if held is None or held.shape != value.shape:
                self.means[key], count, narrowest = value.whole(), 1, value.dtype
            else:
                value.enter(held, self._share_of_newest(count))
            self.updates[key] = count
            self.narrowest[key] = max(narrowest, value.dtype, key=_rounding)

    def keep(self, keys: Collection[Key]) -> None:
        """No others: what has been seen last is what there is."""
        self._drop([key for key in self.means if key not in keys])

    def forget(self, letter: str) -> None:
        """All means of this field."""
        self._drop([key for key in self.means if key[1] == letter])

    def make_symmetric(self, letters: Collection[str]) -> None:
        """In place, exactly, where products have left these fields so but for rounding: else each reader makes a copy.
        """
        for (_, letter), mean in self.means.items():
            if letter in letters and not torch.equal(mean, mean.mT):
                for start in range(0, mean.shape[-1], TILE):
                    rows, rest = slice(start, start + TILE), slice(start, None)
                    middle = (mean[..., rows, rest] + mean[..., rest, rows].mT).div_(2)
                    mean[..., rows, rest] = middle
                    mean[..., rest, rows] = middle.mT

    def narrowest_of(self, name: str, dtype: torch.dtype | None) -> torch.dtype | None:
        """Of this one and of those that a parameter's means were in."""
        known = [own for key, own in self.narrowest.items() if key[0] == name]
        return max(known if dtype is None else [*known, dtype], key=_rounding, default=None)

    def _drop(self, keys: Collection[Key]) -> None:
        for key in keys:
            del self.means[key], self.updates[key], self.narrowest[key]

    def _share_of_newest(self, count: int) -> float:
        if self.decay == 1.0:
            return 1.0 / count
        return (1.0 - self.decay) / (1.0 - self.decay**count)

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves, not copies, as torch's optimizers give them."""
        return {"means": dict(self.means), "updates": dict(self.updates), "narrowest": dict(self.narrowest)}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """What `state_dict` gave, on this device."""
        self.means = {key: mean.to(device, copy=True) for key, mean in state["means"].items()}
        self.updates = dict(state["updates"])
        self.narrowest = {key: mean.dtype for key, mean in self.means.items()} | dict(state.get("narrowest", {}))


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _mirrored(matrix: Tensor) -> Tensor:
    """In place: exactly symmetric by the entries above its diagonal, else each reader makes a copy that is."""
    for start in range(0, len(matrix), TILE):
        rows = slice(start, start + TILE)
        matrix[rows, :start] = matrix[:start, rows].t()
        tile = matrix[rows, rows]
        tile.copy_(tile.triu() + tile.triu(1).t())
    return matrix
