"""One quantity's values by parameter, with what is needed to compute with them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

OUTPUTS_FIRST, INPUTS_FIRST = "out, in", "in, out"
LAYOUTS = (OUTPUTS_FIRST, INPUTS_FIRST)


class Stored(NamedTuple):
    """A parameter as the model has it."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    layout: str
    """Which of a layer's outputs and inputs its first axis counts; "" where the parameter meets no inputs."""
    bias: str = ""
    """The name of the bias that is in this weight's Kronecker block, if one is."""
    curvature_dtype: torch.dtype | None = None
    """That of the columns of curvature, where it is not the parameter's."""


class Values(dict[str, Any]):
    """A dict from parameter name to value, as any other; `hbp.curvature` reads what else it says."""

    def __init__(self, values: Mapping[str, Any], quantity: str, stored: Mapping[str, Stored]) -> None:
        super().__init__(values)
        self.quantity = quantity
        """The name in the table of quantities."""
        self.stored = stored
        """All parameters of the program, by name, in the model's order."""

    def __missing__(self, name: Any) -> Any:
        if isinstance(name, torch.Tensor):
            alike = [known for known, stored in self.stored.items() if stored.shape == tuple(name.shape)]
            this = f": this one is {alike[0]!r}, by its shape" if len(alike) == 1 else ""
            raise KeyError(f"{self.quantity} is a dict by parameters' names, not by parameters{this}")
        raise KeyError(f"{name}: {self.quantity} was computed for {', '.join(self) or 'no parameter'}")

    def __getattr__(self, name: str) -> Any:
        """Of a tensor's attributes, which only each parameter's value has."""
        quantity = self.__dict__.get("quantity", "this")
        raise AttributeError(f"{quantity} is a dict by parameter name, which has no {name!r}: a value of it is "
                             f"result.{quantity}[{next(iter(self), 'weight')!r}]")

    def like(self, values: Mapping[str, Any]) -> Values:
        """Other values of the same quantity and parameters: a total over batches, say."""
        return Values(values, self.quantity, self.stored)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without classes of named tuples, which belong to the program that made them."""
        values = {name: _plain(value) for name, value in self.items()}
        return _again, (values, self.quantity, dict(self.stored))


@dataclass(frozen=True)
class _Fields:
    """A named tuple without its class."""

    name: str
    fields: dict[str, Any]


def _plain(value: Any) -> Any:
    return _Fields(type(value).__name__, value._asdict()) if hasattr(value, "_asdict") else value


def _record(value: Any) -> Any:
    return namedtuple(value.name, value.fields)(**value.fields) if isinstance(value, _Fields) else value


def _again(values: Mapping[str, Any], quantity: str, stored: Mapping[str, Stored]) -> Values:
    """What was pickled."""
    return Values({name: _record(value) for name, value in values.items()}, quantity, stored)
