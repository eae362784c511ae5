"""What convolutions and pooling share: arguments per axis, torch's functions by axes, the frame of their rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F

from hbpcompiler.rule import (
    ZERO,
    Case,
    Contraction,
    Layout,
    Op,
    Rule,
    Structure,
    Tensor,
    flat_positions,
    scatter_to,
)

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


def cut(x: Tensor, shape: Sequence[int], excess: Sequence[int]) -> Tensor:
    """The last axes cut to `shape`, where something is in excess."""
    for axis, (length, surplus) in enumerate(zip(shape, excess, strict=True), start=-len(shape)):
        if surplus > 0:
            x = x.narrow(axis, 0, length)
    return x


def axes_of(op: Op) -> int:
    """How many spatial axes a convolution has: its weight is [out, in, *kernel]."""
    return len(op.shape("weight")) - 2


def by_groups(op: Op, value: Tensor, axis: int) -> Tensor:
    """The axis of channels with the groups apart, where there are several: [..., groups, channels of each, ...]."""
    return value if op.groups == 1 else value.unflatten(axis, (op.groups, -1))


def scatter(columns: Tensor, positions: Tensor, input_shape: Sequence[int], axes: int) -> Tensor:
    """Add each element of the columns [N, K, *lead, *out] to the input's element at its flat position.

    `positions` broadcasts to [N, *lead, *out].
    """
    return scatter_to(columns, positions, list(input_shape[-axes:]))


def refuse_unbatched(op: Op, axes: int) -> str | None:
    """Why a convolution of an input without channel axis is refused."""
    if len(op.shape("input")) == axes + 1:
        return None
    return (
        f"its input has {axes + 1} axes, so the sample axis is taken for the channels; "
        "add a channel axis, x.unsqueeze(1), before the convolution"
    )


def convolution_rule(
    name: str,
    axes: int,
    weight: Callable[[Op], Contraction],
    cases: Sequence[Case],
    formula: str,
    **parts: Any,
) -> Rule:
    """The rule of a linear map with one weight for all positions; its `parts` are those of a Rule."""

    def params(op: Op) -> Mapping[str, Contraction]:
        bias = Contraction("nkop->nko", lambda op, columns: flat_positions(columns, axes_of(op)))
        return {"weight": weight(op), "bias": bias}

    return Rule(
        operations=[f"aten.{name}{axes}d"],
        params=params,
        residual=ZERO,
        formula=formula,
        structure=Structure.CONSTANT,
        layout=Layout.PIXELS if axes == 2 else None,
        refuse=lambda op: refuse_unbatched(op, axes),
        cases=cases,
        **parts,
    )


def convolution_case(
    input: tuple[int, ...], weight: tuple[int, ...], outputs: int, bias: bool, **attributes: object
) -> Case:
    """One use, on an input [channels, *spatial]; attributes of more axes than it has are cut."""
    axes = len(input) - 1
    shapes = {"input": input, "weight": weight, **({"bias": (outputs,)} if bias else {})}
    short = {name: value[:axes] if isinstance(value, list) else value for name, value in attributes.items()}
    return Case(shapes, short)


def groups_in(attributes: Mapping[str, object]) -> int:
    groups = attributes.get("groups", 1)
    assert isinstance(groups, int)
    return groups
