"""What `accumulate` returns: a data set's quantities, read like a call's result."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.accumulate.checkpoint import Header, fingerprint, read, write
from hbpcompiler.accumulate.combine import combined
from hbpcompiler.accumulate.sums import Sums, dtype_of
from hbpcompiler.errors import InputError, InputTypeError, TotalWarning, listing
from hbpcompiler.quantities import QUANTITIES
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.values import Stored


class Values(Mapping[str, Any]):
    """One quantity by the name of a parameter; each value is made when it is read."""

    def __init__(self, sums: Sums, quantity: str, weights: str) -> None:
        self._sums, self._quantity = sums, quantity
        self.weights = weights
        """A hash of the numbers that the model had."""
        self._names = sums.parameters(quantity)

    @property
    def quantity(self) -> str:
        """Its name."""
        return self._quantity

    @property
    def stored(self) -> Mapping[str, Stored]:
        """The parameters, as `hbp.curvature` has to know them."""
        return self._sums.stored

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(f"{name}: {self._quantity} was accumulated for {', '.join(self._names)}")
        value, table = self._sums.value(self._quantity, name), QUANTITIES[self._quantity]
        return namedtuple(table.record, table.fields)(**value) if table.fields else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{self._quantity} of {', '.join(self._names)}"


class Total:
    """A data set's loss and quantities, as those of one batch of all its samples would be.

    `total.loss`: the loss; `total.samples`: how many samples; `total.terms`: of a loss that is a mean over terms (of
    labels that are not ignored, say), how many. Each quantity is an attribute or item as of a `Result`: a mapping from
    parameter name to a tensor or named tuple, in the totals' dtype. Values are made when they are read, so keep what
    you read often.
    """

    def __init__(self, sums: Sums, header: Header, model: nn.Module | None = None) -> None:
        self._sums, self._header, self._model = sums, header, model
        sums.finish()
        sums.put_in_order(header.parameters)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Their names."""
        return self._sums.quantities

    @property
    def loss(self) -> Tensor:
        """The whole data set's."""
        return self._sums.loss

    @property
    def samples(self) -> int:
        """How many samples there were."""
        return self._sums.samples

    @property
    def terms(self) -> float:
        """How many terms the loss is a mean of, or what `count` said; the number of batches for a plain sum."""
        return self._sums.terms

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean over terms, or was made one by `count`, and no sum."""
        return self._sums.is_mean

    @property
    def stored(self) -> Mapping[str, Stored]:
        """The parameters, as `hbp.curvature` has to know them."""
        return self._sums.stored

    def is_of(self, model: nn.Module) -> bool:
        """Whether this is of that model."""
        return self._model is model

    def merge(self: Total, *others: Total) -> Total:
        """The total of several parts of a data set, each accumulated by itself with the same model and quantities:
        `Total.merge(first, second)`, or `first.merge(second)`.

        Raises InputError naming every difference between them. The parts stay as they are. Two that have the same
        numbers to the last bit are warned of (TotalWarning): they are likely of the same samples.
        """
        for other in (self, *others):
            if not isinstance(other, Total):
                raise InputTypeError(f"totals are merged with totals, not with {type(other).__name__}")
            if differences := self._header.differences(other._header, of_run=False):
                raise InputError(listing("These totals do not belong together:", differences))
        parts = [self._sums, *(other._sums for other in others)]
        if twice := next((one for one, other in combinations(parts, 2) if _same_numbers(one, other)), None):
            warnings.warn(f"two of the merged totals, of {twice.samples} samples each, have the same numbers to the "
                          "last bit: are their samples the same? They are counted twice",
                          TotalWarning, stacklevel=level_of_caller())
        return Total(combined(parts), self._header, self._model)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, whole or not at all."""
        return write(Path(path), self._sums, self._header)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> Total:
        """What `save` or a checkpoint wrote. Raises InputError for any other file, and where the model is not that of
        the file: each difference is named. A model whose numbers have changed since, by training, say, is warned of
        (TotalWarning): a total is of those that it was accumulated with."""
        sums, header = read(Path(path))
        if differences := header.model_differences(model):
            raise InputError(listing(f"{path} was written for another model:", differences))
        if header.digest != fingerprint(model)[1]:
            warnings.warn(f"{path} is a total at other numbers of the parameters or buffers than the model has now, "
                          "as after more training: it says what it said of those. Load them to go on from there, or "
                          "accumulate anew", TotalWarning, stacklevel=level_of_caller())
        return cls(sums, header, model)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Total:
        """A copy on another device or in another dtype."""
        sums = combined([self._sums])
        for held in (sums.totals, sums.lost):
            for key, tensor in held.items():
                held[key] = tensor.to(device=device, dtype=dtype and dtype_of(key, dtype))
        sums.dtype = dtype or sums.dtype
        return Total(sums, self._header, self._model)

    def __getattr__(self, name: str) -> Values:
        if not name.startswith("_") and name in self._sums.quantities:
            return Values(self._sums, name, self._header.digest)
        held = ", ".join(self._sums.quantities) if "_sums" in self.__dict__ else ""
        raise AttributeError(f"'{name}' was not accumulated; there are {held}")

    def __getitem__(self, name: str) -> Values:
        if name not in self._sums.quantities:
            raise KeyError(f"{name}: there are {', '.join(self._sums.quantities)}")
        return Values(self._sums, name, self._header.digest)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums.quantities)

    def __contains__(self, name: object) -> bool:
        return name in self._sums.quantities

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._sums.quantities]

    def __repr__(self) -> str:
        if not self.samples:
            return "Total(no samples)"
        return f"Total(loss={float(self.loss):.6g}, samples={self.samples}, quantities={list(self.quantities)})"


def _same_numbers(one: Sums, other: Sums) -> bool:
    """Whether two sums are the same, and not of nothing: the first tensor that differs decides."""
    return (one.samples == other.samples and one.totals.keys() == other.totals.keys()
            and any(bool(total.any()) for total in one.totals.values())
            and all(torch.equal(total, other.totals[key]) for key, total in one.totals.items()))
