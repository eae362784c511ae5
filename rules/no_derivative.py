"""Operations that let no derivative through: detach, and constants or draws of the shape of another value."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hbpcompiler.rule import NO_DERIVATIVE, ZERO, Case, Op, Rule, Structure, Tensor


def stopping(operation: str, forward: Callable[[Op], Tensor] | None = None, **attributes: float) -> Rule:
    return Rule(
        operations=[operation],
        forward=forward,
        jac_t=NO_DERIVATIVE,
        residual=ZERO,
        structure=Structure.SELECTION,
        cases=[Case({"self": (2, 3)}, attributes), Case({"self": ()}, attributes)],
    )


CONSTANTS = [
    stopping("aten.detach", lambda op: op.self),  # a program records nothing that could be detached
    stopping("aten.zeros_like"),
    stopping("aten.ones_like"),
    stopping("aten.full_like", fill_value=1.5),
    stopping("aten.rand_like"),
    stopping("aten.randn_like"),
    stopping("aten.fill.Scalar", value=1.5),
]

BITS = Rule(
    operations=["aten.view.dtype"],
    jac_t=NO_DERIVATIVE,
    residual=ZERO,
    cases=[Case({"self": (2, 4)}, {"dtype": dtype}, make={"self": lambda shape: torch.randint(9, tuple(shape))})
           for dtype in (torch.float64, torch.int32, torch.uint8)],
)
"""A view as another dtype: no reshape, though torch calls both view. Its cases have numbers of one dtype."""
