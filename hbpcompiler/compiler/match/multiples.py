"""What is a multiple of a number that is not negative, as numbers show: relu(n), leaky_relu(n), n + 0, elu(2 n) / 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.trace.fx_graph.numbers import has_batchs_size
from hbpcompiler.compiler.trace.graph import Operation


def multiple_of_not_negative(operation: Operation) -> float | None:
    """By which number an elementwise operation of one tensor multiplies all that is not negative; None if it does
    something else to some."""
    tensors = list(operation.tensors.values())
    if len(tensors) != 1 or not aten.is_pointwise(operation) or aten.draws(operation):
        return None
    dtype = operation.output.dtype
    if not dtype.is_floating_point or tensors[0].dtype != dtype or has_batchs_size(operation.attributes):
        return None
    numbers = _numbers(dtype)
    try:
        found = aten.call(operation, aten.overload_of(operation), lambda slot: numbers)
        factor = float(found[numbers == 1])
        same = torch.equal(found, factor * numbers)
    except (RuntimeError, TypeError, ValueError, IndexError):  # not with such arguments, or not on this device
        return None
    return factor if same and factor and math.isfinite(factor) else None


def _numbers(dtype: torch.dtype) -> Tensor:
    """Of all sizes: a limit may begin anywhere."""
    info = torch.finfo(dtype)
    powers = torch.linspace(math.log2(info.tiny), math.log2(info.max) - 2, 64, dtype=torch.float64, device="cpu")
    exact = torch.tensor([0.0, 1.0, info.max], dtype=torch.float64, device="cpu")
    return torch.cat([exact, powers.exp2()]).to(dtype)
