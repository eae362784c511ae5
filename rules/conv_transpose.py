"""Transposed convolutions of one, two and three axes: each input position spreads over a patch of the output."""

from __future__ import annotations

import torch

from hbpcompiler.rule import (
    Case,
    Contraction,
    Op,
    Tensor,
    flat_positions,
    merge,
    patches,
    split,
)

from .shared.spatial import (
    CONV,
    CONV_TRANSPOSE,
    axes_of,
    by_groups,
    convolution_case,
    convolution_rule,
    cut,
    groups_in,
    options,
    per_axis,
)


def given(op: Op, *names: str) -> list[list[int]]:
    """These arguments, a number for each axis."""
    return [per_axis(getattr(op, name), axes_of(op)) for name in names]


def forward(op: Op) -> Tensor:
    axes = axes_of(op)
    stride, padding, output_padding, dilation = given(op, "stride", "padding", "output_padding", "dilation")
    chosen = options(
        stride=stride,
        usual=[1] * axes,
        padding=padding,
        output_padding=output_padding,
        groups=op.groups,
        dilation=dilation,
    )
    return CONV_TRANSPOSE[axes](op.input, op.weight, op.bias, **chosen)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    axes = axes_of(op)
    stride, padding, output_padding, dilation = given(op, "stride", "padding", "output_padding", "dilation")
    chosen = options(stride=stride, usual=[1] * axes, padding=padding, dilation=dilation, groups=op.groups)
    back = CONV[axes](merge(columns), op.weight, **chosen)
    # An output_padding of a whole stride or more makes room for positions that the input does not have.
    excess = [o // s for o, s in zip(output_padding, stride, strict=True)]
    return split(cut(back, op.shape("input")[1:], excess), columns)


def reached(op: Op, columns: Tensor) -> Tensor:
    """The patch of the columns that each input position reaches."""
    stride, padding, output_padding, dilation = given(op, "stride", "padding", "output_padding", "dilation")
    after = [p - e for p, e in zip(padding, output_padding, strict=True)]
    seen = patches(merge(columns), op.shape("weight")[2:], stride, dilation, padding, after)
    return by_groups(op, split(seen, columns), 2)


def operand(op: Op) -> Tensor:
    return by_groups(op, flat_positions(op.input, axes_of(op)), 1)


def kernel(op: Op, gradient: Tensor) -> Tensor:
    stride, padding, output_padding, dilation = given(op, "stride", "padding", "output_padding", "dilation")
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, op.input, op.weight, None, stride, padding, dilation,
        True, output_padding, op.groups, [False, True, False],
    )  # fmt: skip
    return gradients[1]


def weight(op: Op) -> Contraction:
    equation = "nkop,nip->nkio" if op.groups == 1 else "nkgop,ngip->nkgio"
    return Contraction(equation, reached, operand, kernel)


def cases(axes: int) -> list[Case]:
    """Every option alone and some together, on axes of different lengths."""

    def case(
        size: int, kernel: int, channels: tuple[int, int] = (2, 2), *, bias: bool = False, **attributes: object
    ) -> Case:
        spatial, window = [size, max(size - 1, 1), 2][:axes], [kernel, max(kernel - 1, 1), kernel][:axes]
        weight = (channels[0], channels[1] // groups_in(attributes), *window)
        return convolution_case((channels[0], *spatial), weight, channels[1], bias, **attributes)

    return [
        case(3, 2, bias=True),
        case(2, 3, (2, 1), stride=[2, 1, 2], padding=[1, 0, 1], output_padding=[1, 0, 1], bias=True),
        case(3, 3, (1, 2), stride=[2], padding=[1]),
        case(2, 2, (1, 1), dilation=[3, 2, 2], output_padding=[2, 1, 1]),  # output_padding beyond the stride
        case(3, 3, (2, 1), dilation=[1, 2, 1], padding=[2, 1, 1], bias=True),
        case(2, 1, (2, 3), bias=True),
        case(2, 1, (1, 2), stride=[2, 3, 1]),
        case(1, 2, (2, 2)),  # one position
        case(2, 2, (4, 4), groups=2, bias=True),
        case(2, 2, (2, 4), groups=2, stride=[2, 1, 1], padding=[0, 0, 1], output_padding=[1, 0, 0]),
        case(2, 1, (2, 2), groups=2),
    ]


CONV_TRANSPOSES = [
    convolution_rule("conv_transpose", axes, weight, cases(axes), "S by the convolution with W", forward=forward,
                     jac_t={"input": jac_t})
    for axes in (1, 2, 3)
]
