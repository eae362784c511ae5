"""Average-pooling and its adaptive variant: a linear map, the same for every sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import (
    ZERO,
    Case,
    Op,
    Rule,
    Structure,
    Tensor,
    Window,
    adaptive_avg_pool2d_back,
    adaptive_avg_pool3d_back,
    avg_pool2d_back,
    avg_pool3d_back,
)

from .shared.image_cases import adaptive_cases, case_of_images
from .shared.spatial import brief, options, per_axis

AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: torch.adaptive_avg_pool1d,
    2: torch.ops.aten.adaptive_avg_pool2d,
    3: torch.ops.aten.adaptive_avg_pool3d,
}
BACK: dict[int, Callable[..., Tensor]] = {1: avg_pool2d_back, 2: avg_pool2d_back, 3: avg_pool3d_back}
ADAPTIVE_BACK: dict[int, Callable[..., Tensor]] = {
    1: adaptive_avg_pool2d_back,
    2: adaptive_avg_pool2d_back,
    3: adaptive_avg_pool3d_back,
}


def pulled(op: Op, columns: Tensor, axes: int, back: Callable[..., Tensor], *given: Any, **more: Any) -> Tensor:
    """Columns back to the input; one spatial axis is made two, for which torch has kernels."""
    size = list(op.shape("self")[-axes:])
    if axes == 1:
        return back(columns.unsqueeze(-2), [1, *size], *given, **more).squeeze(-2)
    return back(columns, size, *given, **more)


def settings(op: Op, axes: int) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding, a number for each axis."""
    kernel = per_axis(op.kernel_size, axes)
    return kernel, per_axis(op.stride, axes) or kernel, per_axis(op.padding, axes)


def avg_pool(axes: int) -> Rule:
    """Average-pooling over so many axes."""

    def forward(op: Op) -> Tensor:
        kernel, stride, padding = settings(op, axes)
        chosen = options(
            stride=stride,
            usual=kernel,
            padding=padding,
            ceil_mode=op.ceil_mode,
            count_include_pad=op.count_include_pad,
            **({"divisor_override": op.divisor_override} if axes > 1 else {}),
        )
        return AVERAGE[axes](op.self, brief(kernel), **chosen)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        kernel, stride, padding = settings(op, axes)
        if axes == 1:
            kernel, stride, padding = [1, *kernel], [1, *stride], [0, *padding]
        return pulled(op, columns, axes, BACK[axes], kernel, stride, padding, ceil_mode=op.ceil_mode,
                      count_include_pad=op.count_include_pad,
                      divisor_override=op.divisor_override if axes > 1 else None)

    def window(op: Op) -> Window | None:
        kernel, stride, padding = settings(op, axes)
        even = not op.ceil_mode and (op.count_include_pad or not any(padding))  # else windows differ at the borders
        if len(op.shape("self")) == axes or not even:
            return None
        return Window(kernel, stride, [1] * axes, padding, {"padding": [0] * axes})

    return Rule(
        operations=[f"aten.avg_pool{axes}d"],
        forward=forward,
        jac_t={"self": jac_t},
        residual=ZERO,
        formula="S / size of the window, at each of its places",
        structure=Structure.CONSTANT,
        window=window,
        cases=cases(axes),
    )


def cases(axes: int) -> list[Case]:
    """Every option, on images with channels and without."""
    case = partial(case_of_images, axes)
    return [
        case(2, 4, 5, 2, kernel_size=[2]),
        case(2, 5, 4, 3, kernel_size=[3, 2, 2], stride=[1, 2, 1]),  # windows overlap
        case(1, 4, 5, 3, kernel_size=[2, 3, 2], stride=[2, 2, 1], padding=[1, 1, 0]),
        case(1, 4, 5, 3, kernel_size=[2, 3, 2], stride=[2, 1, 1], padding=[1, 1, 0], count_include_pad=False),
        case(2, 4, 2, 2, kernel_size=[3, 2, 1], stride=[2, 2, 2], ceil_mode=True),
        case(2, 4, 4, 2, kernel_size=[3, 2, 1], padding=[1, 1, 0], ceil_mode=True, count_include_pad=False),
        case(2, 3, 2, 2, kernel_size=[3, 2, 2]),  # one position
        Case({"self": (4, 3, 3)[:axes]}, {"kernel_size": [2], "stride": [1]}),  # no channels
        *([case(2, 4, 3, 2, kernel_size=[2], stride=[2, 1, 1], divisor_override=3)] if axes > 1 else []),
    ]


def adaptive_avg_pool(axes: int) -> Rule:
    """Average-pooling to a given size; windows overlap where it does not divide the input's."""

    def forward(op: Op) -> Tensor:
        size = per_axis(op.output_size, axes)
        return op.self.mean(list(range(-axes, 0)), True) if prod(size) == 1 else ADAPTIVE[axes](op.self, size)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        inner = op.shape("self")[-axes:]
        if prod(per_axis(op.output_size, axes)) == 1:  # nothing but one number per channel need be in memory
            return (columns / prod(inner)).expand(*[-1] * (columns_axes(op) - axes), *inner)
        return pulled(op, columns, axes, ADAPTIVE_BACK[axes])

    def columns_axes(op: Op) -> int:
        return 2 + len(op.shape("self"))

    return Rule(
        operations=[f"aten.adaptive_avg_pool{axes}d"] + ([f"aten._adaptive_avg_pool{axes}d"] if axes > 1 else []),
        forward=forward,
        jac_t={"self": jac_t},
        residual=ZERO,
        formula="S / size of the window, at each of its places",
        structure=Structure.CONSTANT,
        cases=[*adaptive_cases(axes), Case({"self": (4, 3, 2)[:axes]}, {"output_size": [1, 1, 1][:axes]})],
    )


AVG_POOLS = [avg_pool(axes) for axes in (1, 2, 3)]
ADAPTIVE_AVG_POOLS = [adaptive_avg_pool(axes) for axes in (1, 2, 3)]
