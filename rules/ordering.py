"""What picks elements by their order along one axis: sort, topk, the k-th value, median, mode, running extrema.

Each result copies an element, whose place the forward pass keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.rule import Case, Op, Rule, Tensor

from .shared.reduced import axes, over_samples, spread
from .shared.selecting import selection, with_places, zeros


def places(op: Op) -> Tensor:
    """Where along the axis each result comes from, with that axis in place."""
    (axis,) = axes(op, op.dim)
    indices: Tensor = op.indices
    return indices if getattr(op, "keepdim", True) else indices.unsqueeze(axis + 1)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    """Columns go back to where the elements came from, and add up there."""
    (axis,) = axes(op, op.dim)
    if hasattr(op, "keepdim"):
        columns = spread(op, columns)
    index = places(op).unsqueeze(1).expand_as(columns)
    return zeros(op, columns).scatter_add(axis + 2, index, columns)


def ordering(operation: str, function: Callable[[Op], Any], cases: Sequence[Case]) -> Rule:
    """The rule of an operation whose results are (values, indices)."""

    return selection(operation, lambda op: with_places(op, function(op)), jac_t, cases, over_samples)


def settings(**attributes: Any) -> list[Case]:
    """Along one axis of two, and along the only one."""
    shapes = (((4,), 1), ((4,), -1), ((3, 2), 1), ((2, 3), 2))
    return [Case({"self": shape}, {**attributes, "dim": dim}) for shape, dim in shapes]


def reduced(**attributes: Any) -> list[Case]:
    """The same, with the axis kept or not."""
    return [case for keepdim in (False, True) for case in settings(keepdim=keepdim, **attributes)]


ORDERINGS = [
    ordering(
        "aten.sort",
        lambda op: torch.sort(op.self, op.dim, op.descending),
        [*settings(), *settings(descending=True)],
    ),
    ordering(
        "aten.topk",
        lambda op: torch.topk(op.self, op.k, op.dim, op.largest, op.sorted),
        [*settings(k=2), *settings(k=1, largest=False)],
    ),
    ordering("aten.kthvalue", lambda op: torch.kthvalue(op.self, op.k, op.dim, op.keepdim), reduced(k=2)),
    ordering("aten.median.dim", lambda op: torch.median(op.self, op.dim, op.keepdim), reduced()),
    ordering("aten.nanmedian.dim", lambda op: torch.nanmedian(op.self, op.dim, op.keepdim), reduced()),
    ordering("aten.mode", lambda op: torch.mode(op.self, op.dim, op.keepdim), reduced()),
    ordering("aten.cummax", lambda op: torch.cummax(op.self, op.dim), settings()),
    ordering("aten.cummin", lambda op: torch.cummin(op.self, op.dim), settings()),
]
