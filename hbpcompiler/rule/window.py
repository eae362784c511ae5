"""Windows: which neighbourhood of its inputs an output reads, and the patches that windows see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Outputs that read a neighbourhood: along each spatial axis, output y reads inputs stride * y - before +
    dilation * a for a < `size`, of all inputs that have samples, [N, channels, *spatial].

    With the attributes `unpadded` the same operation makes some of its outputs of a piece of its input; where that
    reaches beyond the image, `fill` stands there. Where a parameter meets what the windows see, its contraction's
    operand is `patches` of the padded input.
    """

    size: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    before: Sequence[int]
    unpadded: Mapping[str, Any] = field(default_factory=dict)
    fill: float = 0.0

    def after(self, inner: Sequence[int], outer: Sequence[int]) -> list[int]:
        """How far the last windows of so many outputs reach beyond the end of so many inputs, along each axis."""
        return [(outputs - 1) * self.stride[axis] - self.before[axis] + self.dilation[axis] * (self.size[axis] - 1)
                + 1 - inputs for axis, (inputs, outputs) in enumerate(zip(inner, outer, strict=True))]


def patches(x: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What windows see of a padded x: [B, C, *x] -> [B, C * the size of a window, positions].

    Windows are views, so there is one copy; F.unfold makes the same in two or three times the time on a CPU.
    """
    axes = len(size)
    if prod(size) == prod(stride) == 1:
        return flat_positions(x, axes)
    for axis in range(axes):
        x = x.unfold(axis + 2, dilation[axis] * (size[axis] - 1) + 1, stride[axis])
        if dilation[axis] > 1:
            x = x.unfold(-1, 1, dilation[axis]).squeeze(-1)  # every dilation-th element of the window
    if axes == 1:
        return x.transpose(2, 3).flatten(1, 2)
    return x.permute(0, 1, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2)).flatten(axes + 2).flatten(1, axes + 1)


def flat_positions(x: Tensor, axes: int) -> Tensor:
    """[..., *spatial] -> [..., positions]."""
    return x.flatten(-axes) if axes > 1 else x


def pad_axes(x: Tensor, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> Tensor:
    """`fill` before and after the last axes (fewer than none: cut off). F.pad counts axes from the last."""
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    if not any(amounts):
        return x
    return F.pad(x, amounts, value=fill) if fill else F.pad(x, amounts)
