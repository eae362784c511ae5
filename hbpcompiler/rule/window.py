"""Windows: which neighbourhood of its inputs an output reads, and the patches that windows see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.rule import image_patches


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


def patches(x: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
            before: Sequence[int] = (), after: Sequence[int] = ()) -> Tensor:
    """What windows see of x, padded with zeros: [B, C, *x] -> [B, C * the size of a window, positions]."""
    axes = len(size)
    if prod(size) == prod(stride) == 1:
        return flat_positions(pad_axes(x, before, after), axes)
    given: dict[str, list[int]] = {}
    if set(stride) != {1}:
        given["stride"] = list(stride)
    if set(dilation) != {1}:
        given["dilation"] = list(dilation)
    if any(before) or any(after):
        given["padding"] = amounts(before, after)
    return image_patches.patches(x, list(size), **given)


def flat_positions(x: Tensor, axes: int) -> Tensor:
    """[..., *spatial] -> [..., positions]."""
    return x.flatten(-axes) if axes > 1 else x


def amounts(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding as F.pad takes it, which counts axes from the last."""
    return [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]


def pad_axes(x: Tensor, before: Sequence[int], after: Sequence[int], fill: float = 0.0) -> Tensor:
    """`fill` before and after the last axes (fewer than none: cut off)."""
    if not any(before) and not any(after):
        return x
    return F.pad(x, amounts(before, after), value=fill) if fill else F.pad(x, amounts(before, after))
