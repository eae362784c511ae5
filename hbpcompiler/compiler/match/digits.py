"""Whether derivatives that sympy has written keep the digits that torch's keep, at small and at large numbers.

Sympy multiplies out and cancels: a slope of x / (1 + exp(-x)) has exp(2 x) above and below, which is 0 or NaN from
44 on in float32, where it is 1; one of x sigmoid(1.7 x) has 1.7 x - 1.7 x sigmoid(1.7 x) in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SIZES = (1.3e-20, 1.1e-8, 1.3e-4, 1.7e-2, 0.23, 0.61, 1.37, 2.3, 3.7, 5.3, 7.9, 11.3, 16.7, 23.9, 31.3, 44.9, 51.7,
         67.3, 87.1, 89.9, 103.7, 131.9, 187.3, 261.1, 353.9, 371.7, 500.3, 708.1, 711.3, 1017.0, 3.3e3, 1.1e4, 1.3e5,
         1.7e6, 3.1e7, 1.9e10)
"""Of numbers at which functions are compared, and minus these; none of them is where people put kinks."""
USUAL = 2.5
"""Up to here a function has the slopes that it has where it is used."""
OF_TORCH, OF_VALUE, OF_USUAL = 16.0, 64.0, 16.0
"""An error may be so many times torch's own, and so many roundings of the value and of the usual size of values."""


class Slopes(NamedTuple):
    """First and second derivative at each point."""

    first: Tensor
    second: Tensor


Find = Callable[[Tensor, Tensor], tuple[Any, Any]]
"""Of points x and results y: first and second derivatives, tensors or numbers."""


def keeps_digits(run: Callable[[Tensor], Tensor], find: Find) -> bool:
    """Whether `find(x, y)` is as good as torch's own derivatives of y = run(x), in float32 and in float64."""
    points = torch.tensor([*SIZES, *(-size for size in SIZES)], dtype=torch.float32, device="cpu")
    right = _by_torch(run, points.double())
    for given in (points, points.double()):
        torchs = _by_torch(run, given)
        with torch.no_grad():
            found = find(given, run(given))
        for value, its, wanted in zip(found, torchs, right, strict=True):
            own = torch.as_tensor(value, dtype=given.dtype, device=given.device).expand(given.shape)
            if not _is_as_good(own, its, wanted, points):
                return False
    return True


def _by_torch(run: Callable[[Tensor], Tensor], points: Tensor) -> Slopes:
    with torch.inference_mode(False), torch.enable_grad():
        moved = points.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(moved).sum(), moved, create_graph=True)
        if not first.requires_grad:
            return Slopes(first, torch.zeros_like(first))
        (second,) = torch.autograd.grad(first.sum(), moved, allow_unused=True)
    return Slopes(first.detach(), torch.zeros_like(first) if second is None else second)


def _is_as_good(own: Tensor, torchs: Tensor, right: Tensor, points: Tensor) -> bool:
    """Where torch has a number. In float64 `right` is torch's, too."""
    known = torchs.isfinite() & right.isfinite()
    usual = right[known & (points.abs() < USUAL)].abs()
    eps = torch.finfo(own.dtype).eps
    size = OF_VALUE * right.abs() + OF_USUAL * (usual.max() if usual.numel() else 0.0)
    allowed = OF_TORCH * (torchs.double() - right).abs() + eps * size
    return bool((own.double() - right).abs().le(allowed)[known].all())
