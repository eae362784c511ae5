"""Max-pooling and its adaptive variant: every output copies one input, whose position the forward pass keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Layout, Op, Rule, Selection, Structure, Tensor, Window

from .shared.image_cases import adaptive_cases, case_of_images
from .shared.selecting import SELECTED, with_places
from .shared.spatial import brief, options, per_axis, scatter

VALUES: dict[int, Callable[..., Tensor]] = {1: torch.max_pool1d, 2: torch.max_pool2d, 3: torch.max_pool3d}
WITH_INDICES: dict[int, Callable[..., Any]] = {
    1: partial(F.max_pool1d, return_indices=True),
    2: partial(F.max_pool2d, return_indices=True),
    3: partial(F.max_pool3d, return_indices=True),
}
ADAPTIVE: dict[int, Callable[..., Any]] = {
    1: partial(F.adaptive_max_pool1d, return_indices=True),
    2: partial(F.adaptive_max_pool2d, return_indices=True),
    3: partial(F.adaptive_max_pool3d, return_indices=True),
}


def structure(axes: int) -> Callable[[Op], Structure | Selection]:
    """A selection whose places are known, if there are channels."""
    places = Selection(lambda op: op.indices.flatten(2) if axes > 1 else op.indices)
    return lambda op: places if len(op.shape("self")) > axes else Structure.SELECTION


def cases(axes: int) -> list[Case]:
    """Windows side by side, overlapping, over the edge, dilated, of one position, and without channels."""
    case = partial(case_of_images, axes)
    return [
        case(2, 4, 5, 2, kernel_size=[2]),
        case(2, 5, 4, 3, kernel_size=[3, 2, 2], stride=[1, 2, 1]),  # windows overlap
        case(1, 4, 5, 3, kernel_size=[2, 3, 2], stride=[2, 1, 2], padding=[1, 1, 0], ceil_mode=True),
        case(1, 5, 5, 4, kernel_size=[2], stride=[2, 1, 1], dilation=[2, 3, 1]),
        case(2, 3, 2, 2, kernel_size=[3, 2, 2]),  # one position
        Case({"self": (4, 3, 3)[:axes]}, {"kernel_size": [2], "stride": [1]}),  # no channels
    ]


def max_pool(axes: int) -> Rule:
    """Max-pooling over so many axes."""

    def forward(op: Op) -> Any:
        kernel = per_axis(op.kernel_size, axes)
        arguments = options(
            stride=per_axis(op.stride, axes) or kernel,
            usual=kernel,
            padding=per_axis(op.padding, axes),
            dilation=per_axis(op.dilation, axes),
            ceil_mode=op.ceil_mode,
        )
        if op.index == 0 and not op.differentiated:
            return VALUES[axes](op.self, brief(kernel), **arguments)
        return with_places(op, WITH_INDICES[axes](op.self, brief(kernel), **arguments))

    def back(op: Op, gradient: Tensor) -> Tensor:
        """The kernel adds up planes side by side, where `scatter_add` has a single thread."""
        kernel = per_axis(op.kernel_size, axes)
        stride, padding, dilation = (per_axis(each, axes) for each in (op.stride, op.padding, op.dilation))
        pulled: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, op.self, kernel, stride or kernel, padding, dilation, op.ceil_mode, op.indices)
        return pulled

    def window(op: Op) -> Window | None:
        if len(op.shape("self")) == axes:
            return None
        kernel = per_axis(op.kernel_size, axes)
        return Window(kernel, per_axis(op.stride, axes) or kernel, per_axis(op.dilation, axes),
                      per_axis(op.padding, axes), {"padding": [0] * axes, "ceil_mode": False}, float("-inf"))

    return Rule(
        operations=[f"aten.max_pool{axes}d", f"aten.max_pool{axes}d_with_indices"],
        forward=forward,
        jac_t={"self": lambda op, columns: scatter(columns, op.indices, op.shape("self"), axes)},
        backward={"self": back} if axes == 2 else {},
        residual=ZERO,
        formula=SELECTED,
        structure=structure(axes),
        layout=Layout.CHANNELS,
        window=window,
        cases=cases(axes),
    )


def adaptive_max_pool(axes: int) -> Rule:
    """Max-pooling to a given size; windows overlap where it does not divide the input's."""

    def forward(op: Op) -> Any:
        return with_places(op, ADAPTIVE[axes](op.self, per_axis(op.output_size, axes)))

    return Rule(
        operations=[f"aten.adaptive_max_pool{axes}d"],
        forward=forward,
        jac_t={"self": lambda op, columns: scatter(columns, op.indices, op.shape("self"), axes)},
        residual=ZERO,
        formula=SELECTED,
        structure=structure(axes),
        layout=Layout.CHANNELS,
        cases=adaptive_cases(axes),
    )


MAX_POOLS = [max_pool(axes) for axes in (1, 2, 3)]
ADAPTIVE_MAX_POOLS = [adaptive_max_pool(axes) for axes in (1, 2, 3)]
