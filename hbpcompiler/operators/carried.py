"""Layers through which a vector is carried forward with fewer tensors than torch's own way makes.

A layer that is bilinear in its input and its weight turns tangents (x', W', b') into f(x', W) + f(x, W', b'). torch's
forward mode makes the two parts, then their sum, and another sum with b' (2.13), each as large as the layer's output:
here the second part is added to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.system.modes import FunctionMode

BILINEAR = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d)
"""Of an input, a weight, perhaps a bias, and numbers."""


class _Bilinear(torch.autograd.Function):
    """`function` of three tensors; it has no way back."""

    @staticmethod
    def forward(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return function(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function, x, weight, _ = inputs
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, _: None, of_x: Tensor | None, of_weight: Tensor | None,
            of_bias: Tensor | None) -> Tensor | None:
        """None: nothing is carried to this layer."""
        x, weight = ctx.saved_tensors
        carried: Tensor | None = None
        if of_weight is not None or of_bias is not None:
            carried = ctx.function(x, torch.zeros_like(weight) if of_weight is None else of_weight, of_bias)
        if of_x is not None:
            part = ctx.function(of_x, weight, None)
            carried = part if carried is None else carried.add_(part)
        return carried


def _bilinear(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any,
              **names: Any) -> Tensor:
    found: Tensor = _Bilinear.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
        lambda *tensors: function(*tensors, *rest, **names), x, weight, bias)
    return found


class _Carrying(FunctionMode):
    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        if function in BILINEAR:
            return _bilinear(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def with_few_tensors() -> AbstractContextManager[Any]:
    """Meanwhile, and in this thread, forward-mode derivatives of these layers take less memory; nothing that is
    computed can be differentiated backwards."""
    return _Carrying()
