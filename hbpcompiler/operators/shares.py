"""What each batch counts in the matrix of all, as long as that is true: model, loss and data may change under an
operator, and what was measured of them is measured anew then."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

from torch import nn

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import InputError
from hbpcompiler.guards import Guards
from hbpcompiler.operators.data import Data
from hbpcompiler.operators.options import EMPIRICAL
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.sample_axes import SampleAxes
from hbpcompiler.operators.scales import Scales, scales_of
from hbpcompiler.system.digest import digest_of

Found = TypeVar("Found")
Weighted = Iterator[tuple[int, Batch, float]]
"""Number, batch, and by what its matrix is multiplied in that of all batches."""

WATCHING = frozenset({"_whole", "_of_loss", "_measured_under"})
"""What a copy has anew."""


class _OthersError(Exception):
    """A batch has other targets than those that its share was measured with."""


class Shares:
    """Of a mean, a batch's share depends on the loss (its class weights, say), on the targets (which it ignores) and on
    the model's mode, but not on parameters and inputs."""

    def __init__(self, passes: Passes, data: Data, axes: SampleAxes, kind: str,
                 count: Callable[[Any], Any] | None) -> None:
        self._passes, self._data, self._axes, self._count = passes, data, axes, count
        self._empirical = kind == EMPIRICAL
        self._watch()
        self._measure()

    def _watch(self) -> None:
        self._whole = Guards(self._passes.model, self._passes.loss)
        self._of_loss = Guards(nn.Module(), self._passes.loss)
        self._measured_under: Hashable = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches its own model and loss."""
        return {name: value for name, value in self.__dict__.items() if name not in WATCHING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._watch()

    @property
    def mean(self) -> bool:
        """Whether L is a mean."""
        return self._scales.mean

    def over(self, run: Callable[[Weighted], Found]) -> Found:
        """What `run` makes of the batches, without those that weigh nothing. It is called again where a batch turns out
        to have other targets than before. Raises InputError where they are others each time."""
        if self._measured_under != self._now():
            self._measure()
        try:
            return run(self._batches())
        except _OthersError:
            self._measure()
        try:
            return run(self._batches())
        except _OthersError:
            raise InputError("the loader gives other targets each time that it is read, so that there is no one "
                             "matrix: switch off shuffling (shuffle=False) and random augmentation") from None

    def _batches(self) -> Weighted:
        for number, batch in enumerate(self._data):
            if self._targets and self._targets[number] != digest_of(batch.targets):
                raise _OthersError
            share = self._scales.shares[number]
            if share and self._empirical:
                yield number, batch, share**2 * (self._data.samples if self.mean else 1)
            elif share:
                yield number, batch, share

    def _measure(self) -> None:
        self._measured_under = self._now()
        self._axes.forget()
        self._targets: list[str] = []
        if len(self._data) == 1 and not self._empirical:
            self._scales = Scales(True, (1.0,))
            return
        self._targets = [digest_of(batch.targets) for batch in self._data]
        counts = None if self._count is None else self._data.counts(self._count)
        self._scales = scales_of(self._passes, self._data, self._axes, counts)

    def _now(self) -> Hashable:
        """Equal as long as model and loss do the same with the same numbers; and the loss's own numbers."""
        parameters = {id(parameter) for parameter in self._passes.model.parameters()}
        own = [tensor for tensor in self._of_loss.current().tensors if id(tensor) not in parameters]
        return self._whole.current().of_traces, digest_of(own)
