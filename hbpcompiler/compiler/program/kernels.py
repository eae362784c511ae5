"""Functions that a generated file defines for itself if its program calls them: there they stand as they stand here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """F.linear by oneDNN, which multiplies float32 matrices faster than BLAS on many processors."""
    compiling = False if torch.jit.is_scripting() else torch.compiler.is_compiling()  # type: ignore[attr-defined]  # untyped
    if compiling or not (x.is_cpu or x.is_meta) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # oneDNN is slow where rows lie apart in memory
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def product_over_pixels(x: Tensor, y: Tensor) -> Tensor:
    """einsum("nop,nip->oi") as a 1 x 1 convolution's weight gradient: reads images pixel by pixel without copies."""
    weight = x.new_empty(1).expand(x.shape[1], y.shape[1], 1, 1)
    _, product, _ = torch.ops.aten.convolution_backward(
        x.unsqueeze(2), y.unsqueeze(2), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return product.flatten(1)


FALLBACKS: dict[Callable[..., Any], str] = {
    onednn_linear: "if not torch.backends.mkldnn.is_available():\n    onednn_linear = F.linear",
    product_over_pixels: "",
}
"""Helper -> what follows its definition, for builds of torch that cannot run it."""


PRODUCTS: frozenset[Any] = frozenset({
    operator.matmul, torch.einsum, onednn_linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
    F.conv_transpose2d, F.conv_transpose3d, torch.ops.aten.convolution_backward})
"""What columns are multiplied by, as programs call it: the results are the largest tensors there are."""
LAID_AS_GIVEN: dict[Any, int] = {torch.ops.aten.convolution_backward: 1}
"""Kernel of torch -> which of its results lies in memory as the parameter does that it is the gradient of."""
RELAYOUTS = frozenset({torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.convolution_backward})
"""Kernels of torch that work on copies of what lies channel by channel, in a layout of their own."""
MANY_PRODUCTS = frozenset({torch.ops.aten.bmm})
"""Kernels of torch that multiply many small matrices."""
ONEDNN_LINEAR = "mkldnn._linear_pointwise"
"""The kernel in `onednn_linear`: not in every build of torch, so by its name."""


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is more than F.linear there."""
    return device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available()
