"""The frame of operations that put values into a copy of a tensor.

Columns of what is put are taken from where it went; columns of the tensor are zero there, or stay where it is added.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Structure, Tensor

from .selecting import axis

Take = Callable[[Op, Tensor], Tensor]
"""(op, columns of the result) -> those of the place where something is put."""
Clear = Callable[[Op, Tensor], Tensor]
"""(op, columns of the result) -> the same with zeros there."""


def across_samples(op: Op) -> str | None:
    return "it puts values at samples; put them along the axes after the sample axis" if axis(op) == -1 else None


def putting(
    operation: str,
    source: str,
    take: Take,
    clear: Clear,
    cases: Sequence[Case],
    refuse: Callable[[Op], str | None] = across_samples,
    forward: Callable[[Op], Any] | None = None,
    structure: Structure | Callable[[Op], Structure] = Structure.SELECTION,
    *,
    alone: bool = False,
    params: Callable[[Op], Mapping[str, Contraction]] = lambda op: {},
    formula: str = "to what was put S where it was put, to the rest S elsewhere",
) -> Rule:
    """A rule for an operation that puts the tensor `source` into `self`; `alone`: one without samples too."""

    def refused(op: Op) -> str | None:
        if not op.has_samples("self"):
            return "it puts samples into a tensor that has none; expand that over the batch first"
        if (reason := refuse(op)) is not None:
            return reason
        if not alone and op.has(source) and not op.has_samples(source) and op.shape(source):
            return f"'{source}' has no sample axis of its own; expand it over the batch first"
        return None

    return Rule(
        operations=[operation],
        forward=forward,
        jac_t={"self": clear, source: take},
        params=params,
        residual=ZERO,
        formula=formula,
        structure=structure,
        refuse=refused,
        cases=cases,
    )


def zeroed(put: Callable[[Op, Tensor, Tensor], Tensor], take: Take) -> Clear:
    """Clearing as putting zeros."""
    return lambda op, columns: put(op, columns, torch.zeros_like(take(op, columns)))


def case(shape: tuple[int, ...], source: tuple[int, ...], name: str = "src", constant: Sequence[str] = (),
         **attributes: Any) -> Case:
    return Case({"self": shape, name: source}, attributes, ("self", name), constant=constant)
