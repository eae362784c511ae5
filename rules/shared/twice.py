"""Functions of torch whose second derivative is wrong, or fails, where the kernel of their first has one of its own;
and of which the first is of single precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norms taken over all axes but one; of torch's own kernel, for the first and the last axis, double
    backward is off by a quarter and more in v (2.13, 2.14)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
               bias: Tensor | None = None, eps: float = 1e-5, *others: Any, **names: Any) -> Tensor:
    """With a bias alone torch's double backward takes the bias for a constant (2.13, 2.14)."""
    if weight is not None or bias is None:
        return torch.layer_norm(input, normalized_shape, weight, bias, eps, *others, **names)
    return torch.layer_norm(input, normalized_shape, None, None, eps, *others, **names) + bias


def group_norm(input: Tensor, num_groups: int, *others: Any, **names: Any) -> Tensor:
    """Of images that lie channels-last, double backward by its bias alone kills the process (2.13)."""
    return torch.group_norm(input.contiguous(), num_groups, *others, **names)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Its backward divides by an alpha in single precision, and is off by 1e-8 in double precision (2.13, 2.14)."""
    return torch.celu_(input, alpha) if inplace else torch._C._nn.elu(input, alpha, 1.0, 1.0 / alpha)


IN_OTHERS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    torch.layer_norm: layer_norm,
    F.layer_norm: layer_norm,
    torch.group_norm: group_norm,
    F.group_norm: group_norm,
    torch.celu: celu,
    F.celu: celu,
}
"""By torch's function, whoever calls it: the same in what is differentiated right. A Python function of torch's that
calls another one here needs an entry of its own: inside it nothing is replaced."""


class _InTheirPlace(TorchFunctionMode):
    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        return IN_OTHERS.get(function, function)(*args, **(kwargs or {}))


def right_derivatives() -> AbstractContextManager[Any]:
    """Meanwhile, and in this thread, those functions are in the place of torch's."""
    return _InTheirPlace()
