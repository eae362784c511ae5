"""Edges of a function's domain that an expression may have lost: sympy writes sqrt(x**2) as |x| and exp(log(x)) as x,
but where torch's square root and logarithm have no derivative (at 0, or below it) its gradient is NaN, and a program
should say so too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where functions have their edges, and some points between; the numbers of an expression are tried too."""
MOST_POINTS = 32


def loses_edge(expression: Any, run: Callable[[Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether `slope(x, y)` is finite at a point where torch's own derivative of y = run(x) is not.

    `run` are the operations as they were written, `expression` is what they were joined to.
    """
    points = torch.tensor(_points(expression), dtype=torch.float64, device="cpu")
    with torch.inference_mode(False), torch.enable_grad():
        moved = points.clone().requires_grad_()
        made = run(moved)
        (right,) = torch.autograd.grad(made.sum(), moved)
    outside = ~right.isfinite()
    return bool(outside.any()) and bool((slope(points, made.detach()).isfinite() & outside).any())


def _points(expression: Any) -> Sequence[float]:
    numbers = sorted(float(number) for number in expression.atoms(sympy.Number) if number.is_finite)
    found = dict.fromkeys([*POINTS, *numbers, *(-number for number in numbers)])
    return list(found)[:MOST_POINTS]
