"""Sizes of numbers whose squares, or inverse roots, leave the range of their dtype: helpers of generated code."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def largest_of_samples(x: Tensor) -> Tensor:
    """The largest absolute number of each sample, [N, 1, ...]; 1 where all are 0."""
    largest = x.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest, 1.0).reshape([-1] + [1] * (x.dim() - 1))


@idiom
def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths along the last axis, [N, ..., 1], also of numbers whose squares are too large or too small."""
    unit = largest_of_samples(x)
    return (x / unit).norm(2, [-1], True) * unit


@idiom
def above_zero(x: Tensor) -> Tensor:
    """x >= 0, and where it is 0 so small a number that one may divide by its root."""
    return x.clamp(min=1e-300 if x.dtype == torch.float64 else 1e-30)
