"""Padding by a constant (or cropping, where amounts are negative), by reflection, by the edge, or periodically."""

from __future__ import annotations

from math import isfinite, prod
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Op, Tensor, Window

from .shared.selecting import selection
from .shared.spatial import scatter


def mode(op: Op) -> str:
    """aten.constant_pad_nd has no mode."""
    return str(getattr(op, "mode", "constant"))


def forward(op: Op) -> Tensor:
    if mode(op) != "constant":
        return F.pad(op.self, op.pad, mode(op))
    return F.pad(op.self, op.pad, value=op.value) if op.value else F.pad(op.self, op.pad)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    if mode(op) == "constant":
        return F.pad(columns, [-amount for amount in op.pad])
    # Where each output comes from: the inputs' positions, padded. Float64, as there is no padding of integers.
    shape, axes = op.shape("self"), len(op.pad) // 2
    numbers = columns.new_ones(prod(shape[-axes:]), dtype=torch.float64).cumsum(0) - 1
    sources = F.pad(numbers.reshape(1, 1, *shape[-axes:]), op.pad, mode(op)).long()
    sources = sources.reshape(*[1] * (len(shape) - axes + 1), *op.shape("output")[-axes:])
    return scatter(columns, sources, shape, axes)


def window(op: Op) -> Window | None:
    axes = len(op.shape("self")) - 1
    given = [*op.pad, *[0] * (2 * axes - len(op.pad))]
    if mode(op) != "constant" or axes < 1 or any(given[2 * axes :]) or not isfinite(op.value or 0):
        return None
    ones, before = [1] * axes, [given[2 * axis] for axis in reversed(range(axes))]
    return Window(ones, ones, ones, before, {"pad": [0] * len(op.pad)}, op.value or 0.0)


def refuse(op: Op) -> str | None:
    if len(op.pad) // 2 > len(op.shape("self")) and any(op.pad[-2:]) and op.has_samples("self"):
        return "it pads the sample axis, so that samples appear or vanish; pad only the axes after it"
    return None


def case(shape: tuple[int, ...], pad: list[int], **attributes: Any) -> Case:
    return Case({"self": shape}, {"pad": pad, **attributes})


CONSTANT = [
    case((2, 3), [1, 2]),
    case((2, 3), [0, 1, 2, 0, 0, 0]),
    case((2, 4, 3), [-1, 1, 2, -2]),
    case((2, 3), [1, 0], value=1.5),
]
PAD = selection(
    "aten.pad",
    forward,
    jac_t,
    [
        *CONSTANT,
        *[
            case(shape, pad, mode=mode)
            for mode in ("reflect", "replicate", "circular")
            for shape, pad in [((2, 4), [2, 1]), ((4,), [3, 0]), ((2, 3, 4), [0, 2, 1, 2]), ((3, 3), [1, 2, 0, 2])]
        ],
        case((1, 2, 3, 3), [1, 1, 2, 0, 1, 0], mode="reflect"),
        case((1, 2, 3, 3), [1, 1, 3, 0, 1, 2], mode="replicate"),
        case((1, 2, 3, 3), [1, 1, 2, 0, 1, 2], mode="circular"),
    ],
    refuse,
    window=window,
    formula="S without the padding; what the padding copied is added where it came from",
)
CONSTANT_PAD = selection(
    "aten.constant_pad_nd",
    forward,
    jac_t,
    CONSTANT,
    refuse,
    window=window,
    formula="S without the padding",
)
