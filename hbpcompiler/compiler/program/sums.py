"""Helpers of generated files that add results to totals which a call brings."""

from __future__ import annotations

from torch import Tensor

from hbpcompiler.compiler.program.products import add_product_
from hbpcompiler.rule.idioms import idiom


@idiom
def added_(total: Tensor, value: Tensor, decay: float, share: float, divisor: int = 1) -> Tensor:
    """total becomes decay * total + share * value / divisor, in its memory; with a decay of 0 whatever it was."""
    if decay == 0.0:
        total.copy_(value)
        if divisor != 1:
            total.div_(divisor)
        return total if share == 1.0 else total.mul_(share)
    if decay != 1.0:
        total.mul_(decay)
    if total.dtype == value.dtype or total.is_cuda or not (total.is_contiguous() and value.is_contiguous()):
        return total.add_(value, alpha=share / divisor)
    # A CPU converts all of a tensor before it adds it; a piece of it stays in the cache.
    own, part = total.view(-1), value.view(-1)
    for start in range(0, own.numel(), 65536):
        own[start : start + 65536].add_(part[start : start + 65536], alpha=share / divisor)
    return total


@idiom
def added_triangle_(total: Tensor, value: Tensor, decay: float, share: float, divisor: int = 1) -> Tensor:
    """The same for the upper triangle of a symmetric matrix, which is half the work; below it there is no sum."""
    if decay == 0.0:
        total.zero_()
    elif decay != 1.0:
        total.mul_(decay)
    for start in range(0, total.shape[0], 64):
        total[start : start + 64, start:].add_(value[start : start + 64, start:], alpha=share / divisor)
    return total


@idiom
def added_product_triangle_(
    total: Tensor, x: Tensor, y: Tensor, decay: float, share: float, divisor: int = 1
) -> Tensor:
    """The same of a symmetric x @ y.t(), made in the total where that has its dtype, a block of rows at a time."""
    if total.dtype != x.dtype:
        return added_triangle_(total, x @ y.t(), decay, share, divisor)
    for start in range(0, total.shape[0], 128):
        add_product_(total[start : start + 128, start:], x[start : start + 128], y[start:], share / divisor, decay)
    return total
