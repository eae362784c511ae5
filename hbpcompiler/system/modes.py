"""Modes of this library's own around a user's code: they see its calls of torch, and change none of its numbers.

torch's weighted mean absolute error does not keep to that: under any mode F.l1_loss hands itself on without its weight
(2.13 and 2.14). So its code is another while such a mode is in force: people import the function by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import TorchFunctionMode

_OWN: Any = F.l1_loss
_AS_IT_IS: Callable[..., Tensor] = FunctionType(_OWN.__code__, _OWN.__globals__, argdefs=_OWN.__defaults__)
_LOCK = threading.Lock()


class FunctionMode(TorchFunctionMode):
    """The base of them all."""

    in_force = 0
    """In all threads."""

    def __enter__(self) -> Any:
        with _LOCK:
            FunctionMode.in_force += 1
            _OWN.__code__ = _weighing.__code__
        return super().__enter__()  # type: ignore[no-untyped-call]  # torch gives it no types

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]  # likewise
        with _LOCK:
            FunctionMode.in_force -= 1
            if not FunctionMode.in_force:
                _OWN.__code__ = _AS_IT_IS.__code__


def _weighing(input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
              weight: Any = None) -> Tensor:
    """Runs among torch's own names."""
    from hbpcompiler.system.modes import weighted_errors

    return weighted_errors(input, target, size_average, reduce, reduction, weight)


def weighted_errors(input: Tensor, target: Tensor, size_average: Any, reduce: Any, reduction: str, weight: Any
                    ) -> Tensor:
    """F.l1_loss, with a weight written out in operations that modes see one by one. ValueError as torch raises it."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if weight is None or reduction not in ("none", "sum", "mean"):
        return _AS_IT_IS(input, target, reduction=reduction)
    if weight.size() != input.size():
        raise ValueError("Weights and input must have the same size.")
    errors = (input - target).abs() * weight
    if reduction == "none":
        return errors
    return errors.sum() if reduction == "sum" else errors.sum() / weight.sum()
