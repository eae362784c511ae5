"""Interpolation to another size, nearest or linear: a matrix for each spatial axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor

NAMES = {
    "nearest": ["aten.upsample_nearest{}d", "nearest", "nearest", "nearest"],
    "nearest-exact": ["aten._upsample_nearest_exact{}d", "nearest-exact", "nearest-exact", "nearest-exact"],
    "linear": ["aten.upsample_{1}{0}d", "linear", "bilinear", "trilinear"],
}


def interpolation(mode: str, axes: int) -> Rule:
    """The rule for so many spatial axes."""
    name = NAMES[mode][axes]

    def options(op: Op, which: list[int]) -> dict[str, Any]:
        """Size or scale of these axes, as F.interpolate takes them."""
        given = {"align_corners": True} if mode == "linear" and op.align_corners else {}
        if op.scale_factors is None:
            return {"size": [op.shape("output")[1 + axis] for axis in which], **given}
        return {"scale_factor": [op.scale_factors[axis] for axis in which], **given}

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        for axis, length in enumerate(op.shape("input")[1:]):
            unit = torch.diag(columns.new_ones(length)).unsqueeze(0)
            matrix = F.interpolate(unit, mode=mode, **options(op, [axis])).squeeze(0)  # [in, out]
            last = axis == axes - 1
            moved = (columns if last else columns.movedim(axis - axes, -1)) @ matrix.t()
            columns = moved if last else moved.movedim(-1, axis - axes)
        return columns

    def case(size: list[int] | None, factors: list[float] | None, corners: bool = False) -> Case:
        wanted = {"output_size": size and size[:axes], "scale_factors": factors and factors[:axes]}
        return Case({"input": (2, 3, 2, 4)[: axes + 1]}, {**wanted, "align_corners": corners}, ("input",), "vec")

    cases = [case([5, 2, 3], None), case(None, [2.0, 1.5, 0.5])]
    return Rule(
        operations=[NAMES[mode][0].format(axes, name) + ".vec"],
        forward=lambda op: F.interpolate(op.input, mode=name, **options(op, list(range(axes)))),
        jac_t={"input": jac_t},
        residual=ZERO,
        structure=Structure.CONSTANT,
        cases=[*cases, case([5, 2, 3], None, True)] if mode == "linear" else cases,
    )


INTERPOLATIONS = [interpolation(mode, axes) for mode in NAMES for axes in (1, 2, 3)]
