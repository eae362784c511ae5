"""Operations that have rules, written in others all the same: for functions of parameters alone, and for a norm whose
weight and input depend on one parameter (a layer used several times)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Tensor, patches
from hbpcompiler.rule.decomposition import Decomposition

from .shared.spatial import per_axis

# -- norms: the weight meets what is standardised in a product of its own --------------------------------------------


def scaled(standardised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    result = standardised if weight is None else standardised * weight
    return result if bias is None else result + bias


def layer_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    return scaled(F.layer_norm(x, normalized_shape, None, None, eps), weight, bias)


def rms_norm(x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Without eps it is the machine's."""
    axes = list(range(-len(normalized_shape), 0))
    squares = x.square().mean(axes, True) + (torch.finfo(x.dtype).eps if eps is None else eps)
    return scaled(x * squares.rsqrt(), weight, None)


def by_channel(x: Tensor, value: Tensor | None) -> Tensor | None:
    """A number for each channel as it meets [N, C, *positions]."""
    return None if value is None else value.reshape(-1, *[1] * (x.dim() - 2))


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    return scaled(F.group_norm(x, num_groups, None, None, eps), by_channel(x, weight), by_channel(x, bias))


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    if use_input_stats or running_mean is None or running_var is None:
        return group_norm(x, x.shape[1], weight, bias, eps)
    centred = x - running_mean.reshape(-1, *[1] * (x.dim() - 2))
    scale = (running_var + eps).rsqrt().reshape(-1, *[1] * (x.dim() - 2))
    return scaled(centred * scale, by_channel(x, weight), by_channel(x, bias))


NORMS = [
    Decomposition([f"aten.{function.__name__}"], function)
    for function in (layer_norm, rms_norm, group_norm, instance_norm)
]



def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, *options: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """With fixed statistics. Options end in momentum and eps; one before them asks for the batch's own."""
    mean, variance = by_channel(x, running_mean), by_channel(x, running_var)
    if len(options) == 3 and options[0]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean, variance = x.mean(axes, True), x.var(axes, correction=0, keepdim=True)
    assert mean is not None
    assert variance is not None
    standardised = (x - mean) * (variance + options[-1]).rsqrt()
    return scaled(standardised, by_channel(x, weight), by_channel(x, bias)), running_mean, running_var


BATCH_NORM = Decomposition(
    ["aten._native_batch_norm_legit.default", "aten._native_batch_norm_legit_no_training.default"], batch_norm)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """The slope meets what is negative."""
    slope = by_channel(x, weight) if weight.numel() > 1 else weight
    assert slope is not None
    return torch.where(x > 0, x, slope * x)


PRELU = Decomposition(["aten.prelu", "aten._prelu_kernel"], prelu)

# -- convolutions: the weight times the patches ----------------------------------------------------------------------


def convolution(axes: int) -> Callable[..., Tensor]:
    """The convolution along so many axes."""

    def convolved(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: list[int] | int = 1,
        padding: list[int] | int | str = 0, dilation: list[int] | int = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        size, strides, dilations = list(weight.shape[2:]), per_axis(stride, axes), per_axis(dilation, axes)
        beyond = [d * (k - 1) for d, k in zip(dilations, size, strict=True)]
        if isinstance(padding, str):
            total = beyond if padding == "same" else [0] * axes
            before, after = [t // 2 for t in total], [t - t // 2 for t in total]
        else:
            before = after = per_axis(padding, axes)
        lengths = [
            (x.shape[2 + i] + before[i] + after[i] - beyond[i] - 1) // strides[i] + 1 for i in range(axes)
        ]
        seen = patches(x, size, strides, dilations, before, after)  # [B, C * the kernel's size, positions]
        rows = weight.flatten(1)
        if groups == 1:
            made = product(rows, seen)
        else:
            parts = zip(rows.chunk(groups), seen.chunk(groups, 1), strict=True)
            made = torch.cat([product(some, columns) for some, columns in parts], 1)
        made = made.unflatten(2, lengths)
        return made if bias is None else made + bias.reshape(-1, *[1] * axes)

    return convolved


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """[o, i] and [B, i, p] -> [B, o, p], as one product of matrices."""
    flat = columns.movedim(1, 0).flatten(1)
    return torch.bmm(rows.unsqueeze(0), flat.unsqueeze(0)).squeeze(0).unflatten(1, (columns.shape[0], -1)).movedim(1, 0)


CONVOLUTIONS = [
    Decomposition([f"aten.conv{axes}d"], convolution(axes)) for axes in (1, 2, 3)
]


# -- indices behind other axes: what they pick goes to the front, and back -------------------------------------------


def index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """x[:, i, :, j]: where the indices are side by side, what they pick stands in their place, or else in front."""
    axes = [axis for axis, given in enumerate(indices) if given is not None]
    given = [item for item in indices if item is not None]
    places = list(range(len(axes)))
    picked: Tensor = torch.ops.aten.index(x.movedim(axes, places), given)
    if axes != list(range(axes[0], axes[-1] + 1)):
        return picked
    rank = picked.dim() - (x.dim() - len(axes))
    return picked.movedim(list(range(rank)), list(range(axes[0], axes[0] + rank)))


INDEX = Decomposition(["aten.index"], index)
