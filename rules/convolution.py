"""Convolutions of one, two and three axes: a linear map of each patch, with one weight for all positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch

from hbpcompiler.rule import ZERO, Case, Contraction, Layout, Op, Rule, Sliding, Structure, Tensor, Window, merge, split

from .shared.spatial import (
    CONV,
    CONV_TRANSPOSE,
    cut,
    flat_positions,
    options,
    pad_axes,
    patches,
    per_axis,
    refuse_unbatched,
)

LARGE_IMAGE = 20480
"""Numbers of one image (or a kernel longer than 3) from which torch takes its convolution to oneDNN."""


def padding_of(op: Op, axes: int) -> tuple[list[int], list[int]]:
    """Zeros before and after each axis: 'same' puts the odd one after."""
    if not isinstance(op.padding, str):
        padding = per_axis(op.padding, axes)
        return padding, padding
    if op.padding == "valid":
        return [0] * axes, [0] * axes
    kernel, dilation = op.shape("weight")[2:], per_axis(op.dilation, axes)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [t // 2 for t in total], [t - t // 2 for t in total]


def convolution(axes: int) -> Rule:
    """The rule for so many spatial axes."""

    def forward(op: Op) -> Tensor:
        padding = op.padding if isinstance(op.padding, str) else per_axis(op.padding, axes)
        chosen = options(
            stride=per_axis(op.stride, axes),
            usual=[1] * axes,
            padding=padding,
            dilation=per_axis(op.dilation, axes),
            groups=op.groups,
        )
        return CONV[axes](op.input, op.weight, op.bias, **chosen)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        before, _ = padding_of(op, axes)
        stride, dilation = per_axis(op.stride, axes), per_axis(op.dilation, axes)
        inner, outer, kernel = op.shape("input")[1:], op.shape("output")[1:], op.shape("weight")[2:]
        if prod(kernel) == prod(stride) == op.groups == 1 and not any(before):
            back: Tensor = op.weight.flatten(1).t() @ flat_positions(
                columns, axes
            )  # two to four times as fast on a CPU
            return back.unflatten(3, list(inner)) if axes > 1 else back
        # Positions at the end that no kernel reached (more than the transposed convolution makes), or its surplus.
        missing = [
            i - ((o - 1) * s - 2 * b + d * (k - 1) + 1)
            for i, o, s, b, d, k in zip(inner, outer, stride, before, dilation, kernel, strict=True)
        ]
        chosen = options(
            stride=stride,
            usual=[1] * axes,
            padding=before,
            output_padding=[max(m, 0) for m in missing],
            groups=op.groups,
            dilation=dilation,
        )
        back = CONV_TRANSPOSE[axes](merge(columns), op.weight, **chosen)
        return split(cut(back, inner, [-m for m in missing]), columns)

    def operand(op: Op) -> Tensor:
        padded = pad_axes(op.input, *padding_of(op, axes))
        seen = patches(padded, op.shape("weight")[2:], per_axis(op.stride, axes), per_axis(op.dilation, axes))
        return seen if op.groups == 1 else seen.unflatten(1, (op.groups, -1))

    def outputs(op: Op, columns: Tensor) -> Tensor:
        flat = flat_positions(columns, axes)
        return flat if op.groups == 1 else flat.unflatten(2, (op.groups, -1))

    def weight_gradient(op: Op, gradient: Tensor, weight: Tensor) -> Tensor:
        before, after = padding_of(op, axes)
        padded = pad_axes(op.input, [0] * axes, [a - b for a, b in zip(after, before, strict=True)])
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient, padded, weight, None, per_axis(op.stride, axes), before, per_axis(op.dilation, axes),
            False, [0] * axes, op.groups, [False, True, False],
        )  # fmt: skip
        return gradients[1]

    def summed(op: Op, gradient: Tensor) -> Tensor:
        return weight_gradient(op, gradient, op.weight)

    def of_sample(op: Op, columns: Tensor) -> Tensor:
        channels = columns.flatten(1, 2)
        # Of the weight the kernel reads the shape alone.
        weight = op.weight[:1].expand(channels.shape[1], *[-1] * (axes + 1))
        return weight_gradient(op, channels, weight).unflatten(0, (-1, op.shape("weight")[0]))

    def has_kernel(op: Op) -> bool:
        """Whether torch's CPU kernel for one sample beats patches times columns: where it is oneDNN's."""
        kernel, size = op.shape("weight")[2:], prod(op.shape("input"))
        return op.groups == 1 and (size > LARGE_IMAGE or (axes > 1 and min(kernel[-2:]) > 3))

    def sliding(op: Op) -> Sliding | None:
        """Rows along the first axis, patches only along the others."""
        stride, dilation, kernel = per_axis(op.stride, axes), per_axis(op.dilation, axes), op.shape("weight")[2:]
        if op.groups != 1 or stride[0] != 1 or kernel[0] == 1:
            return None

        def rows(op: Op) -> Tensor:
            padded = pad_axes(op.input, *padding_of(op, axes))
            across = patches(padded, (1, *kernel[1:]), stride, (1, *dilation[1:]))
            return across.unflatten(2, (height + dilation[0] * (kernel[0] - 1), -1))

        height = op.shape("output")[1]
        return Sliding(rows, kernel[0], dilation[0], height, op.shape("input")[0])

    def params(op: Op) -> Mapping[str, Contraction]:
        equation = "nkop,nip->nkoi" if op.groups == 1 else "nkgop,ngip->nkgoi"
        return {
            "weight": Contraction(equation, outputs, operand, summed, of_sample if has_kernel(op) else None,
                                  flat=op.groups == 1, sliding=sliding(op)),
            "bias": Contraction("nkop->nko", lambda op, columns: flat_positions(columns, axes), flat=True),
        }

    def window(op: Op) -> Window:
        return Window(op.shape("weight")[2:], per_axis(op.stride, axes), per_axis(op.dilation, axes),
                      padding_of(op, axes)[0], {"padding": [0] * axes})

    return Rule(
        operations=[f"aten.conv{axes}d"],
        forward=forward,
        jac_t={"input": jac_t},
        params=params,
        residual=ZERO,
        structure=Structure.CONSTANT,
        window=window,
        layout=Layout.PIXELS if axes == 2 else None,
        refuse=lambda op: refuse_unbatched(op, axes),
        cases=cases(axes),
    )


def cases(axes: int) -> list[Case]:
    """Every option alone and some together, on axes of different lengths."""

    def case(
        size: int,
        kernel: int,
        *,
        channels: tuple[int, int] = (2, 2),
        bias: bool = False,
        overload: str = "",
        **attributes: object,
    ) -> Case:
        groups = attributes.get("groups", 1)
        assert isinstance(groups, int)
        spatial, window = [size, size - 1, size][:axes], [kernel, max(kernel - 1, 1), kernel][:axes]
        shapes = {
            "input": (channels[0], *spatial),
            "weight": (channels[1], channels[0] // groups, *window),
            **({"bias": (channels[1],)} if bias else {}),
        }
        short = {name: value[:axes] if isinstance(value, list) else value for name, value in attributes.items()}
        return Case(shapes, short, overload=overload)

    return [
        case(4, 3, bias=True),
        case(4, 2, stride=[2, 1, 2], padding=[1, 0, 1], channels=(2, 3), bias=True),
        case(5, 2, stride=[2, 3, 2], dilation=[2, 1, 2], channels=(1, 2)),  # positions that no kernel reaches
        case(4, 3, padding=[2, 1, 1], dilation=[1, 2, 2], channels=(2, 1)),
        case(3, 2, stride=[2], padding=[1], channels=(1, 1), bias=True),
        case(3, 3, channels=(2, 2), bias=True),  # one position
        case(3, 1, channels=(2, 3), bias=True),  # no patches
        case(6, 5, channels=(1, 2), padding=[1, 0, 1]),  # a kernel of its own for each sample
        case(4, 1, stride=[2, 1, 2]),
        case(3, 1, padding=[1, 0, 1], channels=(1, 2)),
        case(3, 2, groups=2, channels=(4, 4), bias=True),
        case(3, 2, groups=2, stride=[2, 1, 1], padding=[0, 1, 0], dilation=[1, 1, 2], channels=(2, 6)),
        case(3, 1, groups=2, channels=(2, 4)),
        case(4, 3, overload="padding", padding="same", bias=True),
        case(3, 2, overload="padding", padding="same", channels=(1, 2)),
        case(4, 2, overload="padding", padding="same", dilation=[3, 2, 1], groups=2),
        case(4, 2, overload="padding", padding="valid", stride=[2, 1, 1], bias=True),
    ]


CONVOLUTIONS = [convolution(axes) for axes in (1, 2, 3)]
