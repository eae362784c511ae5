"""Columns cross an elementwise operation: times its local slope, and 0 on pieces where it is flat, whatever arrives.

There torch selects, as in threshold_backward, where 0 times the infinite slope of an operation below were NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import passed


def masked(slope: Tensor, alive: Tensor) -> Tensor:
    """A local `slope` [N, *z] that is 0 on pieces: where the mask `alive`, which may be the slope itself, is 0."""
    proxy: Any = slope  # what the compiler passes where rules see a tensor
    if isinstance(proxy, torch.fx.Proxy):
        proxy.node.meta["alive"] = alive
    return slope


def times_slope(columns: Tensor, slope: Tensor, alive: Tensor | None = None) -> Tensor:
    """Columns [N, K, *z] times the slope; 0 where `alive`, or what `masked` said of it, is 0."""
    alive = alive_of(slope) if alive is None else alive
    if alive is slope:
        return passed(columns, slope.unsqueeze(1))
    product = columns * slope.unsqueeze(1)
    return product if alive is None else passed(product, alive.unsqueeze(1))


def times_square(diagonal: Tensor, slope: Tensor) -> Tensor:
    """A diagonal [N, *z] times the slope's square, likewise: one by one, as the square alone may be infinite."""
    alive = alive_of(slope)
    if alive is slope:
        return passed(diagonal, slope)
    product = diagonal * slope * slope
    return product if alive is None else passed(product, alive)


def alive_of(slope: Any) -> Any | None:
    """What `masked` said of a slope: the slope itself where that is a mask, None where nothing."""
    alive = slope.node.meta.get("alive") if isinstance(slope, torch.fx.Proxy) else None
    return slope if alive is not None and alive.node is slope.node else alive
