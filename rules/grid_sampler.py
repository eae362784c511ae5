"""F.grid_sample, as a function of the image: linear, with coefficients that depend on the sample's grid.

In the grid it is curved and jumps from pixel to pixel: trained grids are refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Op, Rule, Tensor, merge, split

MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def options(op: Op) -> dict[str, Any]:
    """Keyword arguments of F.grid_sample."""
    return {"mode": MODES[op.interpolation_mode], "padding_mode": PADDINGS[op.padding_mode],
            "align_corners": op.align_corners}


def refuse(op: Op) -> str | None:
    if op.varies("grid"):
        return "its grid is trained; the result is curved in it and only the image may carry derivatives"
    if not (op.has_samples("input") and op.has_samples("grid")):
        return "its image or its grid has no sample axis; expand it over the batch"
    return None


def sampler(axes: int, modes: tuple[int, ...]) -> Rule:
    """The rule for images of so many axes."""
    backward = torch.ops.aten.grid_sampler_2d_backward if axes == 2 else torch.ops.aten.grid_sampler_3d_backward

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        merged = merge(columns)
        grid = merge(op.grid.unsqueeze(1).expand(-1, columns.shape[1], *[-1] * (axes + 1)))
        like = merged.new_zeros(1).expand(merged.shape[0], *op.shape("input"))  # of which only the shape is read
        pulled = backward(merged, like, grid, op.interpolation_mode, op.padding_mode, op.align_corners, [True, False])
        return split(pulled[0], columns)

    shape, place = ((2, 3, 4), (2, 3)) if axes == 2 else ((1, 2, 3, 2), (2, 1, 2))
    return Rule(
        operations=[f"aten.grid_sampler_{axes}d"],
        forward=lambda op: F.grid_sample(op.input, op.grid, **options(op)),
        jac_t={"input": jac_t},
        residual=ZERO,
        formula="S shared out to the pixels by the weights of the interpolation",
        refuse=refuse,
        cases=[
            Case({"input": shape, "grid": (*place, axes)},
                 {"interpolation_mode": mode, "padding_mode": padding, "align_corners": corners}, ("input", "grid"))
            for mode in modes
            for padding, corners in ((0, False), (1, True), (2, False))
        ],
    )


SAMPLERS = [sampler(2, (0, 1, 2)), sampler(3, (0, 1))]
