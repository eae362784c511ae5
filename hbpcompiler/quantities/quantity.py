"""What an entry of the table is, and what its value is computed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hbpcompiler.quantities.vocabulary import COLUMN_SUM, EIGEN, KFRA, TOTALS, VECTORS, WEIGHED, Closing


class Closed:
    """What `Quantity.value` computes with: the closings of one parameter, the batch size, the reduction."""

    def __init__(self, closings: Mapping[Closing, Any], batch: Any, reduction: str,
                 output: tuple[int, ...] = ()) -> None:
        self.closings = closings
        self.batch = batch
        self.reduction = reduction
        self.output = output
        """The shape of one sample's part of the output at which the stream OUTPUT begins."""

    def get(self, stream: str, kind: str) -> Any:
        """A closing; None if nothing of that stream reaches the parameter (a residual that is zero)."""
        return self.closings.get(Closing(stream, kind))

    def scaled(self, value: Any) -> Any:
        """Times c."""
        return value / self.batch if self.reduction == "mean" else value

    def total(self, value: Any) -> Any:
        """A batch average in terms of L: times N for a summed loss."""
        return value if self.reduction == "mean" else value * self.batch

    def mean(self, value: Any) -> Any:
        """Over N, whatever the reduction."""
        return value / self.batch


PARAMETER, GROUP, BATCH = "parameter", "group", "batch"
"""What a quantity has a value for: each parameter, each group of parameters (`Chosen.groups`)."""


@dataclass(frozen=True)
class Quantity:
    """One entry of the table. `value(closed)` is a tensor, or one per name of `fields`."""

    name: str
    summary: str
    needs: tuple[Closing, ...]
    value: Callable[[Closed], Any]
    fields: tuple[str, ...] = ()
    """The named tuple's fields, for quantities of several tensors."""
    record: str = ""
    """The named tuple's class name."""
    optional: tuple[str, ...] = ()
    """Fields that may be None (a bias has no A)."""
    lists: tuple[str, ...] = ()
    """Fields that are lists of tensors, one for each piece of curvature."""
    symmetric: tuple[str, ...] = ()
    """Fields that are symmetric matrices."""
    of_each_loss: bool = False
    """Whether it is about l_n itself, whose scale depends on whether the loss is a mean or a sum."""
    adds: tuple[str, ...] = ()
    """How it adds up over batches, for the value or for each of `fields`; none: it does not."""
    instead: str = ""
    """What to accumulate, or to do, in place of what does not add up."""
    per: str = PARAMETER
    """What there is a value for; its closings are totals where that is a group, and those of the whole
    batch where there is one value for all of it."""
    arguments: tuple[str, ...] = ()
    """Names of the call arguments (see `arguments`) that a program needs for it."""
    summed: tuple[Closing, ...] = ()
    """Those of its closings that are added up over the parameters that it is for."""
    brings: tuple[str, ...] = ()
    """Quantities that are in the result beside it, for the same parameters."""

    @property
    def streams(self) -> set[str]:
        return {closing.stream for closing in self.needs if closing.stream}

    def needs_roots(self, stream: str) -> bool:
        """Whether it is made of columns themselves of this stream, which must be real square roots."""
        return any(WEIGHED.get(closing.stream, closing.stream) == stream
                   and closing.kind in {VECTORS, COLUMN_SUM, *TOTALS} for closing in self.needs)

    @property
    def of_groups(self) -> bool:
        """Whether it is for parameters in groups alone."""
        return self.per == GROUP or bool(self.streams & WEIGHED.keys())

    @property
    def averages(self) -> bool:
        """Whether averages over the samples go into it, of which weights that are all zero leave nothing."""
        return any(closing.stream in ("", KFRA) or closing.kind == EIGEN for closing in self.needs)
