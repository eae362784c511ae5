"""What convolutions and pooling share: arguments per axis, patches, and the functions for one, two and three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch.nn.functional as F

from hbpcompiler.rule import Op, Tensor

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
DEFAULTS = {
    "padding": 0,
    "output_padding": 0,
    "dilation": 1,
    "groups": 1,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}


def per_axis(argument: Any, axes: int) -> list[int]:
    """An argument such as `stride`, given as a number, a list of one, or one for each spatial axis."""
    values = [argument] if isinstance(argument, int) else list(argument)
    return values * axes if len(values) == 1 else values


def brief(value: Any) -> Any:
    """2 for [2, 2]."""
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def options(*, stride: list[int], usual: list[int], **arguments: Any) -> dict[str, Any]:
    """Keyword arguments as one would write them: without defaults (`usual` for the stride), and 2 for [2, 2]."""
    given = {"stride": stride, **arguments} if stride != usual else arguments
    short = {name: brief(value) for name, value in given.items()}
    return {name: value for name, value in short.items() if name not in DEFAULTS or value != DEFAULTS[name]}


def pad_axes(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Zeros before and after the last axes (fewer than none: cut off). F.pad counts axes from the last."""
    amounts = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return F.pad(x, amounts) if any(amounts) else x


def cut(x: Tensor, shape: Sequence[int], excess: Sequence[int]) -> Tensor:
    """The last axes cut to `shape`, where something is in excess."""
    for axis, (length, surplus) in enumerate(zip(shape, excess, strict=True), start=-len(shape)):
        if surplus > 0:
            x = x.narrow(axis, 0, length)
    return x


def patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What a kernel sees at each position of a padded x: [B, C, *x] -> [B, C * kernel's size, positions].

    Windows are views, so there is one copy; F.unfold makes the same in two or three times the time on a CPU.
    """
    axes = len(kernel)
    if prod(kernel) == prod(stride) == 1:
        return flat_positions(x, axes)
    for axis in range(axes):
        x = x.unfold(axis + 2, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
        if dilation[axis] > 1:
            x = x.unfold(-1, 1, dilation[axis]).squeeze(-1)  # every dilation-th element of the window
    if axes == 1:
        return x.transpose(2, 3).flatten(1, 2)
    return x.permute(0, 1, *range(axes + 2, 2 * axes + 2), *range(2, axes + 2)).flatten(axes + 2).flatten(1, axes + 1)


def flat_positions(x: Tensor, axes: int) -> Tensor:
    """[..., *spatial] -> [..., positions]."""
    return x.flatten(-axes) if axes > 1 else x


def scatter(columns: Tensor, positions: Tensor, input_shape: Sequence[int], axes: int) -> Tensor:
    """Add each element of the columns [N, K, *lead, *out] to the input's element at its flat position.

    `positions` broadcasts to [N, *lead, *out]. It is expanded over the columns, as the zeros are: nothing is copied.
    """
    values = flat_positions(columns, axes)
    index = flat_positions(positions, axes).unsqueeze(1).expand_as(values)
    lead, spatial = input_shape[:-axes], input_shape[-axes:]
    zeros = columns.new_zeros(1).expand(columns.shape[0], columns.shape[1], *lead, prod(spatial))
    added = zeros.scatter_add(-1, index, values)
    return added.unflatten(-1, list(spatial)) if axes > 1 else added


def refuse_unbatched(op: Op, axes: int) -> str | None:
    """Why a convolution of an input without channel axis is refused."""
    if len(op.shape("input")) == axes + 1:
        return None
    return (
        f"its input has {axes + 1} axes, so the sample axis is taken for the channels; "
        "add a channel axis, x.unsqueeze(1), before the convolution"
    )
