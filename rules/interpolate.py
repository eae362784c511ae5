"""Interpolation to another size, nearest, linear or cubic: a matrix for each spatial axis."""

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
            return {"size": [op.shape("output")[axis - axes] for axis in which], **given}
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
        given = {**wanted, "align_corners": corners} if mode == "linear" else wanted
        return Case({"input": (2, 3, 2, 4)[: axes + 1]}, given, ("input",))

    cases = [case([5, 2, 3], None), case(None, [2.0, 1.5, 0.5])]
    return Rule(
        operations=[NAMES[mode][0].format(axes, name) + ".vec"],
        forward=lambda op: F.interpolate(op.input, mode=name, **options(op, list(range(axes)))),
        jac_t={"input": jac_t},
        residual=ZERO,
        formula="S shared out by the weights of the interpolation",
        structure=Structure.CONSTANT,
        cases=[*cases, case([5, 2, 3], None, True)] if mode == "linear" else cases,
    )


# -- of images, where the matrix needs an image: cubic, or with a filter against aliasing ----------------------------


def of_images(operation: str, mode: str, antialias: bool) -> Rule:
    """The rule for two spatial axes, along each of which the weights do not depend on the other."""

    def resized(x: Tensor, op: Op, which: list[bool]) -> Tensor:
        """Resized along some axes; along the others it has two pixels, and keeps them."""
        given: dict[str, Any] = {"mode": mode}
        if op.align_corners:
            given["align_corners"] = True
        if antialias:
            given["antialias"] = True
        if op.scale_factors is None:
            return F.interpolate(x, size=[op.shape("output")[i - 2] if which[i] else 2 for i in (0, 1)], **given)
        return F.interpolate(x, scale_factor=[op.scale_factors[i] if which[i] else 1.0 for i in (0, 1)], **given)

    def matrix(op: Op, axis: int, columns: Tensor) -> Tensor:
        """[in, out] of one axis: of images that are the same along the other, where they stay as they are.

        Two pixels there, because torch's filter against aliasing is wrong along an axis of one.
        """
        length = op.shape("input")[1 + axis]
        images = torch.diag(columns.new_ones(length)).reshape(length, 1, length, 1).expand(-1, -1, -1, 2)
        images = images if axis == 0 else images.transpose(2, 3)
        return resized(images, op, [axis == 0, axis == 1]).select(3 - axis, 0).reshape(length, -1)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        rows = matrix(op, 0, columns) @ columns
        return rows @ matrix(op, 1, columns).t()

    def case(size: list[int] | None, factors: list[float] | None, corners: bool = False) -> Case:
        given = {"output_size": size, "scale_factors": factors, "align_corners": corners}
        return Case({"input": (2, 3, 4)}, given, ("input",))

    return Rule(
        operations=[f"aten.{operation}.vec"],
        forward=lambda op: resized(op.input, op, [True, True]),
        jac_t={"input": jac_t},
        residual=ZERO,
        formula="S shared out by the weights of the interpolation",
        structure=Structure.CONSTANT,
        cases=[case([5, 2], None), case(None, [2.0, 0.5]), case([2, 3], None, True)],
    )


IMAGES = [
    of_images("upsample_bicubic2d", "bicubic", False),
    of_images("_upsample_bicubic2d_aa", "bicubic", True),
    of_images("_upsample_bilinear2d_aa", "bilinear", True),
]
INTERPOLATIONS = [interpolation(mode, axes) for mode in NAMES for axes in (1, 2, 3)]
