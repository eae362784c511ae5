"""Convolutions of one, two and three axes: a linear map of each patch, with one weight for all positions."""

from __future__ import annotations

from math import prod

import torch

from hbpcompiler.rule import (
    Case,
    Contraction,
    Op,
    Tensor,
    Window,
    flat_positions,
    merge,
    pad_axes,
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


def strides(op: Op) -> list[int]:
    return per_axis(op.stride, axes_of(op))


def dilations(op: Op) -> list[int]:
    return per_axis(op.dilation, axes_of(op))


def kernel_size(op: Op) -> tuple[int, ...]:
    return op.shape("weight")[2:]


def padding_of(op: Op) -> tuple[list[int], list[int]]:
    """Zeros before and after each axis: 'same' puts the odd one after."""
    if not isinstance(op.padding, str):
        padding = per_axis(op.padding, axes_of(op))
        return padding, padding
    if op.padding == "valid":
        return [0] * axes_of(op), [0] * axes_of(op)
    total = [d * (k - 1) for d, k in zip(dilations(op), kernel_size(op), strict=True)]
    return [t // 2 for t in total], [t - t // 2 for t in total]


def forward(op: Op) -> Tensor:
    axes = axes_of(op)
    padding = op.padding if isinstance(op.padding, str) else per_axis(op.padding, axes)
    chosen = options(
        stride=strides(op), usual=[1] * axes, padding=padding, dilation=dilations(op), groups=op.groups
    )
    return CONV[axes](op.input, op.weight, op.bias, **chosen)


# -- columns ---------------------------------------------------------------------------------------------------------


def jac_t(op: Op, columns: Tensor) -> Tensor:
    axes, (before, _) = axes_of(op), padding_of(op)
    if prod(kernel_size(op)) == prod(strides(op)) == op.groups == 1 and not any(before):
        return pixel_by_pixel(op, columns)
    inner, missing = op.shape("input")[1:], unreached(op)
    chosen = options(
        stride=strides(op),
        usual=[1] * axes,
        padding=before,
        output_padding=[max(m, 0) for m in missing],
        groups=op.groups,
        dilation=dilations(op),
    )
    back = CONV_TRANSPOSE[axes](merge(columns), op.weight, **chosen)
    return split(cut(back, inner, [-m for m in missing]), columns)


def pixel_by_pixel(op: Op, columns: Tensor) -> Tensor:
    """A kernel of one pixel is a matrix product, two to four times as fast on a CPU."""
    axes = axes_of(op)
    back: Tensor = op.weight.flatten(1).t() @ flat_positions(columns, axes)
    return back.unflatten(3, list(op.shape("input")[1:])) if axes > 1 else back


def unreached(op: Op) -> list[int]:
    """Positions at the end that no kernel reached (more than the transposed convolution makes), or its surplus."""
    beyond = Window(kernel_size(op), strides(op), dilations(op), padding_of(op)[0]).after(
        op.shape("input")[1:], op.shape("output")[1:]
    )
    return [b - e for b, e in zip(padding_of(op)[0], beyond, strict=True)]


# -- parameters ------------------------------------------------------------------------------------------------------


def operand(op: Op) -> Tensor:
    return by_groups(op, patches(op.input, kernel_size(op), strides(op), dilations(op), *padding_of(op)), 1)


def outputs(op: Op, columns: Tensor) -> Tensor:
    return by_groups(op, flat_positions(columns, axes_of(op)), 2)


def kernel(op: Op, gradient: Tensor) -> Tensor:
    """torch reads of the weight its shape alone."""
    before, after = padding_of(op)
    axes = axes_of(op)
    padded = pad_axes(op.input, [0] * axes, [a - b for a, b in zip(after, before, strict=True)])
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, padded, op.weight, None, strides(op), before, dilations(op),
        False, [0] * axes, op.groups, [False, True, False],
    )  # fmt: skip
    return gradients[1]


def channel_by_channel(op: Op, columns: Tensor) -> Tensor:
    """[N, K, groups, out, places of the kernel] where each group has one input channel: its image is convolved with
    the columns (Rochette, Manoel, Tramel 2019), stride and dilation trading places; no patches are made.
    """
    before, after = padding_of(op)
    axes, size = axes_of(op), kernel_size(op)
    padded = pad_axes(op.input, [0] * axes, [a - b for a, b in zip(after, before, strict=True)])
    images = padded.unsqueeze(1).expand(-1, columns.shape[1], *[-1] * (axes + 1)).flatten(0, 2).unsqueeze(0)
    chosen = options(stride=dilations(op), usual=[1] * axes, padding=before, dilation=strides(op))
    seen = CONV[axes](images, columns.flatten(0, 2).unsqueeze(1), **chosen, groups=images.shape[1])
    reach = zip(op.shape("input")[1:], before, after, op.shape("output")[1:], strides(op), dilations(op), strict=True)
    places = [(i + b + a - s * (o - 1) - 1) // d + 1 for i, b, a, o, s, d in reach]
    surplus = [p - k for p, k in zip(places, size, strict=True)]
    return cut(seen, size, surplus).reshape(columns.shape[0], columns.shape[1], op.groups, -1, prod(size))


def weight(op: Op) -> Contraction:
    if op.groups == 1:
        return Contraction("nkop,nip->nkoi", outputs, operand, kernel)
    one = op.shape("input")[0] == op.groups
    return Contraction("nkgop,ngip->nkgoi", outputs, operand, kernel,
                       product=channel_by_channel if one else None)


def window(op: Op) -> Window:
    return Window(
        kernel_size(op), strides(op), dilations(op), padding_of(op)[0], {"padding": [0] * axes_of(op)}
    )


def cases(axes: int) -> list[Case]:
    """Every option alone and some together, on axes of different lengths."""

    def case(
        size: int,
        kernel: int,
        *,
        channels: tuple[int, int] = (2, 2),
        bias: bool = False,
        **attributes: object,
    ) -> Case:
        spatial, window = [size, size - 1, size][:axes], [kernel, max(kernel - 1, 1), kernel][:axes]
        weight = (channels[1], channels[0] // groups_in(attributes), *window)
        return convolution_case((channels[0], *spatial), weight, channels[1], bias, **attributes)

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
        case(4, 2, groups=2, channels=(2, 4), stride=[2, 1, 2], padding=[1, 0, 1], dilation=[1, 2, 1]),
        case(5, 2, groups=2, channels=(2, 2), stride=[2, 3, 2], dilation=[2, 1, 2]),
        case(4, 3, padding="same", bias=True),
        case(3, 2, padding="same", channels=(1, 2)),
        case(4, 2, padding="same", dilation=[3, 2, 1], groups=2),
        case(4, 2, padding="valid", stride=[2, 1, 1], bias=True),
    ]


CONVOLUTIONS = [
    convolution_rule("conv", axes, weight, cases(axes), "S by the transposed convolution with W", forward=forward,
                     jac_t={"input": jac_t}, window=window)
    for axes in (1, 2, 3)
]
