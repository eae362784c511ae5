"""fill_diagonal_ without a change in place, which torch has by places in memory alone, with a wrong derivative."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def filled_diagonal(x: Tensor, value: float, wrap: bool = False) -> Tensor:
    """x.fill_diagonal_(value), which torch writes by places in memory: those from corner to corner, with `wrap` those
    of a tall matrix that come after them in the same steps."""
    if x.dim() == 2 and not wrap:
        return aten.diagonal_scatter.default(x, aten.full_like.default(aten.diagonal.default(x), value))
    step = sum(prod(x.shape[axis + 1 :]) for axis in range(x.dim()))
    end = x.numel() if wrap or x.dim() > 2 else x.shape[1] ** 2
    flat = aten.reshape.default(x, [-1])
    filled = aten.full_like.default(aten.slice.Tensor(flat, 0, 0, end, step), value)
    return aten.reshape.default(aten.slice_scatter.default(flat, filled, 0, 0, end, step), list(x.shape))


OWN: dict[Any, Callable[..., Any]] = {aten.fill_diagonal_.default: filled_diagonal}
"""The functional forms of what has none in torch."""
