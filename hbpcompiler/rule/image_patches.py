"""What a kernel sees of an image at each position: helpers of generated code."""

from __future__ import annotations

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def windows(x: Tensor, kernel: list[int], stride: Optional[list[int]] = None, dilation: Optional[list[int]] = None,  # noqa: UP045
            padding: Optional[list[int]] = None) -> Tensor:  # noqa: UP045
    """What a kernel sees at each position, as views: [N, C, *x] -> [N, C, *positions, *kernel]; padding as F.pad's."""
    if padding is not None:
        x = F.pad(x, padding)
    for axis in range(len(kernel)):
        apart = 1 if dilation is None else dilation[axis]
        x = x.unfold(axis + 2, apart * (kernel[axis] - 1) + 1, 1 if stride is None else stride[axis])
        if apart > 1:
            x = x.unfold(-1, 1, apart).squeeze(-1)  # every so many elements of the window
    return x


@idiom
def patches(x: Tensor, kernel: list[int], stride: Optional[list[int]] = None, dilation: Optional[list[int]] = None,  # noqa: UP045
            padding: Optional[list[int]] = None) -> Tensor:  # noqa: UP045
    """`windows` in one copy, [N, C * kernel's size, positions]; F.unfold takes two or three times as long on a CPU."""
    axes = len(kernel)
    seen = windows(x, kernel, stride, dilation, padding)
    order = [0, 1] + [axes + 2 + axis for axis in range(axes)] + [2 + axis for axis in range(axes)]
    return seen.permute(order).flatten(axes + 2).flatten(1, axes + 1)


@idiom
def patch_rows(x: Tensor, kernel: list[int], stride: Optional[list[int]] = None, dilation: Optional[list[int]] = None,  # noqa: UP045
               padding: Optional[list[int]] = None) -> Tensor:  # noqa: UP045
    """`patches` of all samples side by side, in one copy too: [C * kernel's size, N * positions]."""
    axes = len(kernel)
    seen = windows(x, kernel, stride, dilation, padding)
    order = [1] + [axes + 2 + axis for axis in range(axes)] + [0] + [2 + axis for axis in range(axes)]
    return seen.permute(order).flatten(axes + 1).flatten(0, axes)
