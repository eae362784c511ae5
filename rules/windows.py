"""Windows over axes: Tensor.unfold, nn.Unfold and nn.Fold. Copies one way, sums of what overlaps the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor, merge, split

from .shared.moving import axis, given, moving, refusal

# -- along one axis --------------------------------------------------------------------------------------------------


def windows_back(op: Op, columns: Tensor) -> Tensor:
    """Each window is added where it came from."""
    sizes = [columns.shape[0], columns.shape[1], *op.shape("self")]
    place = axis(op, op.dimension) + 1
    result: Tensor = torch.ops.aten.unfold_backward(columns, sizes, place, op.size, op.step)
    return result


TENSOR_UNFOLD = moving(
    "aten.unfold",
    lambda op: op.self.unfold(op.dimension, op.size, op.step),
    windows_back,
    [given(5, dimension=1, size=3, step=1), given(2, 6, dimension=-1, size=2, step=3),
     given(5, 2, dimension=1, size=2, step=2), given(3, dimension=1, size=3, step=1)],
    lambda op: refusal("cuts windows out of") if axis(op, op.dimension) == 0 else None,
    formula="S added up where windows overlap",
)

# -- over an image ---------------------------------------------------------------------------------------------------


def spatial(op: Op) -> dict[str, Any]:
    """Keyword arguments of F.unfold and F.fold, without defaults."""
    usual = {"dilation": [1, 1], "padding": [0, 0], "stride": [1, 1]}
    return {name: getattr(op, name) for name, default in usual.items() if getattr(op, name) != default}


def im2col_back(op: Op, columns: Tensor) -> Tensor:
    return split(F.fold(merge(columns), op.shape("self")[-2:], op.kernel_size, **spatial(op)), columns)


def col2im_back(op: Op, columns: Tensor) -> Tensor:
    return split(F.unfold(merge(columns), op.kernel_size, **spatial(op)), columns)


def unbatched(op: Op, axes: int) -> str | None:
    if len(op.shape("self")) == axes:
        return None
    return "its input has no channel axis, so the sample axis is taken for it; add one, as in x.unsqueeze(1)"


def case(shape: tuple[int, ...], kernel: list[int], **attributes: list[int]) -> Case:
    usual = {"dilation": [1, 1], "padding": [0, 0], "stride": [1, 1]}
    return Case({"self": shape}, {"kernel_size": kernel, **usual, **attributes})


IM2COL = Rule(
    operations=["aten.im2col"],
    forward=lambda op: F.unfold(op.self, op.kernel_size, **spatial(op)),
    jac_t={"self": im2col_back},
    residual=ZERO,
    formula="S added up where windows overlap",
    structure=Structure.SELECTION,
    refuse=lambda op: unbatched(op, 3),
    cases=[
        case((2, 3, 3), [2, 2]),
        case((1, 3, 3), [2, 3], padding=[1, 1], stride=[2, 1]),
        case((2, 3, 4), [3, 2], dilation=[1, 2]),
    ],
)
COL2IM = Rule(
    operations=["aten.col2im"],
    forward=lambda op: F.fold(op.self, op.output_size, op.kernel_size, **spatial(op)),
    jac_t={"self": col2im_back},
    residual=ZERO,
    formula="S in each window",
    structure=Structure.CONSTANT,
    refuse=lambda op: unbatched(op, 2),
    cases=[
        case((8, 4), [2, 2], output_size=[3, 3]),
        case((6, 6), [2, 3], output_size=[3, 3], padding=[1, 1], stride=[2, 1]),
        case((6, 2), [3, 2], output_size=[3, 4], dilation=[1, 2]),
    ],
)
