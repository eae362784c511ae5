"""Transposed convolutions of one, two and three axes: each input position spreads over a patch of the output."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hbpcompiler.rule import ZERO, Case, Contraction, Layout, Op, Rule, Structure, Tensor, merge, split

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


def conv_transpose(axes: int) -> Rule:
    """The rule for so many spatial axes."""

    def forward(op: Op) -> Tensor:
        chosen = options(
            stride=per_axis(op.stride, axes),
            usual=[1] * axes,
            padding=per_axis(op.padding, axes),
            output_padding=per_axis(op.output_padding, axes),
            groups=op.groups,
            dilation=per_axis(op.dilation, axes),
        )
        return CONV_TRANSPOSE[axes](op.input, op.weight, op.bias, **chosen)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        stride, padding = per_axis(op.stride, axes), per_axis(op.padding, axes)
        chosen = options(
            stride=stride, usual=[1] * axes, padding=padding, dilation=per_axis(op.dilation, axes), groups=op.groups
        )
        back = CONV[axes](merge(columns), op.weight, **chosen)
        # An output_padding of a whole stride or more makes room for positions that the input does not have.
        excess = [o // s for o, s in zip(per_axis(op.output_padding, axes), stride, strict=True)]
        return split(cut(back, op.shape("input")[1:], excess), columns)

    def reached(op: Op, columns: Tensor) -> Tensor:
        """The patch of the columns that each input position reaches."""
        padding, extra = per_axis(op.padding, axes), per_axis(op.output_padding, axes)
        padded = pad_axes(merge(columns), padding, [p - e for p, e in zip(padding, extra, strict=True)])
        seen = patches(padded, op.shape("weight")[2:], per_axis(op.stride, axes), per_axis(op.dilation, axes))
        back = split(seen, columns)
        return back if op.groups == 1 else back.unflatten(2, (op.groups, -1))

    def operand(op: Op) -> Tensor:
        flat = flat_positions(op.input, axes)
        return flat if op.groups == 1 else flat.unflatten(1, (op.groups, -1))

    def summed(op: Op, gradient: Tensor) -> Tensor:
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient, op.input, op.weight, None, per_axis(op.stride, axes), per_axis(op.padding, axes),
            per_axis(op.dilation, axes), True, per_axis(op.output_padding, axes), op.groups, [False, True, False],
        )  # fmt: skip
        return gradients[1]

    def params(op: Op) -> Mapping[str, Contraction]:
        equation = "nkop,nip->nkio" if op.groups == 1 else "nkgop,ngip->nkgio"
        return {
            "weight": Contraction(equation, reached, operand, summed),
            "bias": Contraction("nkop->nko", lambda op, columns: flat_positions(columns, axes)),
        }

    return Rule(
        operations=[f"aten.conv_transpose{axes}d"],
        forward=forward,
        jac_t={"input": jac_t},
        params=params,
        residual=ZERO,
        layout=Layout.PIXELS if axes == 2 else None,
        structure=Structure.CONSTANT,
        refuse=lambda op: refuse_unbatched(op, axes),
        cases=cases(axes),
    )


def cases(axes: int) -> list[Case]:
    """Every option alone and some together, on axes of different lengths."""

    def case(
        size: int, kernel: int, channels: tuple[int, int] = (2, 2), *, bias: bool = False, **attributes: object
    ) -> Case:
        groups = attributes.get("groups", 1)
        assert isinstance(groups, int)
        spatial, window = [size, max(size - 1, 1), 2][:axes], [kernel, max(kernel - 1, 1), kernel][:axes]
        shapes = {
            "input": (channels[0], *spatial),
            "weight": (channels[0], channels[1] // groups, *window),
            **({"bias": (channels[1],)} if bias else {}),
        }
        short = {name: value[:axes] if isinstance(value, list) else value for name, value in attributes.items()}
        return Case(shapes, short, overload="input" if axes > 1 else "")

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


CONV_TRANSPOSES = [conv_transpose(axes) for axes in (1, 2, 3)]
