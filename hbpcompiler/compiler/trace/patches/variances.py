"""torch's Gaussian loss clamps its variances without gradients, where no trace sees that: a function of
torch.nn.functional hands itself to torch.export's mode, which is off within it.

What is clamped has a derivative of 1 there, as torch has it, and not the clamp's 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_OWN: Any = F.gaussian_nll_loss
_AS_IT_IS: Callable[..., Tensor] = FunctionType(_OWN.__code__, _OWN.__globals__, argdefs=_OWN.__defaults__)


NEVER = -1.0
"""A limit that no variance is below."""


class _Runs(threading.local):
    within = False


_RUNS = _Runs()


@contextmanager
def variances_clamped_in_sight() -> Iterator[None]:
    """Meanwhile F.gaussian_nll_loss says so in its operations. Its code is exchanged, as people import the function."""
    before, _OWN.__code__ = _OWN.__code__, _seen.__code__
    try:
        yield
    finally:
        _OWN.__code__ = before


def _seen(input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
          ) -> Tensor:
    """Runs among torch's own names."""
    from hbpcompiler.compiler.trace.patches.variances import of_seen_variances

    return of_seen_variances(input, target, var, full, eps, reduction)


def of_seen_variances(input: Tensor, target: Tensor, var: Any, full: bool, eps: float, reduction: str) -> Tensor:
    """Once, at the outermost call: modes, which see what is detached there, call torch's function without them again.
    Its own clamp has nothing left to do, whatever its slope is at the limit."""
    if _RUNS.within or not isinstance(var, Tensor):
        return _AS_IT_IS(input, target, var, full, eps, reduction)
    seen = torch.where(var < eps, var - var.detach() + eps, var)
    _RUNS.within = True
    try:
        return _AS_IT_IS(input, target, seen, full, NEVER, reduction)
    finally:
        _RUNS.within = False
