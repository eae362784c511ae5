"""Running averages of curvature, updated in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

Key = tuple[str, str]
"""A parameter's name, and a field of its value ("" where the value is one tensor)."""


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

    def update(self, seen: MutableMapping[Key, Tensor]) -> None:
        """Takes the tensors out of `seen` one by one, so that they are not all kept to the end."""
        for key in list(seen):
            tensor = seen.pop(key)
            if self.squared:
                tensor = tensor.square()
            count = self.updates.get(key, 0) + 1
            held, narrowest = self.means.get(key), self.narrowest.get(key, tensor.dtype)
            if held is not None and held.dtype != tensor.dtype:  # the model, or that of a loaded state, had another
                held = self.means[key] = held.to(tensor.dtype)
            if held is None or held.shape != tensor.shape:
                self.means[key], count, narrowest = tensor.clone(), 1, tensor.dtype
            else:
                held.lerp_(tensor, self._share_of_newest(count))
            self.updates[key] = count
            self.narrowest[key] = max(narrowest, tensor.dtype, key=_rounding)

    def keep(self, keys: Collection[Key]) -> None:
        """No others: what has been seen last is what there is."""
        self._drop([key for key in self.means if key not in keys])

    def forget(self, letter: str) -> None:
        """All means of this field."""
        self._drop([key for key in self.means if key[1] == letter])

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
