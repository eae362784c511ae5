"""Batches whose loss or gradient is infinite or NaN: said aloud, and no step of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from hbpcompiler.callers import level_of_caller
from hbpcompiler.errors import NotFiniteWarning


def are_finite(loss: Tensor, gradient: Mapping[str, Tensor]) -> bool:
    """Whether a batch's loss and gradient are."""
    found = [_sum(part).isfinite().to(loss.device) for part in (loss, *gradient.values())]
    return bool(torch.stack(found).all())


def _sum(part: Tensor) -> Tensor:
    """Of all numbers, not in half precision, which would soon be infinite."""
    return part.detach().sum(dtype=torch.promote_types(part.dtype, torch.float32))


def warn_of(step: int, consequence: str) -> None:
    """That those of this step are not."""
    warnings.warn(f"the loss or the gradient of step {step} is infinite or NaN: {consequence}", NotFiniteWarning,
                  stacklevel=level_of_caller())
